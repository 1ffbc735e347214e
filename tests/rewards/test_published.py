"""Files of weights as their makers publish them: found, read without running anything, put in place
by name."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from directalign.io import hub
from directalign.rewards.weights import (
    check_published,
    is_weight_file,
    locate,
    on_the_hub,
    read_shapes,
    read_weights,
)
from directalign.types import DirectAlignError
from hub_stand_in import READER, hub_stand_in, point_at

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


def test_a_file_is_told_from_a_folder_and_a_repository() -> None:
    assert all(map(is_weight_file, ("a.pt", "/x/b.safetensors", "owner/name/c.bin", "d.pth")))
    assert not any(map(is_weight_file, ("owner/name", "/x/folder", "world:reward", "v1.5")))
    assert hub.is_hub_file("xswu/HPSv2/HPS_v2.1_compressed.pt") and hub.is_hub_file(
        "owner/name/sub/file.safetensors"
    )
    assert not any(
        map(
            hub.is_hub_file,
            ("owner/name", "owner/name.pt", "/abs/name/file.pt", "./owner/name/file.txt"),
        )
    )
    assert on_the_hub("owner/name/sub/file.pt") == ("owner/name", "sub/file.pt")


def test_what_is_here_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    save_file(TENSORS, tmp_path / "owner" / "name" / "file.safetensors")
    monkeypatch.chdir(tmp_path)
    assert not hub.is_hub_file("owner/name/file.safetensors")
    assert locate("owner/name/file.safetensors", "reward.path", ()) == Path(
        "owner/name/file.safetensors"
    )
    with pytest.raises(
        DirectAlignError,
        match=r"^reward\.path: owner/name/other\.pt: no such file; give the published weights",
    ):
        locate("owner/name/other.pt", "reward.path", ())
    with pytest.raises(DirectAlignError, match=r"^held: .*nothing: no such folder"):
        locate(str(tmp_path / "nothing"), "held", ())


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda t: t,
        lambda t: {"state_dict": t, "epoch": 3},
        lambda t: {"module": t},
        lambda t: {"model": {"state_dict": t}},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappings_are_taken_off(tmp_path: Path, wrapped, zipped: bool) -> None:
    torch.save(
        wrapped({f"module.{name}": tensor for name, tensor in TENSORS.items()}),
        tmp_path / "w.pt",
        _use_new_zipfile_serialization=zipped,
    )
    found = read_weights(tmp_path / "w.pt", "reward.path")
    assert set(found) == set(TENSORS) and all(
        torch.equal(found[name], tensor) for name, tensor in TENSORS.items()
    )
    assert read_shapes(tmp_path / "w.pt", "reward.path") == {"weight": (2, 3), "bias": (2,)}


def test_shapes_of_safetensors_come_from_the_header(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "w.safetensors")
    assert read_shapes(tmp_path / "w.safetensors", "reward.path") == {
        "weight": (2, 3),
        "bias": (2,),
    }


@pytest.mark.parametrize("read", [read_weights, read_shapes])
@pytest.mark.parametrize("kept", [0, 3, 60, -30])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "old.pt"])
def test_a_cut_file_is_one_line_that_names_it(tmp_path: Path, name: str, kept: int, read) -> None:
    file = tmp_path / name
    save_file(TENSORS, file) if name.endswith("tensors") else torch.save(
        TENSORS, file, _use_new_zipfile_serialization=name == "w.pt"
    )
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(
        DirectAlignError, match=rf"^held\.path: .*{name}: not a complete file of weights"
    ) as refused:
        read(file, "held.path")
    assert "\n" not in str(refused.value)


class Harmful:
    """Would make a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("form", ["zip", "old", "pickle", "protocol 4"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_harmful_file_is_never_run(tmp_path: Path, form: str, suffix: str) -> None:
    file, traces = tmp_path / f"w{suffix}", tmp_path / "it_ran"
    content = {"state_dict": TENSORS, "more": Harmful(traces)}
    if form in ("zip", "old"):
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    else:
        file.write_bytes(pickle.dumps(content, protocol=2 if form == "pickle" else 4))
    for read in (read_weights, read_shapes):
        with pytest.raises(DirectAlignError, match=rf"^reward\.path: .*w{suffix}: "):
            read(file, "reward.path")
    assert not traces.exists()
    pickle.loads(pickle.dumps(Harmful(traces)))
    assert traces.exists()  # it would have


def test_whole_objects_and_programs_are_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "object.pth")
    with pytest.raises(
        DirectAlignError,
        match=r"object\.pth: holds pickled objects, which are never run; save its state_dict\(\) as \.safetensors",  # noqa: E501
    ):
        read_weights(tmp_path / "object.pth", "reward.path")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "program.pt")
    with pytest.raises(
        DirectAlignError, match=r"program\.pt: holds a program \(TorchScript\), which is never run"
    ):
        read_weights(tmp_path / "program.pt", "reward.path")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"state_dict": {}}])
def test_a_file_without_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(DirectAlignError, match=r"w\.pt: holds no tensors by name"):
        read_weights(tmp_path / "w.pt", "reward.path")


# --- on the hub
# ---


def saved() -> bytes:
    written = io.BytesIO()
    torch.save(TENSORS, written)
    return written.getvalue()


def test_one_file_of_a_repository_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made").mkdir()
    with hub_stand_in() as served:
        served.publish(
            "maker/model",
            tmp_path / "made",
            sub__file_dot_pt=saved(),
            other_dot_pt=b"large",
            README_dot_md=b"words",
        )
        point_at(served.url, tmp_path / "cache", monkeypatch)
        file = locate("maker/model/sub/file.pt", "reward.path", ())
        assert served.fetched == ["sub/file.pt"] and file.name == "file.pt"
        assert set(read_weights(file, "reward.path")) == set(TENSORS)
        with pytest.raises(
            DirectAlignError,
            match=r"^held\.path: maker/model/absent\.pt: maker/model has no file absent\.pt",
        ):
            hub.download_file("maker/model/absent.pt", "held.path")
        with pytest.raises(
            DirectAlignError,
            match=r"^held\.path: maker/nothing: .* no such repository, or a private one",
        ):
            hub.download_file("maker/nothing/file.pt", "held.path")
    point_at(served.url, tmp_path / "cache", monkeypatch, offline=True)
    assert locate("maker/model/sub/file.pt", "reward.path", ()) == file  # the copy in the cache


def test_a_gated_file_asks_to_sign_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made").mkdir()
    with hub_stand_in() as served:
        served.publish("maker/model", tmp_path / "made", file_dot_pt=saved()).gated = True
        point_at(served.url, tmp_path / "cache", monkeypatch)
        with pytest.raises(
            DirectAlignError, match=r"reward\.path: maker/model: is gated: accept its licence"
        ):
            locate("maker/model/file.pt", "reward.path", ())
        monkeypatch.setenv("HF_TOKEN", READER)
        assert locate("maker/model/file.pt", "reward.path", ()).exists()


def test_checking_looks_and_fetches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made").mkdir()
    with hub_stand_in() as served:
        served.publish("maker/model", tmp_path / "made", file_dot_pt=saved())
        point_at(served.url, tmp_path / "cache", monkeypatch)
        for online in (False, True):
            check_published("maker/model/file.pt", "reward.path", online)
        check_published("maker/model/absent.pt", "reward.path")
        with pytest.raises(
            DirectAlignError,
            match=r"reward\.path: maker/model/absent\.pt: maker/model has no file absent\.pt",
        ):
            check_published("maker/model/absent.pt", "reward.path", online=True)
        assert served.fetched == []
    with pytest.raises(DirectAlignError, match=r"no such file"):
        check_published(str(tmp_path / "absent.pt"), "reward.path")
