"""What an export refuses, that it is whole or not there, and what its card says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from directalign import export
from directalign.config import ModelConfig
from directalign.export import Format, export_run
from directalign.export.finished_run import Licence, base_of
from directalign.types import DirectAlignError
from finished_runs import PROMPTS, finished_recipe, write_finished
from low_rank_updates import updates_of_shape

LAYER = {"transformer_blocks.0.attn.to_out.0": (16, 16)}


@pytest.fixture
def small_run(tmp_path: Path) -> Path:
    """One layer of a FLUX on the Hub, which is not looked at."""
    return write_finished(tmp_path / "run", finished_recipe("flux", "black-forest-labs/FLUX.1-dev", quantization="4bit"), updates_of_shape(LAYER))


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_folder_without_a_run_and_a_run_without_weights(tmp_path: Path) -> None:
    with pytest.raises(DirectAlignError, match="holds no run"):
        export_run(tmp_path, "kohya")
    unfinished = write_finished(tmp_path / "run", finished_recipe("flux", "a/b"))
    with pytest.raises(DirectAlignError, match=r"lora\.safetensors: no such file: the run is not finished"):
        export_run(unfinished, "kohya")


@pytest.mark.parametrize(
    ("tune", "form", "merge", "message"),
    [
        ("lora", "folder", False, "trained a LoRA: add --merge"),
        ("lora", "kohya", True, "leave it out for --format kohya"),
        ("full", "folder", True, "there is no LoRA to merge"),
        ("full", "diffusers", False, "there is no LoRA to write: give --format folder"),
    ],
)
def test_a_format_that_does_not_fit_what_was_trained(tune: str, form: Format, merge: bool, message: str, tmp_path: Path) -> None:
    run = write_finished(tmp_path / "run", finished_recipe("flux", "a/b", tune), updates_of_shape(LAYER))
    (run / "transformer").mkdir()
    with pytest.raises(DirectAlignError, match=message):
        export_run(run, form, merge=merge)


def test_nothing_is_written_over(small_run: Path) -> None:
    out = export_run(small_run, "comfyui")
    assert out == small_run / "export" / "comfyui" and sorted(file.name for file in out.iterdir()) == [
        "README.md",
        "before_after.png",
        "red_lora_2.safetensors",
    ]
    with pytest.raises(DirectAlignError, match="is there already: name another folder"):
        export_run(small_run, "comfyui")


def test_an_export_that_fails_leaves_nothing(small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk")

    monkeypatch.setattr(export, "write_card", fail)
    with pytest.raises(OSError, match="disk"):
        export_run(small_run, "kohya", tmp_path / "out" / "a")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_that_is_no_lora_is_named(small_run: Path) -> None:
    tensors = load_file(small_run / "lora.safetensors")
    tensors["text_encoder.odd"] = next(iter(tensors.values())).clone()
    save_file(tensors, small_run / "lora.safetensors")
    with pytest.raises(DirectAlignError, match=r"not a LoRA of a transformer: text_encoder\.odd"):
        export_run(small_run, "kohya")


def test_a_shard_size_that_cannot_be_read(tmp_path: Path) -> None:
    run = write_finished(tmp_path / "run", finished_recipe("flux", "world:flux"), updates_of_shape(LAYER))
    with pytest.raises(DirectAlignError, match="--max-shard-size big: give a whole number"):
        export_run(run, "folder", merge=True, max_shard_size="big")


# --- the card ---------------------------------------------------------------------------------------------------------


def test_the_card_says_what_the_run_was(small_run: Path) -> None:
    out = export_run(small_run, "kohya")
    card = ModelCard.load(out / "README.md")
    told = card.data.to_dict()
    assert told["base_model"] == "black-forest-labs/FLUX.1-dev" and told["base_model_relation"] == "adapter" and told["library_name"] == "diffusers"
    assert told["license"] == "other" and told["license_name"] == "flux-1-dev-non-commercial-license" and told["license_link"].startswith("https://")
    assert {"lora", "srpo", "text-to-image"} <= set(told["tags"])
    for words in (
        "No trigger words",
        "held in 4bit",
        "0.125 (0.080 to 0.180, n = 256)",
        "0.0239",
        "Not measured",
        "commit 0123456789abcdef",
        "Seed 7",
        *PROMPTS,
    ):
        assert words in card.text, words
    assert "<lora:red_lora_2:1>" in card.text and "load_lora_weights" in card.text and "LoraLoaderModelOnly" in card.text


def test_the_recipe_in_the_card_is_whole_and_shows_no_path_of_the_machine(small_run: Path) -> None:
    text = (export_run(small_run, "diffusers") / "README.md").read_text()
    recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    ours = yaml.safe_load((small_run / "run.yaml").read_text())
    assert recipe.pop("data") == ours.pop("data") | {"prompts": "<local>/prompts.txt"} and recipe == ours
    assert "/home" not in text and str(small_run) not in text


def test_before_and_after_stand_in_one_picture(small_run: Path) -> None:
    out = export_run(small_run, "diffusers")
    with Image.open(out / "before_after.png") as picture:
        assert picture.size == (64, 112)
        assert picture.getpixel((30, 40)) == (0, 0, 255) and picture.getpixel((30, 100)) == (255, 0, 0)


def test_a_run_that_measured_and_showed_nothing_says_so(small_run: Path) -> None:
    (small_run / "summary.json").write_text(json.dumps({"before": None, "after": None}))
    for file in (small_run / "samples").glob("*.png"):
        file.unlink()
    out = export_run(small_run, "diffusers")
    text = (out / "README.md").read_text()
    assert "no measurement before and after" in text and "no pair of sample grids" in text and "commit not recorded" in text
    assert not (out / "before_after.png").exists()


def test_the_licence_comes_from_the_readme_then_from_what_is_known() -> None:
    def base(path: str) -> Licence | None:
        return base_of(ModelConfig.model_validate({"family": "flux", "path": path})).licence

    assert base("Qwen/Qwen-Image") == base("world:flux") == Licence("apache-2.0")
    assert base("someone/else") is None


def test_the_readme_beside_the_weights_knows_best(tmp_path: Path) -> None:
    folder = tmp_path / "my-flux"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_name_or_path": "black-forest-labs/FLUX.1-schnell"}')
    model = ModelConfig.model_validate({"family": "flux", "path": str(folder)})
    assert base_of(model).licence == Licence("apache-2.0") and base_of(model).hub_id == "black-forest-labs/FLUX.1-schnell"
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: mine\nlicense_link: https://x.org/l\n---\n# Title\n")
    assert base_of(model).licence == Licence("other", "mine", "https://x.org/l")
    (folder / "README.md").write_text("---\n: [\n---\n")
    assert base_of(model).licence == Licence("apache-2.0")


def test_an_unknown_licence_is_asked_for(tmp_path: Path) -> None:
    run = write_finished(tmp_path / "run", finished_recipe("flux", "someone/else"), updates_of_shape(LAYER))
    card = ModelCard.load(export_run(run, "diffusers") / "README.md")
    assert card.data.license == "unknown" and "To be filled in" in card.text
