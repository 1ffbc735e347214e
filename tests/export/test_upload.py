"""Uploads to a stand-in of the Hub: only the exported folder arrives, whole, and each refusal is one line."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from directalign.export.upload import check_ready, push
from directalign.types import DirectAlignError
from hub_stand_in import READER, WRITER, HubStandIn, Repo, hub_stand_in

Api = Callable[[str], HfApi]


@pytest.fixture
def stand_in() -> Iterator[HubStandIn]:
    with hub_stand_in() as running:
        yield running


@pytest.fixture
def api(stand_in: HubStandIn, monkeypatch: pytest.MonkeyPatch) -> Api:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return lambda token: HfApi(endpoint=stand_in.url, token=token)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A folder as an export leaves it, beside things that are nobody's business."""
    folder = tmp_path / "run" / "export" / "kohya"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Title\n")
    (folder / "weights.safetensors").write_bytes(b"weights" * 1000)
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text("{}")
    (folder.parent / "secret.txt").write_text("secret")
    return folder


def test_the_folder_arrives_and_nothing_else(
    exported: Path, stand_in: HubStandIn, api: Api
) -> None:
    assert push(exported, "me/mine", private=True, api=api(WRITER)) == f"{stand_in.url}/me/mine"
    repo = stand_in.repos["model", "me/mine"]
    assert repo.private and repo.files == {
        str(file.relative_to(exported)): file.read_bytes()
        for file in exported.rglob("*")
        if file.is_file()
    }
    assert len(stand_in.objects) == 1 and stand_in.verified == stand_in.objects.keys()
    assert stand_in.commits == ["Upload kohya"] and stand_in.unknown == []


def test_a_repository_that_is_there_is_added_to(
    exported: Path, stand_in: HubStandIn, api: Api
) -> None:
    stand_in.repos["model", "me/mine"] = Repo(files={"older.safetensors": b"x"})
    push(exported, "me/mine", api=api(WRITER))
    assert stand_in.repos["model", "me/mine"].files.keys() == {
        "older.safetensors",
        "README.md",
        "weights.safetensors",
        "transformer/config.json",
    }
    assert not stand_in.repos["model", "me/mine"].private


def test_what_should_be_private_never_lands_in_the_open(
    exported: Path, stand_in: HubStandIn, api: Api
) -> None:
    stand_in.repos["model", "me/mine"] = Repo(private=False)
    with pytest.raises(
        DirectAlignError, match="--private: me/mine is there already and everyone can see it"
    ):
        push(exported, "me/mine", private=True, api=api(WRITER))
    assert stand_in.repos["model", "me/mine"].files == {}


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_a_repository_of_another_type(
    kind: str, exported: Path, stand_in: HubStandIn, api: Api
) -> None:
    stand_in.repos[kind, "me/mine"] = Repo()
    with pytest.raises(DirectAlignError, match=f"me/mine: is a {kind} already"):
        push(exported, "me/mine", api=api(WRITER))


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        (READER, "me/mine", "this token may not write there"),
        (WRITER, "you/yours", "this token may not write there"),
        ("hf_stale", "me/mine", "the Hub does not accept this token"),
    ],
)
def test_no_right_to_write(
    token: str, repo: str, message: str, exported: Path, stand_in: HubStandIn, api: Api
) -> None:
    with pytest.raises(
        DirectAlignError,
        match=rf"--push-to-hub {repo}: {message}.*; the export is whole in .*: hf upload {repo} ",
    ):
        push(exported, repo, api=api(token))
    assert stand_in.repos == {}


def test_metadata_that_the_hub_refuses(exported: Path, api: Api) -> None:
    (exported / "README.md").write_text("---\ntags: []\n---\n")
    with pytest.raises(DirectAlignError, match="no metadata with a license"):
        push(exported, "me/mine", api=api(WRITER))


def test_no_network(exported: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(
            DirectAlignError, match=rf"--push-to-hub me/mine: {endpoint} cannot be reached"
        ):
            push(exported, "me/mine", api=HfApi(endpoint=endpoint, token=WRITER))


def test_what_cannot_work_is_said_before_the_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("directalign.export.upload.get_token", lambda: None)
    with pytest.raises(
        DirectAlignError, match="--push-to-hub mine: give owner/name, such as you/mine"
    ):
        check_ready("mine")
    with pytest.raises(
        DirectAlignError,
        match="no token of the Hub on this machine: run `hf auth login` or set HF_TOKEN",
    ):
        check_ready("me/mine")
