"""Where a checkpoint comes from: a folder, or the hub, of which only what is needed is fetched."""

import errno
import shutil
import socket

import pytest
import torch

from directalign.config import ModelConfig
from directalign.data.hf_datasets import open_rows
from directalign.io import hub
from directalign.models import load_model
from directalign.models.checkpoint_source import open_source
from directalign.types import DirectAlignError
from hub_stand_in import READER, commit, hub_stand_in, point_at

NAME = "maker/tiny-flux"
NOWHERE = "http://127.0.0.1:9"
BESIDE = {
    "flux1-dev_dot_safetensors": b"all in one",
    "vae__diffusion_pytorch_model_dot_bin": b"pickled",
    "transformer__diffusion_pytorch_model_dot_fp16_dot_safetensors": b"half",
    "README_dot_md": b"words",
    "sample_dot_png": b"",
}
"""Other formats, another variant and an all-in-one file beside the parts."""


@pytest.fixture
def online(tiny_flux, tmp_path, monkeypatch):
    with hub_stand_in() as served:
        served.publish(NAME, tiny_flux, **BESIDE)
        point_at(served.url, tmp_path / "cache", monkeypatch)
        yield served


def model(path=NAME, **settings):
    return ModelConfig(architecture="flux", path=str(path), **settings)


def refusal(**settings):
    with pytest.raises(DirectAlignError) as caught:
        open_source(model(**settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def heavy(served):
    return {name for name in served.fetched if name.endswith((".safetensors", ".bin"))}


def test_a_folder_precedes_a_repository_of_its_name(tiny_flux, tmp_path, monkeypatch):
    assert open_source(model(tiny_flux, variant="fp16")).folder == tiny_flux
    assert "model.revision: v2 is for the hub" in refusal(path=tiny_flux, revision="v2")
    monkeypatch.setenv("HOME", str(tiny_flux.parent))
    assert open_source(model(f"~/{tiny_flux.name}")).folder == tiny_flux
    shutil.copytree(tiny_flux, tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    assert (open_source(model()).folder / "model_index.json").is_file()
    no_repository = ["/models/flux", "./models/flux", "flux", "a/b/c", "~/flux", "world:flux"]
    assert not any(hub.is_hub_id(path) for path in (NAME, "a/b\n", *no_repository))


def test_only_what_is_needed_is_downloaded_and_once(online, tiny_flux, tmp_path, monkeypatch):
    light = open_source(model(), weights=False).folder
    assert heavy(online) == set() and (light / "transformer/config.json").is_file()
    assert (light / "tokenizer_2/tokenizer.json").is_file()
    point_at(online.url, tmp_path / "cache", monkeypatch, offline=True)
    assert "lacks weights of " in refusal() and "weights of transformer" in refusal()
    assert open_source(model(), weights=False).folder == light
    point_at(online.url, tmp_path / "cache", monkeypatch)
    source = open_source(model())
    assert heavy(online) == {
        *("text_encoder/model.safetensors", "text_encoder_2/model.safetensors"),
        *(f"{part}/diffusion_pytorch_model.safetensors" for part in ("transformer", "vae")),
    }
    assert not {"README.md", "sample.png"} & set(online.fetched)
    online.fetched.clear()
    assert open_source(model()) == source and online.fetched == []
    for offline in (True, False):
        point_at(NOWHERE, tmp_path / "cache", monkeypatch, offline=offline)
        assert open_source(model()) == source
    loaded, local = (load_model(each, "cpu").denoiser for each in (model(), model(tiny_flux)))
    for name, tensor in local.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_revisions_and_variants(online, tiny_flux):
    online.publish(NAME, tiny_flux, revision="v2", README_dot_md=b"other words")
    for revision in ("v2", commit("v2")):
        assert open_source(model(revision=revision)).folder.name == commit("v2")
    assert open_source(model(), weights=False).folder.name == commit("main")
    missing = f"model.path: {NAME}: has no branch, tag or commit v9: see {online.url}/{NAME}/tree"
    assert refusal(revision="v9").startswith(missing)
    online.fetched.clear()
    assert "no bf16 weights, there are" in refusal(variant="bf16")
    assert heavy(online) == set()
    folder = open_source(model(variant="fp16")).folder
    found = {file.parent.name: "fp16" in file.name for file in folder.glob("*/*.safetensors")}
    assert len(found) == 4 and [part for part in found if found[part]] == ["transformer"]


def test_gated_private_and_missing_repositories(online, tmp_path, monkeypatch):
    repo = online.repos[NAME]
    repo.gated = True
    message = refusal()
    assert "is gated: accept its licence at" in message and f"{online.url}/{NAME}" in message
    assert "`hf auth login` or set HF_TOKEN" in message
    repo.gated, repo.private = False, True
    assert "no such repository, or a private one" in refusal()
    assert "no such folder here, and at" in refusal(path="maker/nothing")
    repo.gated = True
    monkeypatch.setenv("HF_TOKEN", READER)
    assert (open_source(model()).folder / "model_index.json").is_file()
    (tmp_path / "x").mkdir()
    online.publish("maker/files", tmp_path / "x", model_dot_safetensors=b"")
    assert "holds no model_index.json" in refusal(path="maker/files")


def test_no_network_and_a_full_disk(tmp_path, monkeypatch):
    point_at(NOWHERE, tmp_path, monkeypatch)
    assert f"{NOWHERE} cannot be reached" in refusal() and str(tmp_path) in refusal()
    point_at(NOWHERE, tmp_path, monkeypatch, offline=True)
    assert "HF_HUB_OFFLINE set" in refusal()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub, "snapshot_download", full)
    assert "is full: free some space, or set HF_HOME" in refusal()


def test_a_hub_that_never_answers_is_asked_once(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "ANSWER_WITHIN", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_at(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path, monkeypatch)
        assert "cannot be reached" in refusal()
        assert hub.listing(NAME, "model.path") is None and not hub.is_reachable()
        with pytest.raises(DirectAlignError, match="the hub cannot be reached"):
            open_rows(f"hf:{NAME}")
        with pytest.raises(DirectAlignError, match=f"{hub.constants.ENDPOINT} cannot be reached"):
            hub.push(tmp_path, NAME)
        silent.settimeout(0)
        silent.accept()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_components_bring_no_weights_that_the_file_has(online, tiny_flux):
    file = tiny_flux / "transformer/diffusion_pytorch_model.safetensors"
    source = open_source(model(file, components=NAME))
    assert source.single_file == file
    assert "transformer/diffusion_pytorch_model.safetensors" not in online.fetched
    load_model(model(file, components=NAME), "cpu")
    missing = refusal(path=file, components="maker/nothing")
    assert "model.components: maker/nothing: no such folder here" in missing
