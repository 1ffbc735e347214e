"""Uploads to a stand-in of the Hub: only the exported folder arrives; each refusal is one line."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from directalign.io.hub import check_upload, push
from directalign.types import DirectAlignError
from hub_stand_in import READER, WRITER, Repo, hub_stand_in

Api = Callable[[str], HfApi]


@pytest.fixture
def stand_in():
    with hub_stand_in() as running:
        yield running


@pytest.fixture
def api(stand_in, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return lambda token: HfApi(endpoint=stand_in.url, token=token)


@pytest.fixture
def exported(tmp_path):
    """An exported folder, beside a file that must not be uploaded."""
    folder = tmp_path / "run" / "export" / "kohya"
    (folder / "transformer").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Title\n")
    (folder / "weights.safetensors").write_bytes(b"weights" * 1000)
    (folder / "transformer" / "config.json").write_text("{}")
    (folder.parent / "secret.txt").write_text("secret")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_only_the_folder_is_uploaded(exported, stand_in, api):
    assert push(exported, "me/mine", private=True, api=api(WRITER)) == f"{stand_in.url}/me/mine"
    repo = stand_in.repos["me/mine"]
    assert repo.private and repo.files == files_of(exported)
    assert len(stand_in.objects) == 1 and stand_in.verified == stand_in.objects.keys()
    assert stand_in.commits == ["Upload kohya"] and stand_in.unknown == []


def test_an_existing_repository_keeps_its_files(exported, stand_in, api):
    stand_in.repos["me/mine"] = repo = Repo(revisions={"main": {"older.safetensors": b"x"}})
    with pytest.raises(DirectAlignError, match="--private: me/mine exists already and is public"):
        push(exported, "me/mine", private=True, api=api(WRITER))
    assert repo.files.keys() == {"older.safetensors"}
    push(exported, "me/mine", api=api(WRITER))
    assert repo.files.keys() == {"older.safetensors", *files_of(exported)} and not repo.private


REFUSED = [
    (READER, "me/mine", "this token has no write access there"),
    (WRITER, "you/yours", "this token has no write access there"),
    ("hf_stale", "me/mine", "the Hub does not accept this token"),
]


def test_each_refusal_is_one_line(exported, stand_in, api):
    for token, repo, reason in REFUSED:
        remedy = rf"the export is complete in .*: hf upload {repo} "
        with pytest.raises(DirectAlignError, match=f"--push-to-hub {repo}: {reason}.*; {remedy}"):
            push(exported, repo, api=api(token))
    assert stand_in.repos == {}
    stand_in.repos["me/data"] = Repo("dataset")
    with pytest.raises(DirectAlignError, match="me/data: is already a dataset"):
        push(exported, "me/data", api=api(WRITER))


def test_metadata_that_the_hub_rejects(exported, api):
    (exported / "README.md").write_text("---\ntags: []\n---\n")
    with pytest.raises(DirectAlignError, match="no metadata with a license"):
        push(exported, "me/mine", api=api(WRITER))


def test_no_network(exported):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(DirectAlignError, match=f"me/mine: {endpoint} cannot be reached"):
            push(exported, "me/mine", api=HfApi(endpoint=endpoint, token=WRITER))


def test_name_and_token_are_checked_before_the_export(monkeypatch):
    monkeypatch.setattr("directalign.io.hub.get_token", lambda: None)
    with pytest.raises(DirectAlignError, match="mine: give owner/name, such as you/mine"):
        check_upload("mine")
    with pytest.raises(DirectAlignError, match="no Hub token on this machine; run `hf auth login`"):
        check_upload("me/mine")
