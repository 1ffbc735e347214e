"""The database: an append-only table of answers in SQLite, from which the latest answer to each question is counted.

An answer is acknowledged after its transaction is on the disk (WAL with synchronous=FULL: it outlives a killed process and a power cut). A
request that comes twice is stored once (UNIQUE), a later answer supersedes an earlier one, one taken back is a row without a choice;
triggers refuse to delete or change a row. One arena has the file, which an empty file beside it says by a lock that ends with its process, and
one lock within the process the connection.
"""

from __future__ import annotations

import contextlib
import hmac
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from .agenda import Mode
from .records import ArenaError, Rating, Vote
from .sources import Item

FORMAT = "directalign arena 2"
TIE = "tie"
Side = Literal["left", "right", "tie"]
SIDES: tuple[Side, ...] = get_args(Side)

SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE models (place INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, label TEXT NOT NULL);
CREATE TABLE items (item INTEGER PRIMARY KEY, prompt TEXT NOT NULL, seed INTEGER, digest TEXT NOT NULL);
CREATE TABLE annotators (annotator INTEGER PRIMARY KEY, name TEXT NOT NULL, folded TEXT NOT NULL UNIQUE, request TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE answers (
    answer INTEGER PRIMARY KEY AUTOINCREMENT,
    annotator INTEGER NOT NULL REFERENCES annotators,
    request TEXT NOT NULL,
    item INTEGER NOT NULL REFERENCES items,
    model TEXT NOT NULL REFERENCES models (key),
    other TEXT REFERENCES models (key),
    axis TEXT,
    said TEXT,
    at REAL NOT NULL,
    UNIQUE (annotator, request),
    CHECK ((other IS NULL) <> (axis IS NULL))
);
CREATE TRIGGER answers_stay BEFORE DELETE ON answers BEGIN SELECT RAISE(ABORT, 'answers are never deleted'); END;
CREATE TRIGGER answers_stand BEFORE UPDATE ON answers BEGIN SELECT RAISE(ABORT, 'answers are never changed'); END;
CREATE VIEW counted AS SELECT * FROM answers
    WHERE said IS NOT NULL AND answer IN (SELECT max(answer) FROM answers GROUP BY annotator, item, model, other, axis);
"""
"""`model` was rated on `axis`, or stood on the left of `other`; `said` is the level, or left, right, tie; NULL takes back."""


class NameTaken(ArenaError):
    """Another annotator has that name."""


@dataclass(frozen=True)
class Answer:
    """One row of answers: a level (or None) of a model on an axis, or the better side of two models."""

    annotator: int
    item: int
    model: str
    other: str | None
    axis: str | None
    said: str | None


class Store:
    """One arena's database; every method is one transaction and safe among threads."""

    def __init__(self, file: Path) -> None:
        """Opens what `create_store` made. Raises: ArenaError for a file of anything else."""
        if file.exists() and not file.is_file():
            raise ArenaError(f"{file}: is a folder; name the file that holds, or shall hold, the answers")
        if not file.exists():
            raise ArenaError(f"{file}: no such database; directalign arena SOURCE --out {file} makes it")
        self.file = file
        self._lock = threading.RLock()
        self._connection = _connect(file)
        facts = self._facts()
        self.mode: Mode = "rate" if facts["mode"] == "rate" else "vote"
        self.title = facts["title"]
        self.secret = bytes.fromhex(facts["secret"])

    def models(self) -> dict[str, str]:
        """Key and label of each model, in the order of the source."""
        return {row["key"]: row["label"] for row in self._rows("SELECT * FROM models ORDER BY place")}

    def items(self) -> dict[int, tuple[str, int | None, str]]:
        """Prompt, seed and digest of each item."""
        return {row["item"]: (row["prompt"], row["seed"], row["digest"]) for row in self._rows("SELECT * FROM items ORDER BY item")}

    def annotators(self) -> dict[int, str]:
        """The name of each annotator, in the order in which they joined."""
        return {row["annotator"]: row["name"] for row in self._rows("SELECT * FROM annotators ORDER BY annotator")}

    def join(self, name: str, request: str) -> int:
        """A new annotator of that name, or the one that this very request has made. Raises: NameTaken, whatever the case of the letters."""
        with self._transaction() as connection:
            row = (name, name.casefold(), request, time.time())
            connection.execute("INSERT INTO annotators (name, folded, request, at) VALUES (?, ?, ?, ?) ON CONFLICT (folded) DO NOTHING", row)
            found = connection.execute("SELECT annotator, request FROM annotators WHERE folded = ?", (name.casefold(),)).fetchone()
            if not hmac.compare_digest(found["request"], request):
                raise NameTaken(f"the name {name} is in use: open your own link to go on, or choose another name")
            return int(found["annotator"])

    def append(self, answer: Answer, request: str) -> bool:
        """Store an answer; False where this request of the annotator is stored already. On return it is on the disk."""
        row = (answer.annotator, request, answer.item, answer.model, answer.other, answer.axis, answer.said, time.time())
        with self._transaction() as connection:
            made = connection.execute(
                "INSERT INTO answers (annotator, request, item, model, other, axis, said, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (annotator, request) DO NOTHING",
                row,
            )
            return made.rowcount == 1

    def counted(self) -> list[Answer]:
        """The latest answer to each question, those taken back left out, in the order of time."""
        rows = self._rows("SELECT annotator, item, model, other, axis, said FROM counted ORDER BY answer")
        return [Answer(**row) for row in rows]

    def ratings(self) -> list[Rating]:
        """What counts in rate mode."""
        rows = self._rows(f"{_NAMED} WHERE axis IS NOT NULL ORDER BY answer")
        return [Rating(row["name"], row["item"], row["model"], row["axis"], row["said"], row["at"]) for row in rows]

    def votes(self) -> list[Vote]:
        """What counts in vote mode."""
        rows = self._rows(f"{_NAMED} WHERE other IS NOT NULL ORDER BY answer")
        winner = [{"left": row["model"], "right": row["other"]}.get(row["said"]) for row in rows]
        return [Vote(row["name"], row["item"], row["model"], row["other"], won, row["at"]) for row, won in zip(rows, winner, strict=True)]

    def history(self) -> list[dict[str, Any]]:
        """Every answer ever given, also those superseded or taken back, as a table."""
        columns = "answer, name AS annotator, answers.request, item, model, other, axis, said, answers.at"
        return self._rows(f"SELECT {columns} FROM answers JOIN annotators USING (annotator) ORDER BY answer")

    def close(self) -> None:
        """Give the file back."""
        with self._lock:
            self._connection.close()

    def _facts(self) -> dict[str, str]:
        known = self._rows("SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'facts'")
        facts = {row["name"]: row["value"] for row in self._rows("SELECT * FROM facts")} if known else {}
        if facts.get("format") != FORMAT:
            raise ArenaError(f"{self.file}: is a database of {facts.get('format', 'something else')}, and {FORMAT} is needed; give another file")
        return facts

    def _rows(self, query: str) -> list[dict[str, Any]]:
        with self._lock:
            return [dict(row) for row in self._connection.execute(query)]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection


_NAMED = "SELECT name, item, model, other, axis, said, counted.at FROM counted JOIN annotators USING (annotator)"


def claim(file: Path) -> sqlite3.Connection:
    """The right to run an arena on the database `file`, there or not yet, until it is closed or this process ends, however that ends.

    Raises: ArenaError where another arena has it.
    """
    beside = file.with_name(f"{file.name}.lock")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        claimed = sqlite3.connect(beside, check_same_thread=False, isolation_level=None, timeout=0)
        claimed.execute("PRAGMA journal_mode = OFF").fetchall()  # it stays empty, and leaves no second file
        claimed.execute("BEGIN EXCLUSIVE")
    except OSError as error:
        raise ArenaError(f"{file}: its folder cannot be made ({error.strerror}); name another --out") from None
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise ArenaError(f"{file}: another arena runs on it; use that one, or end it first") from None
        raise ArenaError(f"{beside}: cannot be locked ({error}); name an --out in a folder that you may write to") from None
    return claimed


def create_store(file: Path, mode: Mode, title: str, models: Mapping[str, str], items: Mapping[int, Item], secret: str) -> Store:
    """A new database, readable by its owner alone; it appears under its name only when it is complete."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    unfinished.touch(mode=0o600)
    connection = sqlite3.connect(unfinished)
    with contextlib.closing(connection), connection:
        connection.executescript(SCHEMA)
        facts = {"format": FORMAT, "mode": mode, "title": title, "secret": secret}
        connection.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
        connection.executemany("INSERT INTO models VALUES (?, ?, ?)", [(place, key, label) for place, (key, label) in enumerate(models.items())])
        connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?)", [(each.index, each.prompt, each.seed, each.digest()) for each in items.values()])
    unfinished.rename(file)
    return Store(file)


def _connect(file: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(file, check_same_thread=False, isolation_level=None, timeout=5)
        connection.row_factory = sqlite3.Row
        for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {setting}").fetchall()
    except sqlite3.DatabaseError as error:
        raise ArenaError(f"{file}: cannot be used as a database ({error}); give another file, in a folder that you may write to") from None
    return connection
