"""What loading or the first update would trip over is refused before the start: one line, exit code 1, no output folder, nothing heavy downloaded.

Beside `test_check` (the recipe, its prompts and images) and `test_wrong_inputs`: every family, every part of a checkpoint, the hub, and
what has to be installed. Where `check` can know it, it says the same line as `train`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from datasets.utils import logging as datasets_logging
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from safetensors.torch import save_file
from typer.testing import Result

from directalign.toyworld.assets import resolve
from directalign.training.run_folder import locked
from hub_downloads import TOKEN, DownloadHub, download_hub, point_at
from tiny import write_flux, write_sd
from tiny_klein import write_klein
from tiny_qwen import write_qwen_image
from tiny_sd3 import write_sd3
from tiny_sdxl import write_sdxl
from tiny_z_image import write_z_image

Command = Callable[..., Result]
WRITERS: dict[str, Callable[..., Path]] = {
    "flux": write_flux,
    "flux2_klein": write_klein,
    "sd3": write_sd3,
    "sd": write_sd,
    "sdxl": write_sdxl,
    "qwen_image": write_qwen_image,
    "z_image": write_z_image,
}
HUB_ID = "maker/tiny-flux"


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each family; not to be written to."""
    return {family: write(tmp_path_factory.mktemp(family)) for family, write in WRITERS.items()}


@pytest.fixture
def hub(recipe: Path, tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[DownloadHub]:
    """A hub with a tiny FLUX, and nobody signed in."""
    disable_progress_bars()  # as the command does
    with download_hub() as served:
        served.publish(HUB_ID, models["flux"])
        point_at(served.url, tmp_path / "cache", monkeypatch)
        yield served
    enable_progress_bars()


def of_family(recipe: Path, family: str, folder: Path) -> None:
    """Make the recipe one for this model, with guidance embedded in FLUX alone."""
    given = yaml.safe_load(recipe.read_text()) | {"model": {"family": family, "path": str(folder)}}
    for section in ("rollout", "method"):
        if family != "flux":
            given[section].pop("embedded_guidance")
    recipe.write_text(yaml.safe_dump(given))


def refusal(command: Command, name: str, recipe: Path, *overrides: str) -> str:
    """The one line that `directalign NAME` ends with, nothing having been made."""
    before = sorted(path for path in Path().rglob("*") if "cache" not in path.parts)
    result = command(name, recipe, *(f"--set={override}" for override in overrides), "--out", "out/run")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1), result.output
    assert result.stderr.startswith("directalign: ") and "fault of directalign" not in result.stderr
    assert sorted(path for path in Path().rglob("*") if "cache" not in path.parts) == before
    return result.stderr


def refused_alike(command: Command, recipe: Path, *overrides: str) -> str:
    """The line of `train`, which `check` says too."""
    line = refusal(command, "train", recipe, *overrides)
    assert refusal(command, "check", recipe, *overrides) == line
    return line


def edit(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_a_folder_in_which_another_process_trains(command: Command, recipe: Path) -> None:
    out = Path("busy")
    out.mkdir()
    with locked(out):
        result = command("train", recipe, "--out", out)
    assert result.exit_code != 0 and "--out busy: another process is training in it; wait for it, or end it first" in result.stderr
    assert not any(out.iterdir())


OTHERS = [("flux", "sd3"), ("sd", "sdxl"), ("sdxl", "sd"), ("qwen_image", "flux"), ("flux", "qwen_image"), ("z_image", "flux2_klein"), ("sd3", "z_image")]


@pytest.mark.parametrize(("family", "other"), OTHERS)
def test_a_folder_of_each_other_architecture(command: Command, recipe: Path, models: dict[str, Path], family: str, other: str) -> None:
    of_family(recipe, family, models[other])
    line = refused_alike(command, recipe)
    assert f"model.path: {models[other]} holds a" in line and f"model.family: {family} needs a" in line and line.endswith("change one of the two\n")


CHANNELS: dict[str, Callable[[Path], Path]] = {
    "flux": lambda folder: write_flux(folder, in_channels=32),
    "sd": lambda folder: write_sd(folder, in_channels=9),
    "sd3": lambda folder: write_sd3(folder, transformer={"in_channels": 33}),
    "qwen_image": lambda folder: write_qwen_image(folder, transformer={"in_channels": 20}),
    "z_image": lambda folder: write_z_image(folder, transformer={"in_channels": 9}),
}


@pytest.mark.parametrize("family", CHANNELS)
def test_a_model_for_inpainting(command: Command, recipe: Path, tmp_path: Path, family: str) -> None:
    of_family(recipe, family, CHANNELS[family](tmp_path / "model"))
    line = refused_alike(command, recipe)
    assert f"model/{'unet' if family == 'sd' else 'transformer'}: takes " in line and ("give a plain" in line or "inpainting" in line)


def test_a_scheduler_that_samples_otherwise(command: Command, recipe: Path, models: dict[str, Path]) -> None:
    shutil.copytree(models["flux"], "model")
    edit(Path("model/scheduler/scheduler_config.json"), stochastic_sampling=True)
    assert "model/scheduler: stochastic_sampling is on" in refused_alike(command, recipe, "model.path=model")


def lost_shard(folder: Path) -> None:
    part = folder / "transformer"
    file = next(part.glob("*.safetensors"))
    shard = file.rename(part / "diffusion_pytorch_model-00001-of-00002.safetensors").name
    index = {"metadata": {}, "weight_map": {"a": shard, "b": shard.replace("00001-", "00002-")}}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def torn_shard(folder: Path) -> None:
    lost_shard(folder)
    (folder / "transformer/diffusion_pytorch_model-00002-of-00002.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    **{name: (lambda folder, name=name: shutil.rmtree(folder / name), f"model/{name}: no such folder") for name in ("tokenizer", "tokenizer_2", "scheduler")},
    **{name: (lambda folder, name=name: shutil.rmtree(folder / name), f"model/{name}/config.json: no such file") for name in ("transformer", "text_encoder")},
    "vocabulary": (lambda folder: (folder / "tokenizer_2/tokenizer.json").unlink(), "model/tokenizer_2: lacks spiece.model, tokenizer.json: copy"),
    "torn vocabulary": (lambda folder: (folder / "tokenizer_2/tokenizer.json").write_text("{"), "model/tokenizer_2: not readable as a T5"),
    "lost shard": (lost_shard, "00002-of-00002.safetensors: no such file: copy it again"),
    "torn shard": (torn_shard, "00002-of-00002.safetensors: truncated or not a safetensors file"),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_every_part_of_a_checkpoint_is_looked_at(command: Command, recipe: Path, models: dict[str, Path], spoilt: str) -> None:
    shutil.copytree(models["flux"], "model")
    spoil, expected = SPOILT[spoilt]
    spoil(Path("model"))
    assert expected in refused_alike(command, recipe, "model.path=model")


def test_a_variant_that_is_not_there(command: Command, recipe: Path) -> None:
    assert "transformer: no fp16 weights, there are plain ones: leave model.variant out" in refused_alike(command, recipe, "model.variant=fp16")


def test_a_gated_repository_is_seen_before_anything_is_loaded(command: Command, hub: DownloadHub, recipe: Path) -> None:
    hub.publish("maker/judge", resolve("world:reward")).gated = True
    line = refusal(command, "train", recipe, "reward={name: clip, path: maker/judge}")
    assert f"reward.path: maker/judge: is gated: accept its licence at {hub.url}/maker/judge" in line and "set HF_TOKEN" in line
    hub.repos[HUB_ID].gated = True
    assert f"model.path: {HUB_ID}: is gated" in refusal(command, "train", recipe, f"model.path={HUB_ID}")


def test_a_repository_that_does_not_exist(command: Command, hub: DownloadHub, recipe: Path) -> None:
    for key in ("model.path={}", "reward={{name: clip, path: {}}}"):
        line = refusal(command, "train", recipe, key.format("maker/nothing"))
        assert "path: maker/nothing: no such folder here, and at http" in line and "mend the name, or run `hf auth login`" in line


def test_no_network(command: Command, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    assert "http://127.0.0.1:9 cannot be reached: mend the network" in refusal(command, "train", recipe, f"model.path={HUB_ID}")
    point_at("http://127.0.0.1:9", tmp_path / "cache", monkeypatch, offline=True)
    assert "with HF_HUB_OFFLINE set: unset it for the first run" in refusal(command, "train", recipe, f"model.path={HUB_ID}")


def test_what_is_wrong_with_a_repository_is_known_before_its_weights_come(
    command: Command, hub: DownloadHub, recipe: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "model.lora.targets: ['too_q'] fit no" in refusal(command, "train", recipe, f"model.path={HUB_ID}", "model.lora.targets=[too_q]")
    hub.publish("maker/sd3", models["sd3"])
    assert "holds a StableDiffusion3Pipeline" in refusal(command, "train", recipe, "model.path=maker/sd3")
    assert "rollout.sizes: 36x32 does not fit" in refusal(command, "train", recipe, f"model.path={HUB_ID}", "rollout.sizes=[[36, 32]]")
    assert hub.fetched and not any(name.endswith(".safetensors") for name in hub.fetched)


def test_a_single_file(command: Command, recipe: Path, models: dict[str, Path]) -> None:
    components = f"model.components={models['flux']}"
    save_file({"joint_blocks.0.context_block.adaLN_modulation.1.bias": torch.zeros(4)}, "sd3.safetensors")
    assert "sd3.safetensors: holds SD3" in refused_alike(command, recipe, "model.path=sd3.safetensors", components)
    save_file({"double_blocks.0.img_attn.norm.key_norm.scale": torch.zeros(4)}, "small.safetensors")
    assert "give the model.components that it was trained from" in refused_alike(command, recipe, "model.path=small.safetensors", components)
    Path("model.ckpt").write_bytes(b"")
    assert "model.path: model.ckpt: pickled weights can run code" in refused_alike(command, recipe, "model.path=model.ckpt")


@pytest.mark.parametrize("family", WRITERS)
def test_sizes_that_a_family_cannot_have(command: Command, recipe: Path, models: dict[str, Path], family: str) -> None:
    of_family(recipe, family, models[family])
    expected = "does not fit; both are multiples of 8 for this model: 40 and 32 are near"
    assert f"rollout.sizes: 42x32 {expected}" in refused_alike(command, recipe, "rollout.sizes=[[32, 32], [42, 32]]")
    assert f"rollout.height, rollout.width: 42x32 {expected}" in refusal(command, "train", recipe, "rollout.height=42", "rollout.width=32")
    buckets = ("data.images=.", "data.buckets=[[42, 32]]")
    assert f"data.buckets: 42x32 {expected}" in refusal(command, "train", recipe, *buckets)


def test_a_size_beyond_the_position_embeddings(command: Command, recipe: Path, models: dict[str, Path]) -> None:
    of_family(recipe, "sd3", models["sd3"])
    assert "rollout.sizes: 32x200 is too large; this model's position embeddings end at 192" in refused_alike(command, recipe, "rollout.sizes=[[32, 200]]")


def test_a_global_batch_that_the_ranks_do_not_divide(command: Command, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = refusal(command, "check", recipe, "train.global_batch_size=6", "data.batch_size=2")
    assert "train.global_batch_size: 6 is not a multiple of data.batch_size 2 on 2 ranks (4); change one of them" in line


def test_four_bits_without_bitsandbytes(command: Command, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert "model.quantization: 4bit needs bitsandbytes: pip install" in refusal(command, "train", recipe, "model.quantization=4bit")
    checked = command("check", recipe, "--set", "model.quantization=4bit")
    assert checked.exit_code == 0 and "warning: model.quantization: 4bit needs bitsandbytes" in checked.stderr, "it may be trained on another machine"


def test_an_attention_kernel_that_cannot_be_used(command: Command, recipe: Path, models: dict[str, Path]) -> None:
    assert "model.attention: nonsense is not a backend that can train: choose one of" in refused_alike(command, recipe, "model.attention=nonsense")
    assert "model.attention: flash cannot be used here" in refusal(command, "train", recipe, "model.attention=flash")
    of_family(recipe, "sd", models["sd"])
    assert "a UNet2DConditionModel chooses its attention itself: leave the key out" in refused_alike(command, recipe, "model.attention=native")


@pytest.mark.parametrize("family", [family for family in WRITERS if family != "flux"])
def test_guidance_for_a_network_without_an_input_for_it(command: Command, recipe: Path, models: dict[str, Path], family: str) -> None:
    of_family(recipe, family, models[family])
    assert "method.embedded_guidance: 3.5, and this model has no input for it; leave it out" in refused_alike(command, recipe, "method.embedded_guidance=3.5")


def test_guidance_for_a_distilled_flux(command: Command, recipe: Path, tmp_path: Path) -> None:
    schnell = write_flux(tmp_path / "schnell", guidance_embeds=False)
    assert "rollout.embedded_guidance: 1.0, and this model has no input for it" in refused_alike(command, recipe, f"model.path={schnell}")


@pytest.mark.parametrize("section", ["rollout", "method"])
def test_guidance_for_a_distilled_klein(command: Command, recipe: Path, models: dict[str, Path], section: str) -> None:
    folder = Path(shutil.copytree(models["flux2_klein"], "klein"))
    edit(folder / "model_index.json", is_distilled=True)
    of_family(recipe, "flux2_klein", folder)
    expected = f"{section}.cfg_scale: 4, and this model is step-distilled and takes no guidance: set it to 1"
    assert expected in refused_alike(command, recipe, f"{section}.cfg_scale=4")


def test_a_folder_that_holds_no_reward(command: Command, recipe: Path, models: dict[str, Path]) -> None:
    other = refused_alike(command, recipe, f"reward={{name: clip, path: {models['flux']}}}")
    assert f"reward.path: {models['flux']}: config.json is missing; it must be a complete transformers CLIPModel folder" in other
    judge = Path(shutil.copytree(resolve("world:reward"), "judge"))
    encoder = shutil.copytree(models["flux"] / "text_encoder", "encoder")
    shutil.copytree(models["flux"] / "tokenizer", encoder, dirs_exist_ok=True)
    shutil.copy(judge / "preprocessor_config.json", encoder)
    assert "reward.path: encoder: holds a model of type clip_text_model; give the folder of a transformers CLIPModel" in refused_alike(
        command, recipe, "reward={name: clip, path: encoder}"
    )
    processor = refused_alike(command, recipe, "reward={name: clip, path: judge, processor: nowhere}")
    assert "reward.processor: nowhere: no such folder" in processor
    next(judge.glob("*.safetensors")).write_bytes(b"torn")
    assert "judge/model.safetensors: not a complete safetensors file" in refused_alike(command, recipe, "reward={name: clip, path: judge}")


def test_a_dataset_without_prompts(command: Command, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets_logging.disable_progress_bar()
    datasets.Dataset.from_dict({"title": ["a red star"]}).save_to_disk(str(tmp_path / "set"))
    line = refused_alike(command, recipe, "data.prompts=hf:set")
    assert "hf:set: no column prompt or caption or text among 'title'" in line and "hf:set#column" in line
