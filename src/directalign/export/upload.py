"""An exported folder on the Hugging Face Hub: nothing but that folder, in a model repository, every failure in one line.

The token is the one that `hf auth login` keeps or HF_TOKEN gives; HF_ENDPOINT and the library's other variables work as everywhere.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from ..io import hub
from ..types import DirectAlignError

NO_TOKEN, NO_PERMISSION = 401, 403


def check_ready(repo: str) -> None:
    """A name or a token that cannot work is an error, before anything is exported."""
    if hub.HUB_ID.fullmatch(repo) is None:
        raise DirectAlignError(
            f"--push-to-hub {repo}: give owner/name, such as you/{repo.rsplit('/', 1)[-1] or 'name'}"
        )
    if get_token() is None:
        raise DirectAlignError(
            f"--push-to-hub {repo}: no token of the Hub on this machine: {hub.SIGN_IN}, with one that may write"
        )


def push(folder: Path, repo: str, private: bool = False, api: HfApi | None = None) -> str:
    """Upload `folder` to the model repository `repo` (made if it is not there yet) and return its address.

    Args:
        private: who may see a new repository; one that is there already must be as private as asked.
        api: the Hub to talk to; the usual one if not given.
    Raises:
        DirectAlignError: no such right, a repository of another type under that name, a public one where a private one was asked for, no network.
    """
    api = api or HfApi()
    try:
        _refuse_other_types(api, repo)
        address = api.create_repo(repo, private=private or None, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise DirectAlignError(
                f"--private: {repo} is there already and everyone can see it: make it private on its settings page, or give another name"
            )
        api.upload_folder(folder_path=folder, repo_id=repo, commit_message=f"Upload {folder.name}")
    except DirectAlignError:
        raise
    except (HTTPError, OSError, ValueError) as error:  # ValueError: metadata that the Hub refuses
        raise DirectAlignError(
            f"--push-to-hub {repo}: {_reason(error, api)}; the export is whole in {folder}: hf upload {repo} {folder}"
        ) from error
    return str(address)


def _refuse_other_types(api: HfApi, repo: str) -> None:
    for kind in ("dataset", "space"):
        if api.repo_exists(repo, repo_type=kind):
            raise DirectAlignError(
                f"--push-to-hub {repo}: is a {kind} already, and a model of the same name is most likely a mistake: give another name"
            )


def _reason(error: Exception, api: HfApi) -> str:
    status = (
        getattr(error.response, "status_code", None) if isinstance(error, HfHubHTTPError) else None
    )
    if status == NO_TOKEN:
        return f"the Hub does not accept this token: {hub.SIGN_IN}, with one that may write"
    if status == NO_PERMISSION:
        return "this token may not write there: give a repository of your own, or a token with the right to write"
    brief = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if isinstance(error, ValueError):
        return " ".join(str(error).split())
    return (
        f"{api.endpoint} answered {status} ({brief})"
        if status
        else f"{api.endpoint} cannot be reached ({brief})"
    )
