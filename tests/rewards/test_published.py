"""Published weights: found here or on the hub, read without running anything, checked unread."""

import io
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from directalign import config
from directalign.io import hub
from directalign.rewards import check_reward, load_reward
from directalign.rewards.common import is_weight_file
from directalign.rewards.weights import check_published, locate, read_shapes, read_weights
from hub_stand_in import READER, hub_stand_in, point_at
from published_layouts import images_drawn
from rewards.cases import refused, scores_of

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}
SHAPES = {"weight": (2, 3), "bias": (2,)}
KEY = "held.path"


def test_local_files_come_first(tmp_path, monkeypatch):
    name = "owner/name/file.safetensors"
    (tmp_path / name).parent.mkdir(parents=True)
    save_file(TENSORS, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert not hub.is_hub_file(name) and locate(name, KEY) == Path(name)
    with refused(r"^held\.path: owner/name/other\.pt: no such file; give the published weights"):
        locate("owner/name/other.pt", KEY)
    with refused(r"^held\.path: .*nothing: no such folder"):
        locate(str(tmp_path / "nothing"), KEY)


WRAPPINGS: list[Callable[[Any], Any]] = [
    lambda tensors: tensors,
    lambda tensors: {"state_dict": tensors, "epoch": 3},
    lambda tensors: {"module": tensors},
    lambda tensors: {"model": {"state_dict": tensors}},
]


@pytest.mark.parametrize("wrapped", WRAPPINGS)
@pytest.mark.parametrize("zipped", [True, False])
def test_dictionaries_of_trainers_are_removed(tmp_path, wrapped, zipped):
    content = wrapped({f"module.{name}": tensor for name, tensor in TENSORS.items()})
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    found = read_weights(tmp_path / "w.pt", KEY)
    assert set(found) == set(TENSORS)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    assert read_shapes(tmp_path / "w.pt", KEY) == SHAPES


@pytest.mark.parametrize("size", [0, 3, 60, -30])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "old.pt"])
def test_a_truncated_file_is_named(tmp_path, name, size):
    file = tmp_path / name
    if name == "w.safetensors":
        save_file(TENSORS, file)
        assert read_shapes(file, KEY) == SHAPES
    else:
        torch.save(TENSORS, file, _use_new_zipfile_serialization=name == "w.pt")
    file.write_bytes(file.read_bytes()[:size])
    for read in (read_weights, read_shapes):
        with refused(rf"^held\.path: .*{name}: not a complete (safetensors file|file of weights)"):
            read(file, KEY)


class Harmful:
    """Creates a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("form", ["zip", "old", "pickle", "protocol 4"])
@pytest.mark.parametrize("suffix", [".pt", ".bin"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_harmful_file_is_never_run(tmp_path, form, suffix):
    file, traces = tmp_path / f"w{suffix}", tmp_path / "it_ran"
    content = {"state_dict": TENSORS, "more": Harmful(traces)}
    if form in ("zip", "old"):
        torch.save(content, file, _use_new_zipfile_serialization=form == "zip")
    else:
        file.write_bytes(pickle.dumps(content, protocol=2 if form == "pickle" else 4))
    for read in (read_weights, read_shapes):
        with refused(rf"^held\.path: .*w{suffix}: "):
            read(file, KEY)
    assert not traces.exists()
    pickle.loads(pickle.dumps(Harmful(traces)))
    assert traces.exists()  # the content is harmful where it is run


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"state_dict": {}}])
def test_a_file_without_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with refused(r"w\.pt: holds no tensors by name"):
        read_weights(tmp_path / "w.pt", KEY)


# --- on the hub -----------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A hub with maker/model, whose sub/file.pt holds tensors."""
    (tmp_path / "made").mkdir()
    written = io.BytesIO()
    torch.save(TENSORS, written)
    with hub_stand_in() as served:
        served.published = served.publish(
            "maker/model", tmp_path / "made", sub__file_dot_pt=written.getvalue(), other_dot_pt=b""
        )
        point_at(served.url, tmp_path / "cache", monkeypatch)
        yield served


FILE, ABSENT = "maker/model/sub/file.pt", "maker/model/absent.pt"
NO_FILE = r"^held\.path: maker/model/absent\.pt: maker/model has no file absent\.pt"


def test_one_file_of_a_repository_is_fetched(served, tmp_path, monkeypatch):
    check_published(FILE, KEY, online=True)
    check_published(ABSENT, KEY)
    with refused(NO_FILE):
        check_published(ABSENT, KEY, online=True)
    assert served.fetched == []
    file = locate(FILE, KEY)
    assert served.fetched == ["sub/file.pt"] and set(read_weights(file, KEY)) == set(TENSORS)
    with refused(NO_FILE):
        hub.download_file(ABSENT, KEY)
    with refused(r"^held\.path: maker/nothing: .* no such repository, or a private one"):
        hub.download_file("maker/nothing/file.pt", KEY)
    with refused(r"^held\.path: maker/nothing: no such folder here, and at .* no such repository"):
        load_reward(config.ClipConfig(path="maker/nothing"), key="held")
    point_at(served.url, tmp_path / "cache", monkeypatch, offline=True)
    assert locate(FILE, KEY) == file  # the copy in the cache


def test_a_gated_file_requires_a_login(served, monkeypatch):
    served.published.gated = True
    with refused(r"held\.path: maker/model: is gated: accept its licence"):
        locate(FILE, KEY)
    monkeypatch.setenv("HF_TOKEN", READER)
    assert locate(FILE, KEY).exists()


@pytest.mark.parametrize(
    "name", ["open_clip", "siglip", "image_reward", "improved", "hpsv3", "hpsv3++"]
)
def test_scores_from_the_hub_are_equal_and_checks_fetch_no_weights(
    name, sections, tmp_path, monkeypatch
):
    local, moved, images = sections(name), {}, images_drawn(2, 40, 36, 0)
    with hub_stand_in() as served:
        for part in ("path", "processor", "backbone"):
            path = Path(getattr(local, part, None) or "")
            if path == Path() or (part == "path" and name == "improved"):
                continue  # an aesthetic head is a local file here
            shutil.copytree(
                path if path.is_dir() else path.parent,
                tmp_path / part,
                ignore=None if path.is_dir() else only_files,
            )
            moved[part] = f"maker/{part}" + ("" if path.is_dir() else f"/{path.name}")
            extra = {"pytorch_model_dot_bin": b"pickled", "README_dot_md": b"text"}
            served.publish(f"maker/{part}", tmp_path / part, **extra)
        point_at(served.url, tmp_path / "cache", monkeypatch)
        settings = local.model_copy(update=moved)
        check_reward(settings)
        assert not served.fetched
        check_reward(settings, online=True)
        assert not any(map(is_weight_file, served.fetched))
        found = scores_of(load_reward(settings), images)
        assert torch.equal(found, scores_of(load_reward(local), images))
        assert not {"pytorch_model.bin", "README.md"} & set(served.fetched)


def only_files(folder: str, names: list[str]) -> list[str]:
    """The subfolders of a folder, which are not copied."""
    return [name for name in names if (Path(folder) / name).is_dir()]


def test_tokenizer_and_image_settings_of_another_folder(clip_folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(clip_folder / name)
    settings = config.ClipConfig(path=str(tmp_path), processor=str(clip_folder))
    whole, images = config.ClipConfig(path=str(clip_folder)), images_drawn(2, 40, 36, 0)
    found = scores_of(load_reward(settings), images)
    assert torch.equal(found, scores_of(load_reward(whole), images))
