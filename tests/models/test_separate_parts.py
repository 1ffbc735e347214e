"""HiDream-I1's Llama in a folder or repository of its own, as `model.args` names it."""

import json
import shutil

import pytest
import torch
import yaml

import directalign
from directalign.config import ModelConfig
from directalign.evaluation.generate import sample_images
from directalign.models import load_model
from directalign.models.hidream import HiDream
from directalign.preflight.checks import check_checkpoint
from directalign.preflight.files import _of_model
from directalign.preflight.meta_models import meta_model, model_folder
from directalign.types import DirectAlignError
from hub_stand_in import hub_stand_in, point_at
from models.cases import CASES
from models.srpo_by_hand import PROMPTS
from models.test_chain import recipe_of
from tiny import SIZE, write_hidream

PARTS = ("tokenizer_4", "text_encoder_4")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_hidream(tmp_path_factory.mktemp("hidream"))


@pytest.fixture(scope="module")
def split(whole, tmp_path_factory):
    """The release's layout, and a Llama's."""
    folder, llama = (tmp_path_factory.mktemp("split") / name for name in ("hidream", "llama"))
    shutil.copytree(whole, folder)
    for part in PARTS:
        shutil.copytree(folder / part, llama, dirs_exist_ok=True)
        shutil.rmtree(folder / part)
    index = json.loads((folder / "model_index.json").read_text())
    kept = {name: value for name, value in index.items() if name not in PARTS}
    (folder / "model_index.json").write_text(json.dumps(kept))
    return folder, llama


def settings(folder, **args):
    return ModelConfig(architecture="hidream", path=str(folder), args=args)


def test_prompts_are_those_of_a_folder_with_its_llama(whole, split):
    folder, llama = split
    found = load_model(settings(folder, llama=str(llama)), "cpu").encode_prompt(PROMPTS)
    wanted = load_model(settings(whole), "cpu").encode_prompt(PROMPTS)
    assert all(torch.equal(found.tensors[key], wanted.tensors[key]) for key in wanted.tensors)
    check_checkpoint(settings(folder), model_folder(settings(folder, llama=str(llama))))


@pytest.mark.parametrize("act", [lambda model: load_model(model, "cpu"), model_folder])
def test_a_llama_that_is_missing_or_none_is_one_line(split, act):
    folder, _ = split
    lacking = rf"model\.args: llama is missing; {folder} comes without tokenizer_4 and text_encod"
    with pytest.raises(DirectAlignError, match=lacking):
        act(settings(folder))
    with pytest.raises(DirectAlignError, match=r"model\.args\.llama: .*holds no config\.json"):
        act(settings(folder, llama=str(folder)))
    refuse_wrong_llamas(act, folder)


def refuse_wrong_llamas(act, path):
    for args, message in (
        ({"lama": "a/b"}, r"model\.args: lama: hidream takes llama only"),
        ({"llama": "/nope"}, r"model\.args\.llama: /nope: no such folder"),
        ({"llama": 3}, r"model\.args\.llama: 3: is no text"),
        ({"llama": None}, r"model\.args\.llama: null: is no text"),
    ):
        with pytest.raises(DirectAlignError, match=message):
            act(settings(path, **args))


def test_a_release_that_is_not_downloaded_needs_its_llama_too():
    path = HiDream.components
    with pytest.raises(DirectAlignError, match=rf"args: llama is missing; {path} comes without"):
        model_folder(settings(path))
    refuse_wrong_llamas(model_folder, path)


def test_another_text_encoder_is_refused(split):
    folder, _ = split
    with pytest.raises(DirectAlignError, match=r"config\.json: text_encoder_4 is a CLIPTextModel"):
        load_model(settings(folder, llama=str(folder / "text_encoder")), "cpu")


def test_both_repositories_are_downloaded_and_only_what_is_read(split, tmp_path, monkeypatch):
    folder, llama = split
    run = settings("maker/hidream", llama="maker/llama")
    with hub_stand_in() as served:
        served.publish("maker/hidream", folder)
        served.publish("maker/llama", llama, original__consolidated_dot_safetensors=b"1")
        point_at(served.url, tmp_path / "cache", monkeypatch)
        before = model_folder(run)
        assert before.state == "not downloaded yet"
        with pytest.raises(DirectAlignError, match=r"maker/hidream comes without tokenizer_4"):
            load_model(settings("maker/hidream"), "cpu")
        assert not any(name.endswith("safetensors") for name in served.fetched)
        load_model(run, "cpu")
        assert any(name.endswith("model.safetensors") for name in served.fetched)
        assert not any("original" in name for name in served.fetched)
    assert model_folder(run).missing == ()


def test_memory_is_estimated_with_a_llama_that_is_not_downloaded(split):
    folder, llama = split
    there, absent = (settings(folder, llama=each) for each in (str(llama), "maker/unknown-llama"))
    assert meta_model(there).count("text_encoder_4") < 1e6
    found = meta_model(absent)
    assert found.count("text_encoder_4") == 8_030_261_248
    assert found.folder.state == "weights of text_encoder_4 not downloaded yet"
    check_checkpoint(absent, found.folder)


@pytest.mark.parametrize("name", ["Dev", "Fast"])
def test_distilled_releases_are_refused_before_they_are_downloaded(name):
    path = f"HiDream-ai/HiDream-I1-{name}"
    with pytest.raises(DirectAlignError, match=f"model.path: {path}: is sampled with new noise"):
        model_folder(settings(path, llama="maker/llama"))


def test_what_is_to_be_downloaded_is_listed_by_repository(split):
    folder, llama = split
    release, of_llama = HiDream.components, "maker/unknown-llama"
    for path, named in ((release, of_llama), (release, str(llama)), (str(folder), of_llama)):
        model = meta_model(settings(path, llama=named))
        found = list(_of_model(settings(path, llama=named), model.folder, model))
        assert [(each.key, each.path) for each in found] == [
            ("model", path),
            ("model.args.llama", named),
        ]
        own = sum(2 * model.count(name) for name in model.parts if name != "text_encoder_4")
        assert [each.missing for each in found] == [
            own * (path == release),
            2 * 8_030_261_248 * (named == of_llama),
        ]
        assert [each.is_here for each in found] == [path != release, named != of_llama]


def test_the_recorded_call_names_it(split, tmp_path):
    folder, llama = split
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    recipe = recipe_of(CASES["hidream"], folder)
    recipe["model"]["args"] = {"llama": str(llama)}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    out = tmp_path / "out"
    directalign.Run.from_recipe(tmp_path / "recipe.yaml").train(out, progress=False)
    sample_images(out, PROMPTS[:1], [0], tmp_path / "images")
    call = json.loads((tmp_path / "images/images.jsonl").read_text())
    names = {}
    exec(call["diffusers"]["code"], names)
    assert names["image"].size == (SIZE, SIZE)
