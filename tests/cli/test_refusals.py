"""Wrong inputs end in one line: exit code 1, no output folder, nothing large downloaded.

The line names the setting, the given value and the remedy; `check` prints the same one as `train`
where it can know. Recipes, prompts and images: tests/config, tests/data and test_check.
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
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import Result

from directalign.toyworld.assets import resolve
from directalign.training.run_folder import locked
from hub_stand_in import READER, Hub, hub_stand_in, point_at
from tiny import (
    write_flux,
    write_klein,
    write_qwen_image,
    write_sd,
    write_sd3,
    write_sdxl,
    write_z_image,
)

Command = Callable[..., Result]
Models = dict[str, Path]
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
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A tiny checkpoint of each architecture, read-only."""
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in WRITERS.items()}


@pytest.fixture
def hub(
    recipe: Path, tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    """A hub with a tiny FLUX, without a token."""
    disable_progress_bars()  # as the command does
    with hub_stand_in() as served:
        served.publish(HUB_ID, models["flux"])
        point_at(served.url, tmp_path / "cache", monkeypatch)
        yield served
    enable_progress_bars()


def use_model(architecture: str, folder: Path) -> None:
    """Make recipe.yaml one for this model, with embedded guidance for FLUX only."""
    given = yaml.safe_load(Path("recipe.yaml").read_text())
    given["model"] = {"architecture": architecture, "path": str(folder)}
    for section in ("rollout", "method"):
        if architecture != "flux":
            given[section].pop("embedded_guidance", None)
    Path("recipe.yaml").write_text(yaml.safe_dump(given))


def files() -> list[Path]:
    return sorted(path for path in Path().rglob("*") if "cache" not in path.parts)


def refused(result: Result, *expected: str) -> str:
    """The one line that a command ended with."""
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1), result.output
    assert result.stderr.startswith("directalign: ") and "unexpected" not in result.stderr
    for piece in expected:
        assert piece in result.stderr
    return result.stderr


def refusal(command: Command, name: str, *overrides: str) -> str:
    """The line of `directalign NAME recipe.yaml`, which wrote nothing."""
    before = files()
    given = [f"--set={override}" for override in overrides]
    line = refused(command(name, "recipe.yaml", *given, "--out", "out/run"))
    assert files() == before
    return line


def refused_alike(command: Command, *overrides: str) -> str:
    """The line of `train`, which is that of `check` too."""
    line = refusal(command, "train", *overrides)
    assert refusal(command, "check", *overrides) == line
    return line


def edit(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


# --- one table: (setup, overrides, expected); `train` and `check` end with the same line ---


def copied(models: Models, *missing: str) -> Path:
    """A copy of the tiny FLUX in model/, without some of its parts."""
    folder = Path(shutil.copytree(models["flux"], "model"))
    for name in missing:
        part = folder / name
        shutil.rmtree(part) if part.is_dir() else part.unlink()
    return folder


def lost_shard(models: Models) -> Path:
    part = copied(models) / "transformer"
    file = next(part.glob("*.safetensors"))
    shard = file.rename(part / "diffusion_pytorch_model-00001-of-00002.safetensors").name
    index = {"metadata": {}, "weight_map": {"a": shard, "b": shard.replace("00001-", "00002-")}}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return part / "diffusion_pytorch_model-00002-of-00002.safetensors"


def single_file(key: str) -> None:
    save_file({key: torch.zeros(4)}, "one.safetensors")


def pictures(models: Models) -> None:
    Path("pictures").mkdir()
    for number in range(3):
        Image.new("RGB", (40, 40), "red").save(f"pictures/{number}.png")
        Path(f"pictures/{number}.txt").write_text("a red square")


def text_encoder_as_reward(models: Models) -> None:
    encoder = shutil.copytree(models["flux"] / "text_encoder", "encoder")
    shutil.copytree(models["flux"] / "tokenizer", encoder, dirs_exist_ok=True)
    shutil.copy(resolve("world:reward") / "preprocessor_config.json", encoder)


def torn_reward(models: Models) -> None:
    judge = Path(shutil.copytree(resolve("world:reward"), "judge"))
    next(judge.glob("*.safetensors")).write_bytes(b"torn")


def dataset_of_titles(models: Models) -> None:
    datasets_logging.disable_progress_bar()
    datasets.Dataset.from_dict({"title": ["a red star"]}).save_to_disk("set")


def distilled_klein(models: Models) -> None:
    folder = Path(shutil.copytree(models["flux2_klein"], "klein"))
    edit(folder / "model_index.json", is_distilled=True)
    use_model("flux2_klein", folder)


def missing_part(name: str) -> tuple[Callable[[Models], Any], list[str], list[str]]:
    expected = [f"model/{name}: no such folder"]
    return lambda models: copied(models, name), ["model.path=model"], expected


def inpainting(architecture: str, **settings: Any) -> Any:
    part = "unet" if architecture == "sd" else "transformer"

    def setup(models: Models) -> None:
        use_model(architecture, WRITERS[architecture](Path("model").absolute(), **settings))

    return setup, [], [f"model/{part}: takes "]


def other_architecture(architecture: str, other: str) -> Any:
    expected = ["holds a", f"model.architecture: {architecture} needs a", "change one of the two\n"]
    return lambda models: use_model(architecture, models[other]), [], expected


SIZE = "36x32 does not fit: image size 36x32: both sides must be multiples of 8"
Case = tuple[Callable[[Models], Any] | None, list[str], list[str]]
CASES: dict[str, Case] = {
    **{
        f"{other} as {name}": other_architecture(name, other)
        for name, other in [
            ("flux", "sd3"),
            ("sd", "sdxl"),
            ("sdxl", "sd"),
            ("qwen_image", "flux"),
            ("flux", "qwen_image"),
            ("z_image", "flux2_klein"),
            ("sd3", "z_image"),
        ]
    },
    "inpainting flux": inpainting("flux", in_channels=32),
    "inpainting sd": inpainting("sd", in_channels=9),
    "inpainting sd3": inpainting("sd3", transformer={"in_channels": 33}),
    "inpainting qwen_image": inpainting("qwen_image", transformer={"in_channels": 20}),
    "inpainting z_image": inpainting("z_image", transformer={"in_channels": 9}),
    **{
        f"no {name}": missing_part(name)
        for name in ("tokenizer", "tokenizer_2", "scheduler", "transformer", "text_encoder", "vae")
    },
    "no vocabulary": (
        lambda models: copied(models, "tokenizer_2/tokenizer.json"),
        ["model.path=model"],
        ["model/tokenizer_2: lacks spiece.model, tokenizer.json: copy"],
    ),
    "torn vocabulary": (
        lambda models: (copied(models) / "tokenizer_2/tokenizer.json").write_text("{"),
        ["model.path=model"],
        ["model/tokenizer_2: not readable as a T5"],
    ),
    "lost shard": (
        lost_shard,
        ["model.path=model"],
        ["00002-of-00002.safetensors: no such file: copy it again"],
    ),
    "torn shard": (
        lambda models: lost_shard(models).write_bytes(b"\x40\0\0\0\0\0\0\0{"),
        ["model.path=model"],
        ["00002-of-00002.safetensors: truncated or not a safetensors file"],
    ),
    "stochastic scheduler": (
        lambda models: edit(
            copied(models) / "scheduler/scheduler_config.json", stochastic_sampling=True
        ),
        ["model.path=model"],
        ["model/scheduler: stochastic_sampling is on"],
    ),
    "no variant": (
        None,
        ["model.variant=fp16"],
        [": no fp16 weights, there are plain ones: leave model.variant out"],
    ),
    "a single file of another architecture": (
        lambda models: single_file("joint_blocks.0.context_block.adaLN_modulation.1.bias"),
        ["model.path=one.safetensors", "model.components={flux}"],
        ["one.safetensors: holds SD3"],
    ),
    "a single file of another size": (
        lambda models: single_file("double_blocks.0.img_attn.norm.key_norm.scale"),
        ["model.path=one.safetensors", "model.components={flux}"],
        ["give the model.components that it was trained from"],
    ),
    "a single file without components": (
        lambda models: save_file(
            load_file(models["flux"] / "transformer" / "diffusion_pytorch_model.safetensors"),
            "one.safetensors",
        ),
        ["model.path=one.safetensors"],
        ["model.components: missing", "one.safetensors holds FLUX.1"],
    ),
    "a single file with other components": (
        lambda models: single_file("double_blocks.0.img_attn.norm.key_norm.scale"),
        ["model.path=one.safetensors", "model.components={sd}"],
        ["StableDiffusionPipeline", "model.architecture: flux needs a FluxPipeline"],
    ),
    "pickled weights": (
        lambda models: Path("model.ckpt").write_bytes(b""),
        ["model.path=model.ckpt"],
        ["model.path: model.ckpt: pickled weights can run code"],
    ),
    "height": (None, ["rollout.height=36", "rollout.width=32"], ["rollout.height", SIZE]),
    "position embeddings": (
        lambda models: use_model("sd3", models["sd3"]),
        ["rollout.sizes=[[32, 200]]"],
        ["rollout.sizes: 32x200 does not fit", "position embeddings end at 192"],
    ),
    "lora targets": (
        None,
        ["model.lora={{rank: 2, targets: [attn.to_qq]}}"],
        ["model.lora.targets: ['attn.to_qq'] fit no linear or convolution layer", "attn.to_q"],
    ),
    "lora rank": (
        None,
        ["model.lora={{rank: 64}}"],
        ["model.lora.rank: 64 is more than", "give 16 or less"],
    ),
    "attention": (
        None,
        ["model.attention=nonsense"],
        ["model.attention: nonsense is not a backend that can train: choose one of"],
    ),
    "attention of a UNet": (
        lambda models: use_model("sd", models["sd"]),
        ["model.attention=native"],
        ["a UNet2DConditionModel has no choice of attention backends: leave the key out"],
    ),
    "guidance for a distilled flux": (
        lambda models: use_model("flux", write_flux(Path("schnell"), guidance_embeds=False)),
        [],
        ["rollout.embedded_guidance: 1.0, and this model has no input for it"],
    ),
    **{
        f"{section}.cfg_scale for a distilled klein": (
            distilled_klein,
            [f"{section}.cfg_scale=4"],
            [f"{section}.cfg_scale: 4, and this model is step-distilled", "set it to 1"],
        )
        for section in ("rollout", "method")
    },
    "a reward that is none": (
        None,
        ["reward={{name: clip, path: {flux}}}"],
        ["config.json is missing; it must be a complete transformers CLIPModel folder"],
    ),
    "a reward of another type": (
        text_encoder_as_reward,
        ["reward={{name: clip, path: encoder}}"],
        ["reward.path: encoder: holds a model of type clip_text_model; give the folder of"],
    ),
    "no reward processor": (
        None,
        ["reward={{name: clip, path: world:reward, processor: nowhere}}"],
        ["reward.processor: nowhere: no such folder"],
    ),
    "torn reward": (
        torn_reward,
        ["reward={{name: clip, path: judge}}"],
        ["judge/model.safetensors: not a complete safetensors file"],
    ),
    "a dataset without prompts": (
        dataset_of_titles,
        ["data.prompts=hf:set"],
        ["hf:set: no column prompt, caption or text among 'title'", "hf:set#column"],
    ),
    "a small bucket": (
        pictures,
        ["data.images=pictures", "data.buckets=[[32, 32]]", "data.batch_size=4"],
        ["data.buckets: [32, 32] has 3 images, and an update takes 4", "lower data.batch_size"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_train_and_check_refuse_alike(
    command: Command, recipe: Path, models: Models, case: str
) -> None:
    setup, overrides, expected = CASES[case]
    if setup is not None:
        setup(models)
    line = refused_alike(command, *(each.format(**models) for each in overrides))
    for piece in expected:
        assert piece in line


@pytest.mark.parametrize("architecture", WRITERS)
def test_sizes_and_guidance_of_each_architecture(
    command: Command, recipe: Path, models: Models, architecture: str
) -> None:
    use_model(architecture, models[architecture])
    assert f"rollout.sizes: {SIZE}" in refused_alike(command, "rollout.sizes=[[32, 32], [36, 32]]")
    buckets = ("data.images=.", "data.buckets=[[36, 32]]")
    assert f"data.buckets: {SIZE}" in refusal(command, "train", *buckets)
    if architecture != "flux":
        line = refused_alike(command, "method.embedded_guidance=3.5")
        assert "method.embedded_guidance: 3.5, and this model has no input for it" in line


def test_a_global_batch_that_the_ranks_do_not_divide(
    command: Command, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = refusal(command, "check", "train.global_batch_size=6", "data.batch_size=2")
    assert (
        "train.global_batch_size: 6 is not a multiple of data.batch_size 2 on 2 ranks (4)" in line
    )


def test_what_is_missing_on_this_machine_is_a_warning_of_check(
    command: Command, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    needs = "model.quantization: 4bit needs bitsandbytes"
    assert f"{needs}: pip install" in refusal(command, "train", "model.quantization=4bit")
    checked = command("check", recipe, "--set", "model.quantization=4bit")
    assert checked.exit_code == 0 and f"warning: {needs}" in checked.stderr
    assert "model.attention: flash cannot be used here" in refusal(
        command, "train", "model.attention=flash"
    )


def test_a_folder_in_which_another_process_trains(command: Command, recipe: Path) -> None:
    Path("busy").mkdir()
    with locked(Path("busy")):
        result = command("train", recipe, "--out", "busy")
    assert (
        result.exit_code != 0 and "--out busy: another process is training in it" in result.stderr
    )
    assert [path.name for path in Path("busy").iterdir() if path.name != ".lock"] == []


# --- the hub ---


def test_a_gated_repository(command: Command, hub: Hub, recipe: Path) -> None:
    hub.publish("maker/judge", resolve("world:reward")).gated = True
    line = refusal(command, "train", "reward={name: clip, path: maker/judge}")
    page = f"{hub.url}/maker/judge"
    assert f"reward.path: maker/judge: is gated: accept its licence at {page} in a" in line
    assert "run `hf auth login` or set HF_TOKEN" in line
    hub.repos[HUB_ID].gated = True
    assert f"model.path: {HUB_ID}: is gated" in refusal(command, "train", f"model.path={HUB_ID}")
    refused(command("sample", HUB_ID, "--prompt", "a red star"), "is gated", "hf auth login")


def test_a_repository_that_does_not_exist(command: Command, hub: Hub, recipe: Path) -> None:
    for override in ("model.path=maker/nothing", "reward={name: clip, path: maker/nothing}"):
        line = refusal(command, "train", override)
        assert "path: maker/nothing: no such folder here, and at http" in line
        assert "or run `hf auth login`" in line


@pytest.mark.parametrize(
    ("offline", "expected"),
    [(False, "http://127.0.0.1:9 cannot be reached"), (True, "with HF_HUB_OFFLINE set: unset it")],
)
def test_no_network(
    command: Command,
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    offline: bool,
    expected: str,
) -> None:
    point_at("http://127.0.0.1:9", tmp_path / "cache", monkeypatch, offline=offline)
    assert expected in refusal(command, "train", f"model.path={HUB_ID}")


def test_a_wrong_setting_is_refused_before_weights_are_downloaded(
    command: Command,
    hub: Hub,
    recipe: Path,
    models: Models,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", READER)
    hub.publish("maker/sd3", models["sd3"])
    path = f"model.path={HUB_ID}"
    for overrides, expected in (
        ((path, "model.lora.targets=[too_q]"), "model.lora.targets: ['too_q'] fit no"),
        (("model.path=maker/sd3",), "holds a StableDiffusion3Pipeline"),
        ((path, "rollout.sizes=[[36, 32]]"), "rollout.sizes: 36x32 does not fit"),
    ):
        assert expected in refusal(command, "train", *overrides)
    assert hub.fetched and not any(name.endswith(".safetensors") for name in hub.fetched)


@pytest.mark.parametrize(
    "words", ["evaluate", "report", "sample --prompt x", "export --format diffusers"]
)
def test_a_missing_run_is_not_searched_on_the_hub(command: Command, hub: Hub, words: str) -> None:
    Path("runs").mkdir()
    refused(command(*words.split(), "runs/gone"), "directalign: runs/gone: ", "give ")
    assert hub.fetched == []


def test_a_single_file_is_not_sampled_by_itself(command: Command, recipe: Path) -> None:
    line = refused(command("sample", "one.safetensors", "--prompt", "a red star"), "give a run")
    assert "one.safetensors: a single file brings no configs" in line
