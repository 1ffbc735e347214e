"""Shipped weights are small, 16-bit, exported as complete folders, and sample as they should.

Nothing depends on the exact weights: a rebuilt toy world passes if it is as good as required.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from directalign.config.load import load_run
from directalign.evaluation.eval_prompts import fixed_pairs, measured_prompts
from directalign.evaluation.generate import generate
from directalign.models import load_model
from directalign.models.lora_files import updates_of
from directalign.rewards.clip import ClipReward
from directalign.toyworld import assets
from directalign.toyworld.judges import load_judge
from directalign.toyworld.scenes import draw_scenes, render
from directalign.toyworld.worlds import WORLDS, World
from directalign.types import DirectAlignError

LIMIT = 24_000_000
WORLD = WORLDS["world"]
NAMES = list(WORLD.models)
RECIPE_OF = {"flux": "world_srpo", "sd": "world_sd", "sd_v": "world_sd_v"}
RECIPE_OF |= {"flux_turbo": "world_turbo"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    assert assets.export(folder) == [folder / name for name in NAMES]
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIRECTALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def weights_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_what_is_shipped_is_small_and_holds_only_settings_and_16_bit_weights():
    files = [path for path in WORLD.assets.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert {path.suffix for path in files} <= {".safetensors", ".json"}
    shipped = weights_in(WORLD.assets)
    assert len(shipped) >= 9
    for path in shipped:
        assert {tensor.dtype for tensor in load_file(path).values()} == {torch.float16}, path


@pytest.mark.parametrize("name", NAMES)
def test_exported_weights_are_float32_copies(exported, name):
    """But the transformer with a LoRA, which is merged."""
    compared, updates = 0, {}
    if name == "flux_turbo":
        (file,) = (WORLD.assets / name).glob("*.safetensors")
        updates = updates_of(load_file(file), file)
        assert len(updates) > 20
    for part, source in WORLD.pipelines.get(name, {".": name}).items():
        for shipped in weights_in(WORLD.assets / source):
            narrow, wide = load_file(shipped), load_file(exported / name / part / shipped.name)
            assert narrow.keys() == wide.keys()
            for key, weight in narrow.items():
                assert wide[key].dtype == torch.float32
                update = updates.pop(f"{part}.{key.removesuffix('.weight')}", None)
                expected = weight.float() if update is None else update.applied(weight)
                assert torch.equal(wide[key], expected)
            compared += 1
    assert compared == len(weights_in(exported / name)) > 0 and not updates


def test_an_existing_folder_is_refused_by_name_and_nothing_is_written(tmp_path):
    (tmp_path / "sd").mkdir()
    message = rf"^{tmp_path}/sd exists already: choose an empty folder$"
    with pytest.raises(DirectAlignError, match=message):
        assets.export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sd"]


@pytest.mark.parametrize("name", WORLD.pipelines)
def test_diffusers_samples_from_the_folders(exported, name):
    flux = name.startswith("flux")
    kind = diffusers.FluxPipeline if flux else diffusers.StableDiffusionPipeline
    pipeline = kind.from_pretrained(exported / name)
    pipeline.set_progress_bar_config(disable=True)
    given = {"height": 64, "width": 64, "num_inference_steps": 3, "guidance_scale": 1.0}
    given |= {"max_sequence_length": 16} if flux else {}
    generator, prompt = torch.Generator().manual_seed(0), "a red star on a white background"
    images = pipeline(prompt, generator=generator, output_type="np", **given).images
    assert images.shape == (1, 64, 64, 3) and np.isfinite(images).all() and images.std() > 0.05
    if not flux:
        wanted = {"sd": "epsilon", "sd_v": "v_prediction"}[name]
        assert pipeline.scheduler.config["prediction_type"] == wanted


def test_transformers_scores_with_the_reward_folder_as_the_package_does(exported):
    folder = exported / "reward"
    model, tokenizer, processor = (
        loader.from_pretrained(folder) for loader in (CLIPModel, AutoTokenizer, CLIPImageProcessor)
    )
    scenes = draw_scenes(4, torch.Generator().manual_seed(1))
    prompts = [f"CG render. {caption}" for caption in scenes.captions()]
    images = (render(scenes, torch.Generator().manual_seed(2)) * 255).round().to(torch.uint8)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    tokens = tokenizer(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        seen = model(
            pixel_values=processor(pictures, return_tensors="pt")["pixel_values"], **tokens
        )
    reward = ClipReward.load(str(folder))
    ours = reward.score(reward.encode(images.float() / 255), prompts)
    assert torch.allclose(ours, (seen.image_embeds * seen.text_embeds).sum(1), atol=1e-5)


@pytest.mark.parametrize("name", ["sd_v", "reward"])
def test_resolve_writes_once_and_into_the_cache_that_is_named(cache, name):
    folder = assets.resolve(f"world:{name}")
    assert folder.is_relative_to(cache) and folder.name == name
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert assets.resolve(f"world:{name}") == folder
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == written
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [name]


@pytest.mark.parametrize("damage", [b"", b"other"])
def test_a_damaged_folder_is_written_again(cache, damage):
    file = assets.resolve("world:reward") / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(damage)
    assets.resolve("world:reward")
    assert file.read_bytes() == whole


def test_changed_weights_get_a_cache_folder_of_their_own(cache, tmp_path, monkeypatch):
    shutil.copytree(WORLD.assets / "reward", tmp_path / "assets" / "reward")
    monkeypatch.setitem(WORLDS, "world", replace(WORLD, assets=tmp_path / "assets"))
    before = assets.resolve("world:reward")
    (tmp_path / "assets" / "reward" / "more.json").write_text("{}")
    assert assets.resolve("world:reward") != before


def test_a_lost_race_and_a_failed_write_leave_one_whole_folder_or_none(cache, monkeypatch):
    write = assets._write

    def overtaken(world: World, name: str, folder: Path) -> None:
        write(world, name, folder)
        write(world, name, folder.parents[1] / name)

    def broken_off(world: World, name: str, folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_text("")
        raise OSError("disk full")

    monkeypatch.setattr(assets, "_write", broken_off)
    with pytest.raises(OSError, match="disk full"):
        assets.resolve("world:reward")
    assert [path for path in cache.rglob("*") if path.is_file()] == []
    monkeypatch.setattr(assets, "_write", overtaken)
    folder = assets.resolve("world:reward")
    assert weights_in(folder) and [each for each in folder.parent.iterdir() if each.is_dir()] == [
        folder
    ]


def judged(name: str, phrase: str) -> dict[str, float]:
    """Rates over 32 fixed pairs, sampled as the recipe of that model samples."""
    run = load_run(RECIPE_OF[name])
    pairs = fixed_pairs(measured_prompts(run), 32)
    prompts = [phrase + prompt for prompt in pairs.prompts]
    images = generate(load_model(run.model, "cpu"), prompts, pairs.seeds, run.rollout)
    return {key: float(answer.mean()) for key, answer in load_judge()(images, prompts).items()}


@pytest.mark.parametrize("name", RECIPE_OF)
def test_plain_prompts_give_the_right_content_in_the_wrong_style(name):
    plain, prompted = judged(name, ""), judged(name, "Realistic photo. ")
    assert plain["content"] >= 0.9 and plain["photo_rate"] < 0.35
    assert prompted["content"] >= 0.9 and prompted["photo_rate"] > 0.8
