"""Download from and upload to the Hugging Face Hub; errors are one line.

Only files that match the given patterns are downloaded, into the library's cache.
`HF_HUB_OFFLINE`, `HF_TOKEN`, `HF_HOME` and `HF_ENDPOINT` apply.
"""

import errno
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_session, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import DirectAlignError, first_line

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILE = re.compile(rf"({HUB_ID.pattern})/([\w./+-]+\.(?:safetensors|pt|pth|bin))")
REFUSED = (401, 403)
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
SIGN_IN = "run `hf auth login` or set HF_TOKEN"
CODE = ("*.py", "*.pyc", "*.so")
"""Files that are never downloaded."""
ANSWER_WITHIN, ASK_AGAIN_AFTER = 4.0, 60.0
"""Seconds that a hub has for its first answer, and for which one without an answer is not asked."""
_silent: dict[str, float] = {}
"""When a hub last gave no answer, by its address."""
Answer = TypeVar("Answer")


def is_hub_id(path: str) -> bool:
    """Whether `path` is an owner/name; a local path of that name precedes it."""
    return HUB_ID.fullmatch(path) is not None and not Path(path).exists()


def is_hub_file(path: str) -> bool:
    """Whether `path` is an owner/name/file of weights; a local path of that name precedes it."""
    return (
        HUB_FILE.fullmatch(path) is not None
        and not Path(path).exists()
        and not Path(path).parent.exists()
    )


def on_the_hub(path: str) -> tuple[str, str]:
    """Repository and file of owner/name/file."""
    match = HUB_FILE.fullmatch(path)
    assert match is not None, path
    return match[1], match[2]


def download_file(path: str, key: str, beside: Sequence[str] = ()) -> Path:
    """The local copy of owner/name/file; files that match the patterns `beside` come with it.

    Raises as `download`, and if the repository lacks the file.
    """
    repo, name = on_the_hub(path)
    file = download(repo, [name, *beside], key) / name
    if not file.exists():
        raise DirectAlignError(
            f"{key}: {path}: {repo} has no file {name}; see {constants.ENDPOINT}/{repo}/tree/main"
        )
    return file


def download(repo: str, patterns: Sequence[str], key: str, revision: str | None = None) -> Path:
    """The snapshot folder of a model repository, with the files that match `patterns`.

    Patterns are those of fnmatch; `*` also matches "/"; files of `CODE` never match. Without a
    network, or under HF_HUB_OFFLINE, the cached snapshot is used. `key` is the setting that errors
    name. Raises DirectAlignError for a repository that is gated, private or missing, a missing
    revision, no network while the cache lacks the files, a full disk.
    """
    found = _files(repo, key, revision)
    wanted = {"allow_patterns": list(patterns), "ignore_patterns": list(CODE)}
    try:
        offline = isinstance(found, Exception)
        return Path(snapshot_download(repo, revision=revision, local_files_only=offline, **wanted))
    except (OSError, HTTPError) as error:
        cause = found if isinstance(found, HfHubHTTPError) else error
        raise DirectAlignError(f"{key}: {repo}: {_reason(cause, repo, revision)}") from error


def listing(repo: str, key: str, revision: str | None = None) -> list[str] | None:
    """Names of all files of a repository, or None if the hub is unreachable."""
    found = _files(repo, key, revision)
    return None if isinstance(found, Exception) else found


def _files(repo: str, key: str, revision: str | None) -> list[str] | Exception:
    """Names of all files of a repository, or why the hub gave no answer.

    Raises DirectAlignError for a repository that is private or missing, or a missing revision.
    """
    try:
        about = ask_once(lambda: HfApi().model_info(repo, revision=revision))
        return [file.rfilename for file in about.siblings or ()]
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise DirectAlignError(f"{key}: {repo}: {_reason(error, repo, revision)}") from error
    except (OSError, HTTPError) as error:
        return error


def is_reachable() -> bool:
    """Whether the hub answers at all; False under HF_HUB_OFFLINE."""
    try:
        ask_once(lambda: get_session().head(constants.ENDPOINT))
    except (OSError, HTTPError):
        return False
    return True


@contextmanager
def offline(library: Any, active: bool) -> Iterator[None]:
    """No request to the hub inside, if `active`; `library` is a module with HF_HUB_OFFLINE."""
    before = library.HF_HUB_OFFLINE
    library.HF_HUB_OFFLINE = active or before
    try:
        yield
    finally:
        library.HF_HUB_OFFLINE = before


def ask_once(question: Callable[[], Answer]) -> Answer:
    """What the hub answers within `ANSWER_WITHIN` seconds, the time to find its address included.

    Raises what `question` raises, and TimeoutError; that at once if the hub was just silent.
    """
    if time.monotonic() - _silent.get(constants.ENDPOINT, -ASK_AGAIN_AFTER) < ASK_AGAIN_AFTER:
        raise TimeoutError(f"{constants.ENDPOINT} does not answer")
    try:
        return answer_within(ANSWER_WITHIN, question)
    except TimeoutError:
        _silent[constants.ENDPOINT] = time.monotonic()
        raise TimeoutError(f"{constants.ENDPOINT} does not answer") from None


def answer_within(seconds: float, question: Callable[[], Answer]) -> Answer:
    """What `question` returns or raises; TimeoutError if it takes longer, and is not waited for."""
    answer: futures.Future[Answer] = futures.Future()

    def ask() -> None:
        try:
            answer.set_result(question())
        except Exception as error:
            answer.set_exception(error)

    Thread(target=ask, daemon=True).start()
    try:
        return answer.result(seconds)
    except futures.TimeoutError:  # no TimeoutError before Python 3.11
        raise TimeoutError(f"no answer within {seconds:g} s") from None


def _reason(error: Any, repo: str, revision: str | None) -> str:
    page, cache = f"{constants.ENDPOINT}/{repo}", constants.HF_HUB_CACHE
    if isinstance(error, GatedRepoError):
        return f"is gated: accept its licence at {page} in a browser, then {SIGN_IN}"
    if isinstance(error, RevisionNotFoundError):
        return (
            f"has no branch, tag or commit {revision}: see {page}/tree/main, or leave the revision "
            "out"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"no such folder here, and at {constants.ENDPOINT} no such repository, or a private "
            f"one: correct the name, or {SIGN_IN}"
        )
    if isinstance(error, HfHubHTTPError) and error.response.status_code in REFUSED:
        return (
            f"access refused ({error.response.status_code}): {SIGN_IN} with an account that may "
            "read it"
        )
    if getattr(error, "errno", None) == errno.ENOSPC:
        return f"the disk of {cache} is full: free some space, or set HF_HOME to a larger disk"
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return (
            f"the cache {cache} cannot be written ({error.strerror}): set HF_HOME to a folder that "
            "you may write to"
        )
    if constants.HF_HUB_OFFLINE:
        return (
            f"no such folder here, and incomplete in the cache {cache}, with HF_HUB_OFFLINE set: "
            "unset it for the first run"
        )
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"no such folder here, incomplete in the cache {cache}, and {constants.ENDPOINT} "
            "cannot be reached: check the network, or give a local folder"
        )
    return f"download failed ({first_line(error)}): run it again, it continues where it stopped"


def check_upload(repo: str) -> None:
    """Check name and token before the export. Raises: DirectAlignError."""
    if HUB_ID.fullmatch(repo) is None:
        example = f"you/{repo.rsplit('/', 1)[-1] or 'name'}"
        raise DirectAlignError(f"--push-to-hub {repo}: give owner/name, such as {example}")
    if get_token() is None:
        raise DirectAlignError(
            f"--push-to-hub {repo}: no Hub token on this machine; {SIGN_IN}, with write access"
        )


def push(folder: Path, repo: str, private: bool = False, api: HfApi | None = None) -> str:
    """Upload `folder` to the model repository `repo`, created if missing; returns its URL.

    `private`: create a private repository, and refuse an existing public one. `api`: for tests.

    Raises: DirectAlignError for missing rights, a repository of another type, or a network error.
    """
    api = api or HfApi()
    try:
        for kind in ("dataset", "space"):
            if ask_once(partial(api.repo_exists, repo, repo_type=kind)):
                raise DirectAlignError(
                    f"--push-to-hub {repo}: is already a {kind}, so a model of the same name is "
                    "probably a mistake; give another name"
                )
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise DirectAlignError(
                f"--private: {repo} exists already and is public; make it private on its settings "
                "page, or give another name"
            )
        api.upload_folder(folder_path=folder, repo_id=repo, commit_message=f"Upload {folder.name}")
    except DirectAlignError:
        raise
    except (HTTPError, OSError, ValueError) as error:  # ValueError: metadata that the Hub rejects
        raise DirectAlignError(
            f"--push-to-hub {repo}: {_upload_error(error, api)}; the export is complete in "
            f"{folder}: hf upload {repo} {folder}"
        ) from error
    return str(url)


def _upload_error(error: Exception, api: HfApi) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    status = status if isinstance(error, HfHubHTTPError) else None
    if status == 401:
        return f"the Hub does not accept this token; {SIGN_IN}, with write access"
    if status == 403:
        return "this token has no write access there; take your own repository or another token"
    if isinstance(error, ValueError):
        return " ".join(str(error).split())
    what = f"answered {status}" if status else "cannot be reached"
    return f"{api.endpoint} {what} ({first_line(error)})"
