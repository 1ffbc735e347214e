"""Download files of a repository on the Hugging Face Hub; errors are one line.

Only files that match the given patterns are downloaded, into the library's cache.
`HF_HUB_OFFLINE`, `HF_TOKEN`, `HF_HOME` and `HF_ENDPOINT` apply. Uploads: export/upload.py.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..types import DirectAlignError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_FILE = re.compile(rf"({HUB_ID.pattern})/([\w./-]+\.(?:safetensors|pt|pth|bin))")
REFUSED = (401, 403)
SIGN_IN = "run `hf auth login` or set HF_TOKEN"


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


def download_file(path: str, key: str) -> Path:
    """The local copy of owner/name/file. Raises as `download`, and if the repository lacks it."""
    match = HUB_FILE.fullmatch(path)
    assert match is not None, path
    file = download(match[1], [match[2]], key) / match[2]
    if not file.exists():
        raise DirectAlignError(
            f"{key}: {path}: {match[1]} has no file {match[2]}; see "
            f"{constants.ENDPOINT}/{match[1]}/tree/main"
        )
    return file


def download(repo: str, patterns: Sequence[str], key: str, revision: str | None = None) -> Path:
    """The snapshot folder of a model repository, with the files that match `patterns`.

    Patterns are those of fnmatch; `*` also matches "/". Without a network, or under HF_HUB_OFFLINE,
    the cached snapshot is used. `key` is the setting that errors name.
    Raises DirectAlignError for a repository that is gated, private or missing, a missing revision,
    no network while the cache lacks the files, a full disk.
    """
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))
    except (OSError, HTTPError) as error:
        raise DirectAlignError(f"{key}: {repo}: {_reason(error, repo, revision)}") from error


def listing(repo: str, key: str, revision: str | None = None) -> list[str] | None:
    """Names of all files of a repository, or None if the hub is unreachable."""
    try:
        return [
            file.rfilename for file in HfApi().model_info(repo, revision=revision).siblings or ()
        ]
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise DirectAlignError(f"{key}: {repo}: {_reason(error, repo, revision)}") from error
    except (OSError, HTTPError):
        return None


def _reason(error: Exception, repo: str, revision: str | None) -> str:
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
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"download failed ({first_line[:200]}): run it again, it continues where it stopped"
