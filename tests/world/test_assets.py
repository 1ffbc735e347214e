"""The shipped weights are small and 16-bit, come out as folders that diffusers and transformers
load alone, and paint what they should.

Nothing here depends on the very numbers of the weights: a rebuilt world passes if it is as good as
the embedded one has to be.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from directalign.config.load import load_run
from directalign.evaluation.eval_prompts import Pairs, fixed_pairs, measured_prompts
from directalign.evaluation.generate import generate
from directalign.models import load_model
from directalign.rewards.clip import ClipReward
from directalign.toyworld import assets
from directalign.toyworld.judges import load_judge
from directalign.toyworld.scenes import draw_scenes, render
from directalign.types import DirectAlignError, PerSample

LIMIT = 24_000_000
NAMES = [*assets.PIPELINES, *assets.REWARDS]
RECIPE_OF = {"flux": "world_srpo", "sd": "world_sd", "sd_v": "world_sd_v"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    assert assets.export(folder) == [folder / name for name in NAMES]
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIRECTALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def weights_in(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


# --- what is shipped
# ------------------------------------------------------------------------------------------------


def test_what_is_shipped_is_small_and_holds_settings_and_weights_alone() -> None:
    files = [path for path in assets.ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= LIMIT
    assert {path.suffix for path in files} <= {".safetensors", ".json"}


def test_all_shipped_weights_are_16_bit() -> None:
    files = weights_in(assets.ASSETS)
    assert len(files) >= 9
    for path in files:
        with safe_open(path, framework="pt") as opened:
            dtypes = {key: opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118 (not a dict)
        assert set(dtypes.values()) == {"F16"}, path


# --- complete folders
# -----------------------------------------------------------------------------------------------


def sources(name: str) -> Iterator[tuple[str, str]]:
    """(part of the exported folder, shipped folder behind it)."""
    yield from assets.PIPELINES[name].items() if name in assets.PIPELINES else [(".", name)]


@pytest.mark.parametrize("name", NAMES)
def test_exported_weights_are_float32_copies(exported: Path, name: str) -> None:
    compared = 0
    for part, source in sources(name):
        for shipped in weights_in(assets.ASSETS / source):
            narrow, wide = load_file(shipped), load_file(exported / name / part / shipped.name)
            assert narrow.keys() == wide.keys()
            assert all(
                wide[key].dtype == torch.float32 and torch.equal(wide[key], narrow[key].float())
                for key in narrow
            )
            compared += 1
    assert compared == len(weights_in(exported / name)) > 0


def test_an_existing_folder_is_refused_by_name_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "sd").mkdir()
    with pytest.raises(
        DirectAlignError, match=rf"^{tmp_path}/sd exists already: choose an empty folder$"
    ):
        assets.export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sd"]


def pixels(pipeline: diffusers.DiffusionPipeline, **arguments: object) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    found = pipeline(
        "a red star on a white background",
        height=64,
        width=64,
        num_inference_steps=3,
        generator=generator,
        output_type="np",
        **arguments,
    )
    return found.images


def test_diffusers_samples_from_the_flux_folder(exported: Path) -> None:
    pipeline = diffusers.FluxPipeline.from_pretrained(exported / "flux")
    images = pixels(pipeline, guidance_scale=1.0, max_sequence_length=assets.MAX_SEQUENCE_LENGTH)
    assert images.shape == (1, 64, 64, 3) and np.isfinite(images).all() and images.std() > 0.05


@pytest.mark.parametrize("name", ["sd", "sd_v"])
def test_diffusers_samples_from_the_sd_folders(exported: Path, name: str) -> None:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(exported / name)
    assert (
        pipeline.scheduler.config["prediction_type"]
        == {"sd": "epsilon", "sd_v": "v_prediction"}[name]
    )
    images = pixels(pipeline, guidance_scale=1.0)
    assert images.shape == (1, 64, 64, 3) and np.isfinite(images).all() and images.std() > 0.05


def test_transformers_scores_with_the_reward_folder_as_the_package_does(exported: Path) -> None:
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


# --- from the cache
# -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_resolve_writes_once_and_into_the_cache_that_is_named(cache: Path, name: str) -> None:
    folder = assets.resolve(f"world:{name}")
    assert folder.is_relative_to(cache) and folder.name == name
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert assets.resolve(f"world:{name}") == folder
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == written
    assert [path.name for path in folder.parent.iterdir()] == [name]


def test_a_folder_on_disk_is_taken_as_it_is(tmp_path: Path) -> None:
    assert assets.resolve(str(tmp_path)) == tmp_path


def test_an_unknown_embedded_model_is_one_line(cache: Path) -> None:
    with pytest.raises(
        DirectAlignError,
        match=r"^no embedded model 'world:flx': choose world:flux, world:sd, world:sd_v, world:reward, world:second_reward$",
    ):
        assets.resolve("world:flx")
    assert not cache.exists()


def test_changed_weights_get_a_cache_folder_of_their_own(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(assets.ASSETS / "reward", tmp_path / "assets" / "reward")
    monkeypatch.setattr(assets, "ASSETS", tmp_path / "assets")
    before = assets.resolve("world:reward")
    (tmp_path / "assets" / "reward" / "more.json").write_text("{}")
    assert assets.resolve("world:reward") != before


def test_another_process_may_win_the_race_for_the_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = assets._write

    def overtaken(name: str, folder: Path) -> None:
        write(name, folder)
        write(name, folder.parents[1] / name)

    monkeypatch.setattr(assets, "_write", overtaken)
    folder = assets.resolve("world:reward")
    assert weights_in(folder) and [path.name for path in folder.parent.iterdir()] == ["reward"]


def test_a_failed_write_leaves_nothing_in_the_cache(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_off(name: str, folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_text("")
        raise OSError("disk full")

    monkeypatch.setattr(assets, "_write", broken_off)
    with pytest.raises(OSError, match="disk full"):
        assets.resolve("world:reward")
    assert [path for path in cache.rglob("*") if path.is_file()] == []


# --- what the base models paint
# -------------------------------------------------------------------------------------


def judged(name: str, phrase: str) -> dict[str, float]:
    """Rates over 64 fixed pairs, sampled as the recipe of that model samples."""
    run = load_run(RECIPE_OF[name])
    pairs: Pairs = fixed_pairs(measured_prompts(run.data), 64)
    prompts = [phrase + prompt for prompt in pairs.prompts]
    answers: dict[str, PerSample] = dict(
        load_judge()(
            generate(load_model(run.model, "cpu"), prompts, pairs.seeds, run.rollout), prompts
        )
    )
    return {key: float(answer.mean()) for key, answer in answers.items()}


@pytest.mark.parametrize("name", list(RECIPE_OF))
def test_plain_prompts_give_the_right_thing_in_the_wrong_style(name: str) -> None:
    rates = judged(name, "")
    assert rates["content"] >= 0.9 and rates["photo_rate"] < 0.35


@pytest.mark.parametrize("name", list(RECIPE_OF))
def test_asked_for_a_photo_the_base_model_can_make_one(name: str) -> None:
    rates = judged(name, "Realistic photo. ")
    assert rates["content"] >= 0.9 and rates["photo_rate"] > 0.8
