"""Where a checkpoint comes from: a folder, the embedded world, or the hub, of which only what is
needed is fetched.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys

import pytest
import torch

from directalign.config import ModelConfig
from directalign.io import hub
from directalign.models import load_model
from directalign.models.checkpoint_source import open_source
from directalign.types import DirectAlignError
from hub_stand_in import READER, commit, hub_stand_in, point_at

NAME = "maker/tiny-flux"


@pytest.fixture
def online(tiny_flux, tmp_path, monkeypatch):
    """A hub with a tiny FLUX, beside which lie other formats, another variant and an all-in-one
    file.
    """
    with hub_stand_in() as served:
        extra = {
            "flux1-dev_dot_safetensors": b"all in one",
            "vae__diffusion_pytorch_model_dot_bin": b"pickled",
            "README_dot_md": b"words",
        }
        served.publish(
            NAME,
            tiny_flux,
            **extra,
            transformer__diffusion_pytorch_model_dot_fp16_dot_safetensors=b"half",
            sample_dot_png=b"",
        )
        point_at(served.url, tmp_path / "cache", monkeypatch)
        yield served


def model(path=NAME, **settings):
    return ModelConfig(architecture="flux", path=path, **settings)


def refusal(**settings):
    with pytest.raises(DirectAlignError) as caught:
        open_source(model(**settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def heavy(served):
    return {name for name in served.fetched if name.endswith((".safetensors", ".bin"))}


def test_a_folder_is_taken_where_it_lies(tiny_flux, monkeypatch):
    assert open_source(model(str(tiny_flux), variant="fp16")).folder == tiny_flux
    monkeypatch.setenv("HOME", str(tiny_flux.parent))
    assert open_source(model(f"~/{tiny_flux.name}")).folder == tiny_flux


def test_a_folder_named_like_a_repository_comes_first(tiny_flux, tmp_path, monkeypatch):
    shutil.copytree(tiny_flux, tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    assert not hub.is_hub_id(NAME)
    assert (open_source(model()).folder / "model_index.json").is_file()


@pytest.mark.parametrize(
    "path",
    ["/models/flux", "./models/flux", "flux", "a/b/c", "~/flux", "a/b\n", "world:flux", "../flux"],
)
def test_what_no_repository_can_be_called_is_a_folder(path):
    assert not hub.is_hub_id(path)


def test_a_repository_is_downloaded_without_what_is_not_needed(online, tiny_flux):
    source = open_source(model())
    parts = ("text_encoder", "text_encoder_2")
    assert heavy(online) == {f"{part}/model.safetensors" for part in parts} | {
        f"{part}/diffusion_pytorch_model.safetensors" for part in ("transformer", "vae")
    }
    assert not {"README.md", "sample.png"} & set(online.fetched)
    family, local = (
        load_model(each, "cpu").denoiser.state_dict() for each in (model(), model(str(tiny_flux)))
    )
    assert (
        source.name == NAME
        and family.keys() == local.keys()
        and all(torch.equal(family[name], local[name]) for name in local)
    )


def test_without_weights_only_small_files_come(online):
    source = open_source(model(), weights=False)
    assert (
        heavy(online) == set()
        and (source.folder / "transformer/config.json").is_file()
        and (source.folder / "tokenizer_2/tokenizer.json").is_file()
    )


def test_what_is_cached_needs_no_network(online, tmp_path, monkeypatch):
    folder = open_source(model()).folder
    online.fetched.clear()
    assert open_source(model()).folder == folder and online.fetched == []
    point_at("http://127.0.0.1:9", tmp_path / "cache", monkeypatch, offline=True)
    load_model(model(), "cpu")
    point_at("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    assert open_source(model()).folder == folder


def test_another_revision_is_another_folder(online, tiny_flux):
    online.publish(
        NAME, tiny_flux, revision="v2", directalign_dot_json=b'{"max_sequence_length": 7}'
    )
    assert (
        open_source(model(revision="v2")).folder.name
        == open_source(model(revision=commit("v2"))).folder.name
        == commit("v2")
    )
    assert open_source(model()).folder.name == commit("main")


def test_a_revision_that_is_not_there_is_named(online):
    assert refusal(revision="v9").startswith(
        f"model.path: {NAME}: has no branch, tag or commit v9: see {online.url}/{NAME}/tree/main"
    )


def test_a_revision_of_a_folder_is_refused(tiny_flux):
    assert "model.revision: v2 is for the hub" in refusal(path=str(tiny_flux), revision="v2")


def test_a_gated_repository_says_how_it_is_opened(online, monkeypatch):
    online.repos[NAME].gated = True
    message = refusal()
    assert (
        "is gated: accept its licence at" in message
        and f"{online.url}/{NAME}" in message
        and "`hf auth login` or set HF_TOKEN" in message
    )
    monkeypatch.setenv("HF_TOKEN", READER)
    assert (open_source(model()).folder / "model_index.json").is_file()


def test_a_private_repository_looks_like_none(online, monkeypatch):
    online.repos[NAME].private = True
    assert "no such repository, or a private one" in refusal()
    assert "no such folder here, and at" in refusal(path="maker/nothing")
    monkeypatch.setenv("HF_TOKEN", READER)
    assert (open_source(model()).folder / "model_index.json").is_file()


def test_no_network_and_nothing_cached(tmp_path, monkeypatch):
    point_at("http://127.0.0.1:9", tmp_path, monkeypatch)
    assert "http://127.0.0.1:9 cannot be reached" in refusal() and str(tmp_path) in refusal()
    point_at("http://127.0.0.1:9", tmp_path, monkeypatch, offline=True)
    assert "HF_HUB_OFFLINE set" in refusal()


def test_a_cache_with_configs_alone_says_what_it_lacks(online, tmp_path, monkeypatch):
    open_source(model(), weights=False)
    point_at(online.url, tmp_path / "cache", monkeypatch, offline=True)
    assert "lacks weights of " in refusal() and "weights of transformer" in refusal()
    assert open_source(model(), weights=False).folder.is_dir()


def test_a_variant_that_is_not_there_is_named_before_anything_heavy_comes(online):
    assert "no bf16 weights, there are" in refusal(variant="bf16")
    message = refusal(variant="fp16")
    assert (
        f"{NAME}/" in message
        and "no fp16 weights, there are plain ones: leave model.variant out" in message
    )
    assert heavy(online) == set()


def test_a_repository_of_single_files_is_refused(online, tmp_path):
    (tmp_path / "x").mkdir()
    online.publish("maker/files", tmp_path / "x", model_dot_safetensors=b"")
    assert "holds no model_index.json" in refusal(path="maker/files")


def test_components_bring_no_weights_that_the_file_has(online, tiny_flux):
    file = tiny_flux / "transformer/diffusion_pytorch_model.safetensors"
    source = open_source(model(str(file), components=NAME))
    assert (
        source.single_file == file
        and "transformer/diffusion_pytorch_model.safetensors" not in online.fetched
    )
    load_model(model(str(file), components=NAME), "cpu")
    assert "model.components: maker/nothing: no such folder here" in refusal(
        path=str(file), components="maker/nothing"
    )


def test_a_full_disk_is_named(monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub, "snapshot_download", full)
    assert "is full: free some space, or set HF_HOME" in refusal()


def test_the_environment_is_heeded(online, tmp_path):
    """In a process of its own, as huggingface_hub reads its variables when it is imported."""
    online.repos[NAME].gated = True
    code = f"from directalign.io.hub import download; print(download({NAME!r}, ['model_index.json'], 'model.path'))"  # noqa: E501
    variables = {
        "HF_ENDPOINT": online.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": READER,
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(tmp_path / "home")) and done.stdout.strip().endswith(
        commit("main")
    )
