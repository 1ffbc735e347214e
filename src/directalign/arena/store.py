"""The database of an arena: an append-only SQLite table of answers; the latest answer counts.

An answer is on the disk when `append` returns (WAL with synchronous=FULL survives a killed process
and a power cut). A repeated request is stored once (UNIQUE); a later answer supersedes an earlier
one; taking back is a row without a choice; triggers refuse to delete or change rows. Only one
process may run an arena on a database: it holds a lock on an empty file beside it.
"""

import contextlib
import hmac
import json
import re
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock, Timeout

from ..io.atomic import lock_of
from .records import ArenaError, Mode, Rating, Vote
from .sources import Collection

FORMAT = "directalign arena 2"
Side = Literal["left", "right", "tie"]
SIDES: tuple[Side, ...] = get_args(Side)
SECRET = re.compile("[0-9a-f]{64}")

SCHEMA = Path(__file__).with_name("schema.sql")
_COUNTED = "FROM counted JOIN annotators USING (annotator) JOIN items USING (item)"
_RATINGS = f"SELECT name, item, model, axis, said, counted.at, prompt {_COUNTED}"
_VOTES = (
    "SELECT name, item, model, other, CASE said WHEN 'left' THEN model WHEN 'right' THEN other END,"
    f" counted.at, prompt {_COUNTED}"
)


@dataclass(frozen=True)
class Answer:
    """A row of answers: the level of a model on an axis, or the better side of two models."""

    annotator: int
    item: int
    model: str
    other: str | None
    axis: str | None
    said: str | None


COLUMNS = ", ".join(field.name for field in fields(Answer))


class Store:
    """Database of one arena; every method is one transaction and thread-safe.

    `locked` is the result of `lock`, closed with the database; None to read only.
    Raises: ArenaError for a file that `create_store` did not make.
    """

    def __init__(self, file: Path, locked: sqlite3.Connection | None = None) -> None:
        if file.is_dir():
            raise ArenaError(f"{file}: is a folder; name the database file")
        if not file.exists():
            raise ArenaError(f"{file}: no such database; directalign arena SOURCE --out creates it")
        self.file, self._locked = file, locked
        self._inode = _lock_inode(file) if locked else None
        self._lock = threading.RLock()
        try:
            try:
                self._connection = _connect(file.resolve().as_uri())
            except sqlite3.OperationalError:  # in a folder that cannot be written to, or on a CD
                if locked or file.with_name(f"{file.name}-wal").exists():
                    raise
                self._connection = _connect(f"{file.resolve().as_uri()}?immutable=1")
            facts = dict(self._rows("SELECT name, value FROM facts"))
            for table in ("models", "items", "annotators", "counted"):
                self._connection.execute(f"SELECT 1 FROM {table}").fetchone()
            (problem,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            remedy = "give another file, in a writable folder"
            raise ArenaError(f"{file}: cannot be used as a database ({error}); {remedy}") from None
        if facts.get("format") != FORMAT:
            found = facts.get("format", "unknown")
            raise ArenaError(f"{file}: its format is {found}, not {FORMAT}; give another file")
        valid = facts.get("mode") in get_args(Mode) and SECRET.fullmatch(facts.get("secret", ""))
        if problem != "ok" or not valid:
            raise ArenaError(f"{file}: is damaged; restore a copy, or give another file")
        self.mode: Mode = facts["mode"]
        self.title = facts.get("title", "")
        self.sources = [Path(each) for each in json.loads(facts.get("sources", "[]"))]
        self.secret = bytes.fromhex(facts["secret"])

    def models(self) -> dict[str, str]:
        """{key: label}, in the order of the source."""
        return dict(self._rows("SELECT key, label FROM models ORDER BY place"))

    def items(self) -> dict[int, tuple[str, int | None, str]]:
        """(prompt, seed, digest) by item."""
        rows = self._rows("SELECT item, prompt, seed, digest FROM items ORDER BY item")
        return {item: (prompt, seed, digest) for item, prompt, seed, digest in rows}

    def annotators(self) -> dict[int, str]:
        """Name by annotator, in the order in which they joined."""
        return dict(self._rows("SELECT annotator, name FROM annotators ORDER BY annotator"))

    def join(self, name: str, request: str) -> int | None:
        """Add an annotator, or return the one that the same request added; None if another
        annotator has the name, ignoring case."""
        folded = name.casefold()
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO annotators (name, folded, request, at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (folded) DO NOTHING",
                (name, folded, request, time.time()),
            )
            query = "SELECT annotator, request FROM annotators WHERE folded = ?"
            found = connection.execute(query, (folded,)).fetchone()
        return found["annotator"] if hmac.compare_digest(found["request"], request) else None

    def invited(self) -> list[int] | None:
        """Annotators who may take part; None if everybody may."""
        rows = self._rows("SELECT value FROM facts WHERE name = 'invited'")
        return json.loads(rows[0]["value"]) if rows else None

    def invite(self, annotators: Sequence[int] | None) -> None:
        """Let only these annotators take part, None for everybody; also after a restart."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM facts WHERE name = 'invited'")
            if annotators is not None:
                fact = ("invited", json.dumps(annotators))
                connection.execute("INSERT INTO facts VALUES (?, ?)", fact)

    def describe(self, sources: Sequence[Path], title: str) -> None:
        """Record where the images are, and the title of the results unless it is empty."""
        facts = {"sources": json.dumps([str(each.absolute()) for each in sources])}
        facts |= {"title": title} if title else {}
        with self._transaction() as connection:
            for name, value in facts.items():
                connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))
        self.sources, self.title = [*sources], title or self.title

    def append(self, answer: Answer, request: str) -> bool:
        """Store an answer durably; False if this request of the annotator is stored already.

        Raises: ArenaError if it is stored with another answer.
        """
        with self._transaction() as connection:
            inserted = connection.execute(
                "INSERT INTO answers (annotator, item, model, other, axis, said, request, at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (annotator, request) DO NOTHING",
                (*astuple(answer), request, time.time()),
            )
            if inserted.rowcount == 1:
                return True
            query = f"SELECT {COLUMNS} FROM answers WHERE annotator = ? AND request = ?"
            stored = connection.execute(query, (answer.annotator, request)).fetchone()
        if Answer(*stored) != answer:
            raise ArenaError("this request was used for another answer; reload the page")
        return False

    def counted(self) -> list[Answer]:
        """The latest answer to each question without those taken back, oldest first."""
        return [
            Answer(*row) for row in self._rows(f"SELECT {COLUMNS} FROM counted ORDER BY answer")
        ]

    def ratings(self) -> list[Rating]:
        """The answers that count in rate mode."""
        rows = self._rows(f"{_RATINGS} WHERE axis IS NOT NULL ORDER BY answer")
        return [Rating(*row) for row in rows]

    def votes(self) -> list[Vote]:
        """The answers that count in vote mode."""
        return [
            Vote(*row) for row in self._rows(f"{_VOTES} WHERE other IS NOT NULL ORDER BY answer")
        ]

    def history(self) -> list[sqlite3.Row]:
        """Every answer ever given, including superseded ones and those taken back."""
        return self._rows(
            "SELECT answer, name AS annotator, answers.request, item, model, other, axis, said,"
            " answers.at FROM answers JOIN annotators USING (annotator) ORDER BY answer"
        )

    def close(self) -> None:
        """Close the database, which is then a single file, and release its lock."""
        with self._lock:
            self._connection.close()
        if self._inode is not None:
            self._inode.release()
        if self._locked is not None:
            self._locked.close()

    def _rows(self, query: str) -> list[Any]:
        with self._lock:
            return self._connection.execute(query).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(
        uri, check_same_thread=False, isolation_level=None, timeout=5, uri=True
    )
    connection.row_factory = sqlite3.Row
    for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {setting}").fetchall()
    return connection


def lock(file: Path) -> sqlite3.Connection:
    """Lock the database `file`, which need not exist, until the result is closed or the process
    ends. Raises: ArenaError if another arena holds the lock."""
    lock_file = file.with_name(f"{file.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        locked = sqlite3.connect(
            lock_file, check_same_thread=False, isolation_level=None, timeout=0
        )
        locked.execute("PRAGMA journal_mode = OFF").fetchall()  # no second file
        locked.execute("BEGIN EXCLUSIVE")
    except OSError as error:
        reason = f"its folder cannot be created ({error.strerror}); name another --out"
        raise ArenaError(f"{file}: {reason}") from None
    except sqlite3.DatabaseError as error:
        reason = f"{lock_file.name} cannot be locked ({error}); give a file in a writable folder"
        if "locked" in str(error):
            reason = "another arena runs on it; use that one, or stop it first"
        raise ArenaError(f"{file}: {reason}") from None
    return locked


def _lock_inode(file: Path) -> FileLock:
    """Lock a database under any name, also one that it gets later; to be released after it.

    Raises: ArenaError if it is locked, or has several names: each would get a WAL of its own.
    """
    try:
        found = file.stat()
        locked = lock_of(f"arena {found.st_dev} {found.st_ino}")
        locked.acquire()
    except Timeout:
        raise ArenaError(f"{file}: another arena runs on it under another name") from None
    except OSError as error:
        raise ArenaError(f"{file}: cannot be locked ({error})") from None
    if found.st_nlink > 1:
        locked.release()
        raise ArenaError(f"{file}: has {found.st_nlink} names (hard links); remove all but one")
    return locked


def create_store(file: Path, mode: Mode, collection: Collection, secret: str) -> None:
    """Create a database readable by its owner only; `file` appears when it is complete."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    facts = {"format": FORMAT, "mode": mode, "title": collection.title, "secret": secret}
    labels = [(place, *model) for place, model in enumerate(collection.models.items())]
    items = collection.items.values()
    prompts = [(item.index, item.prompt, item.seed, item.digest()) for item in items]
    try:
        unfinished.unlink(missing_ok=True)
        unfinished.touch(mode=0o600)
        connection = sqlite3.connect(unfinished)
        with contextlib.closing(connection), connection:
            connection.executescript(SCHEMA.read_text(encoding="utf-8"))
            connection.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
            connection.executemany("INSERT INTO models VALUES (?, ?, ?)", labels)
            connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", prompts)
        unfinished.rename(file)
    except (OSError, sqlite3.DatabaseError) as error:
        unfinished.unlink(missing_ok=True)
        remedy = "free space on its disk, or name an --out in a writable folder"
        raise ArenaError(f"{file}: cannot be created ({error}); {remedy}") from None
