"""Refusals of an export, its completeness, and its model card."""

import errno
import json
import os
import shutil
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from directalign import export
from directalign.config import ModelConfig
from directalign.evaluation.generate import sample_images
from directalign.export import export_run
from directalign.export.finished_run import BaseModelInfo, License, base_model_info
from directalign.export.lora_formats import convert
from directalign.io import atomic
from directalign.types import DirectAlignError
from finished_runs import PROMPTS, finished_recipe, write_finished
from low_rank_updates import updates_of_shape

LAYER = {"transformer_blocks.0.attn.to_out.0": (16, 16)}
FLUX_DEV = "black-forest-labs/FLUX.1-dev"


@pytest.fixture
def run(tmp_path):
    """A LoRA of one layer of a FLUX on the Hub, which is not downloaded."""
    recipe = finished_recipe("flux", FLUX_DEV, quantization="4bit")
    return write_finished(tmp_path / "run", recipe, updates_of_shape(LAYER))


def test_a_folder_without_a_run_and_an_unfinished_run_are_refused(tmp_path):
    with pytest.raises(DirectAlignError, match="holds no run"):
        export_run(tmp_path, "kohya")
    unfinished = write_finished(tmp_path / "run", finished_recipe("flux", "a/b"))
    message = r"lora\.safetensors: .* is not finished and has no checkpoint; continue .*run$"
    with pytest.raises(DirectAlignError, match=message):
        export_run(unfinished, "kohya")
    (unfinished / "checkpoints" / "step-000004").mkdir(parents=True)
    with pytest.raises(DirectAlignError, match=r"step-000004: damaged \(manifest\.json"):
        sample_images(unfinished, ["a"], [0], tmp_path / "images")
    assert not (tmp_path / "images").exists()


KOHYA_MERGED = {"form": "kohya", "merge": True}
FOLDER_MERGED = {"form": "folder", "merge": True}
WRONG = [
    ("lora", {"form": "folder"}, "trained a LoRA; add --merge"),
    ("lora", KOHYA_MERGED, "omit it for --format kohya"),
    ("full", FOLDER_MERGED, "not a LoRA; omit --merge"),
    ("lora", FOLDER_MERGED | {"max_shard_size": "big"}, "--max-shard-size big: give a whole"),
]


@pytest.mark.parametrize(("tune", "arguments", "message"), WRONG)
def test_wrong_options_are_refused(tune, arguments, message, tmp_path):
    recipe = finished_recipe("flux", "world:flux", tune)
    run = write_finished(tmp_path / "run", recipe, updates_of_shape(LAYER))
    (run / "transformer").mkdir()
    with pytest.raises(DirectAlignError, match=message):
        export_run(run, **arguments)
    assert not list(run.glob("export/*"))


def test_an_existing_export_is_not_overwritten_and_a_failed_one_leaves_no_files(
    run, tmp_path, monkeypatch
):
    out = export_run(run, "comfyui")
    files = ["README.md", "before_after.png", "red_lora_2.safetensors"]
    assert out == run / "export" / "comfyui"
    assert sorted(file.name for file in out.iterdir()) == files
    with pytest.raises(DirectAlignError, match="exists already; name another folder"):
        export_run(run, "comfyui")

    def fail(error: Exception) -> None:
        def raises(*_: object) -> None:
            raise error

        monkeypatch.setattr(export, "write_card", raises)

    fail(OSError("disk"))
    with pytest.raises(OSError, match="disk"):
        export_run(run, "kohya", tmp_path / "out" / "a")
    fail(SafetensorError("I/O error: No space left on device (os error 28)"))
    with pytest.raises(DirectAlignError, match=r"out/a: no space left on the disk; free some, th"):
        export_run(run, "kohya", tmp_path / "out" / "a")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_the_rights_of_new_files(run, tmp_path, mask):
    before = os.umask(mask)
    try:
        out = export_run(run, "diffusers")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in out.iterdir()} == {0o666 & ~mask}


def test_a_full_disk_leaves_the_file_of_before(tmp_path):
    file = tmp_path / "a.png"
    atomic.write_text(file, "before")
    for code in (errno.ENOSPC, errno.EDQUOT):
        with (
            pytest.raises(DirectAlignError, match=r"a\.png: no space"),
            atomic.new_file(file) as part,
        ):
            part.write_bytes(b"half")
            raise OSError(code, os.strerror(code))
    with pytest.raises(KeyError), atomic.new_file(file) as part:
        part.write_bytes(b"half")
        raise KeyError
    assert [each.read_text() for each in tmp_path.iterdir()] == ["before"]


def test_of_two_exports_at_once_one_is_whole_and_one_refused(run, tmp_path, monkeypatch):
    out, write = tmp_path / "out", export.write_card
    (tmp_path / ".partial-out").mkdir()  # of a killed process
    (tmp_path / ".partial-out" / "half.safetensors").touch()

    def meanwhile(*arguments: object) -> None:
        with pytest.raises(DirectAlignError, match="another process is writing it"):
            export_run(run, "comfyui", out)
        write(*arguments)

    monkeypatch.setattr(export, "write_card", meanwhile)
    assert [file.name for file in export_run(run, "kohya", out).iterdir()] == [
        file.name for file in out.iterdir() if file.name != "half.safetensors"
    ]
    assert [file.name for file in tmp_path.iterdir() if "out" in file.name] == ["out"]
    with pytest.raises(DirectAlignError, match="exists already"), atomic.new_folder(tmp_path / "b"):
        (tmp_path / "b").mkdir()
    assert not list((tmp_path / "b").iterdir()) and not list(tmp_path.glob(".partial*"))


@pytest.mark.parametrize("change", [lambda tensor: 2 * tensor, lambda tensor: tensor[..., :4]])
def test_a_file_that_readers_take_for_another_update_is_refused(run, monkeypatch, change):
    def wrong(*arguments: Any) -> dict[str, Any]:
        return {k: change(t) if t.ndim else t for k, t in convert(*arguments).items()}

    monkeypatch.setattr("directalign.export.weights.convert", wrong)
    for form in ("diffusers", "comfyui", "kohya"):
        with pytest.raises(DirectAlignError, match=rf"--format {form}: diffusers .*another update"):
            export_run(run, form)
    assert not list(run.glob("export/*"))


CHANGES = {
    "not finite": lambda each: each * float("nan"),
    "type int8|type I8": lambda each: each.to(torch.int8),
    "shape|another update|other layers": lambda each: each.T,
}


@pytest.mark.parametrize(("message", "change"), CHANGES.items())
def test_weights_that_cannot_be_right_are_refused(flux_run, message, change):
    file = flux_run / "lora.safetensors"
    save_file({key: change(each).contiguous() for key, each in load_file(file).items()}, file)
    for use in (
        lambda: export_run(flux_run, "diffusers"),
        lambda: sample_images(flux_run, ["a red star"], [0], flux_run / "images"),
    ):
        with pytest.raises(DirectAlignError, match=message) as caught:
            use()
        assert str(file) in str(caught.value) or "diffusers" in str(caught.value)
    assert not (flux_run / "images").exists()


def test_weights_too_large_for_the_dtype_are_refused(flux_run):
    file = flux_run / "lora.safetensors"
    save_file({key: each * 0 + 1e6 for key, each in load_file(file).items()}, file)
    with pytest.raises(DirectAlignError, match=r"--dtype float16: .* too large"):
        export_run(flux_run, "diffusers", dtype="float16")
    assert not list(flux_run.glob("export/*"))


def test_a_file_with_other_tensors_is_refused(run):
    tensors = load_file(run / "lora.safetensors")
    tensors["text_encoder.odd"] = next(iter(tensors.values())).clone()
    save_file(tensors, run / "lora.safetensors")
    with pytest.raises(DirectAlignError, match=r"not a LoRA of a transformer: text_encoder\.odd"):
        export_run(run, "kohya")


# --- model card -----------------------------------------------------------------------------------


def test_the_card_has_metadata_measures_and_usage(run):
    card = ModelCard.load(export_run(run, "kohya") / "README.md")
    data = card.data.to_dict()
    expected = {
        "base_model": FLUX_DEV,
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "license": "other",
        "license_name": "flux-1-dev-non-commercial-license",
    }
    assert data | expected == data and data["license_link"].startswith("https://")
    assert {"lora", "srpo", "text-to-image"} <= set(data["tags"])
    for text in (
        "No trigger words",
        "quantized to 4bit",
        "0.125 (0.080 to 0.180, n = 256)",
        "0.0239",
        "Not measured",
        "commit 0123456789abcdef",
        "Seed 7",
        "<lora:red_lora_2:1>",
        "pipe.load_lora_weights(FOLDER, weight_name='red_lora_2.safetensors')",
        "LoraLoaderModelOnly",
        *PROMPTS,
    ):
        assert text in card.text, text


def test_the_card_has_the_recipe_without_local_paths_and_the_grids(run):
    out = export_run(run, "diffusers")
    text = (out / "README.md").read_text()
    recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    ours = yaml.safe_load((run / "run.yaml").read_text())
    assert recipe.pop("data") == ours.pop("data") | {"prompts": "<local>/prompts.txt"}
    assert recipe == ours and "/home" not in text and str(run) not in text
    given = yaml.safe_load((run / "run.yaml").read_text())
    for path in ("C:\\Users\\me\\prompts.txt", "\\\\server\\me\\prompts.txt"):  # of Windows
        (run / "run.yaml").write_text(
            yaml.safe_dump(given | {"data": given["data"] | {"prompts": path}})
        )
        text = (export_run(run, "kohya", run / f"card-{path.count(':')}") / "README.md").read_text()
        assert "<local>/prompts.txt" in text and "\\me" not in text
    with Image.open(out / "before_after.png") as grid:
        assert grid.size == (64, 112)
        assert grid.getpixel((30, 40)) == (0, 0, 255) and grid.getpixel((30, 100)) == (255, 0, 0)


def test_the_code_of_the_card_opens_a_base_in_a_single_file(tiny_flux, tmp_path):
    """With the components that the loader takes; paths stand for folders of this machine."""
    file = tmp_path / "base.safetensors"
    shutil.copy(tiny_flux / "transformer" / "diffusion_pytorch_model.safetensors", file)
    recipe = finished_recipe("flux", file, components=str(tiny_flux))
    run = write_finished(tmp_path / "run", recipe, updates_of_shape(LAYER))
    out = export_run(run, "diffusers")
    code = (out / "README.md").read_text().split("```python\n")[1].split("image = ")[0]
    assert str(tmp_path) not in code
    for path in (file, tiny_flux):
        assert f"<path of {path.name}>" in code
        code = code.replace(f"<path of {path.name}>", str(path))
    found: dict[str, Any] = {}
    exec(code.replace("FOLDER = '.'", f"FOLDER = {str(out)!r}"), found)
    weights, stored = found["pipe"].transformer.state_dict(), load_file(file)
    layer = next(iter(LAYER))
    assert torch.equal(weights[f"{layer}.base_layer.weight"], stored[f"{layer}.weight"].bfloat16())
    assert any("lora" in name for name in weights)


def test_the_card_names_missing_records_and_an_unknown_license(tmp_path):
    recipe = finished_recipe("flux", "someone/else")
    run = write_finished(tmp_path / "run", recipe, updates_of_shape(LAYER))
    (run / "summary.json").write_text(json.dumps({"before": None, "after": None}))
    for file in (run / "samples").glob("*.png"):
        file.unlink()
    out = export_run(run, "diffusers")
    card = ModelCard.load(out / "README.md")
    missing = ("no measurement before", "no pair of sample grids", "commit not recorded")
    assert all(text in card.text for text in (*missing, "To be filled in"))
    assert card.data.license == "unknown" and not (out / "before_after.png").exists()


def test_the_license_is_read_from_the_readme_or_the_list(tmp_path):
    def info(path: object) -> BaseModelInfo:
        model = {"architecture": "flux", "path": str(path)}
        return base_model_info(ModelConfig.model_validate(model))

    apache = License("apache-2.0")
    assert info("Qwen/Qwen-Image").license == info("world:flux").license == apache
    assert info("someone/else").license is None
    folder = tmp_path / "my-flux"
    folder.mkdir()
    schnell = "black-forest-labs/FLUX.1-schnell"
    (folder / "model_index.json").write_text(json.dumps({"_name_or_path": schnell}))
    assert info(folder) == BaseModelInfo(schnell, schnell, apache)
    metadata = "license: other\nlicense_name: mine\nlicense_link: https://x.org/l"
    (folder / "README.md").write_text(f"---\n{metadata}\n---\n# Title\n")
    assert info(folder).license == License("other", "mine", "https://x.org/l")
    (folder / "README.md").write_text("---\n: [\n---\n")
    assert info(folder).license == apache
