"""Upload an exported folder to a model repository on the Hugging Face Hub.

The token is that of `hf auth login` or HF_TOKEN; the library's other variables (HF_ENDPOINT) apply.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from ..io import hub
from ..types import DirectAlignError


def check_upload(repo: str) -> None:
    """Check name and token before the export. Raises: DirectAlignError."""
    if hub.HUB_ID.fullmatch(repo) is None:
        example = f"you/{repo.rsplit('/', 1)[-1] or 'name'}"
        raise DirectAlignError(f"--push-to-hub {repo}: give owner/name, such as {example}")
    if get_token() is None:
        raise DirectAlignError(
            f"--push-to-hub {repo}: no Hub token on this machine; {hub.SIGN_IN}, with write access"
        )


def push(folder: Path, repo: str, private: bool = False, api: HfApi | None = None) -> str:
    """Upload `folder` to the model repository `repo`, created if missing; returns its URL.

    `private`: create a private repository, and refuse an existing public one. `api`: for tests.

    Raises: DirectAlignError for missing rights, a repository of another type, or a network error.
    """
    api = api or HfApi()
    try:
        for kind in ("dataset", "space"):
            if api.repo_exists(repo, repo_type=kind):
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
            f"--push-to-hub {repo}: {_reason(error, api)}; the export is complete in {folder}: hf "
            f"upload {repo} {folder}"
        ) from error
    return str(url)


def _reason(error: Exception, api: HfApi) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    status = status if isinstance(error, HfHubHTTPError) else None
    if status == 401:
        return f"the Hub does not accept this token; {hub.SIGN_IN}, with write access"
    if status == 403:
        return "this token has no write access there; take your own repository or another token"
    if isinstance(error, ValueError):
        return " ".join(str(error).split())
    brief = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    what = f"answered {status}" if status else "cannot be reached"
    return f"{api.endpoint} {what} ({brief})"
