"""Python that lies in a folder of weights is neither run nor downloaded, and nobody is asked."""

import builtins
import json
import shutil

import pytest
import transformers

from directalign.config import ClipConfig, ModelConfig
from directalign.io import hub
from directalign.io.pretrained import contents, from_pretrained
from directalign.models import load_model
from directalign.rewards import check_reward
from directalign.types import DirectAlignError
from hub_stand_in import hub_stand_in, point_at

EVIL = """
open({marker!r}, "w")
from transformers import *
class Evil(CLIPTokenizer): pass
"""
AUTO = ("AutoTokenizer", "AutoConfig", "AutoModel", "AutoProcessor", "AutoImageProcessor")


@pytest.fixture
def marker(tmp_path, monkeypatch):
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    return tmp_path / "it ran"


def poison(folder, marker):
    """Every config of the folder names a class in a file beside it."""
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker)))
    custom = {"auto_map": dict.fromkeys(AUTO, "evil.Evil") | {"AutoTokenizer": ["evil.Evil"] * 2}}
    names = {"config.json": {"model_type": "evil"}, "tokenizer_config.json": {}}
    names |= {"preprocessor_config.json": {}, "processor_config.json": {}}
    for name, more in names.items():
        file = folder / name
        found = json.loads(file.read_text()) if file.is_file() else {}
        found |= {"tokenizer_class": "Evil", "image_processor_type": "Evil"}
        found |= {"processor_class": "Evil", **custom, **more}
        file.write_text(json.dumps(found))
    return folder


@pytest.mark.parametrize("kind", AUTO)
def test_no_class_of_a_folder_is_run(clip_folder, tmp_path, marker, kind):
    folder = poison(shutil.copytree(clip_folder, tmp_path / "clip"), marker)
    with pytest.raises(DirectAlignError, match="never run"):
        from_pretrained(getattr(transformers, kind), folder)
    assert not marker.exists()


def test_kernels_of_a_repository_are_refused(clip_folder, tmp_path):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"attn_implementation": "a/kernel"}))
    with pytest.raises(DirectAlignError, match="never run"):
        from_pretrained(transformers.CLIPModel, folder)


def test_a_reward_whose_tokenizer_brings_code(clip_folder, tmp_path, marker):
    processor = poison(shutil.copytree(clip_folder, tmp_path / "processor"), marker)
    settings = ClipConfig(name="clip", path=str(clip_folder), processor=str(processor))
    with pytest.raises(DirectAlignError, match="never run"):
        check_reward(settings)
    assert not marker.exists()


@pytest.mark.parametrize(
    "entry",
    [
        ["transformers", "AutoModel"],
        ["diffusers", "DiffusionPipeline"],
        ["diffusers", "utils"],
        ["evil", "Evil"],
        "evil.Evil",
    ],
    ids=str,
)
def test_a_part_is_a_class_of_the_libraries(tiny_flux, tmp_path, marker, entry):
    part = "tokenizer"
    folder = shutil.copytree(tiny_flux, tmp_path / "flux")
    poison(folder / part, marker)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {part: entry}))
    with pytest.raises(DirectAlignError, match=rf"model_index\.json: {part} is "):
        load_model(ModelConfig(architecture="flux", path=str(folder)), "cpu")
    assert not marker.exists()


def test_python_is_not_downloaded(clip_folder, tmp_path, monkeypatch):
    with hub_stand_in() as served:
        served.publish("maker/clip", clip_folder, tokenizer_evil_dot_py=b"1")
        point_at(served.url, tmp_path / "cache", monkeypatch)
        hub.download("maker/clip", ["tokenizer*", "*"], "reward.path")
        assert served.fetched and not any(name.endswith(".py") for name in served.fetched)


def test_a_folder_in_the_place_of_another_is_described(tiny_flux, clip_folder, tmp_path):
    assert "diffusers pipeline" in contents(tiny_flux)
    assert "FluxTransformer2DModel, one part" in contents(tiny_flux / "transformer")
    assert contents(clip_folder).endswith("of type clip") and contents(tmp_path) == "nothing"
    for name, words in {
        "a.png": "images",
        "adapter_config.json": "LoRA",
        "run.yaml": "run of",
    }.items():
        (tmp_path / name).touch()
        assert words in contents(tmp_path)


def test_a_cache_that_cannot_be_written(clip_folder, tmp_path, monkeypatch):
    with hub_stand_in() as served:
        served.publish("maker/clip", clip_folder)
        (tmp_path / "file").touch()
        point_at(served.url, tmp_path / "file" / "cache", monkeypatch)
        with pytest.raises(DirectAlignError, match=r"cannot be written .*: set HF_HOME"):
            hub.download("maker/clip", ["*"], "reward.path")
