"""`--format checkpoint`: one file in the makers' layout, and runs on single-file bases."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from directalign.export import export_run
from directalign.types import DirectAlignError
from finished_runs import finished_recipe, write_finished
from low_rank_updates import random_updates, updates_of_shape
from tiny import write_sd, write_sd3

QUERY = {"down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (16, 16)}


def patterned(like: torch.Tensor, start: int) -> torch.Tensor:
    """A run of 4093 bfloat16 numbers that begins elsewhere for each tensor: faster than random."""
    run = torch.arange(0x3000, 0x3000 + 4093, dtype=torch.int16).view(torch.bfloat16).roll(start)
    return run.repeat(like.numel() // len(run) + 1)[: like.numel()].view(like.shape)


def test_flux_in_its_makers_layout_is_read_by_diffusers(tmp_path, tiny_flux):
    """At full width, the only one that readers accept, with one block of each kind."""
    base, sizes = tmp_path / "flux", {"num_layers": 1, "num_single_layers": 1}
    shutil.copytree(tiny_flux, base)
    shutil.rmtree(base / "transformer")
    given = json.loads((tiny_flux / "transformer/config.json").read_text())
    kept = {key: given[key] for key in ("joint_attention_dim", "pooled_projection_dim")}
    kept |= {"in_channels": given["in_channels"], "guidance_embeds": True}
    with torch.device("meta"):
        network = FluxTransformer2DModel(**sizes, **kept)
    network.save_config(base / "transformer")
    weights = {
        name: patterned(tensor, 89 * place)
        for place, (name, tensor) in enumerate(network.state_dict().items())
    }
    save_file(weights, base / "transformer/diffusion_pytorch_model.safetensors")
    updates = random_updates(network, ("attn.to_q", "attn.add_k_proj", "norm.linear"))
    recipe = finished_recipe("flux", base, dtype="bfloat16")
    run = write_finished(tmp_path / "run", recipe, updates)

    (file,) = export_run(run, "checkpoint").glob("*.safetensors")
    with safe_open(file, "pt") as content:
        assert "double_blocks.0.img_attn.qkv.weight" in content.keys()  # noqa: SIM118
        assert content.metadata()["modelspec.architecture"] == "flux-1"
    read: Any = FluxTransformer2DModel.from_single_file(
        str(file), config=str(base), subfolder="transformer", torch_dtype=torch.bfloat16
    )
    for name, tensor in read.state_dict().items():
        expected, update = weights[name], updates.get(name.removesuffix(".weight"))
        if update is not None and name.endswith(".weight"):
            expected = update.applied(expected).bfloat16()
        assert torch.equal(tensor, expected), name


def test_other_models_are_refused(tmp_path, tiny_flux):
    sd2 = write_sd(tmp_path / "sd2")
    settings = sd2 / "unet/config.json"
    settings.write_text(
        json.dumps(json.loads(settings.read_text()) | {"cross_attention_dim": 1024})
    )
    for architecture, base, message in (
        (
            "flux",
            tiny_flux,
            "diffusers and ComfyUI read FLUX.1 from one file only at its width of 3072",
        ),
        (
            "sd3",
            write_sd3(tmp_path / "sd3"),
            "writes sd, sdxl, flux, and model.architecture is sd3",
        ),
        ("sd", sd2, "is a Stable Diffusion 2, whose text encoder lacks a layer"),
    ):
        run = tmp_path / f"run-{base.name}"
        write_finished(run, finished_recipe(architecture, base), updates_of_shape({"x": (4, 4)}))
        with pytest.raises(DirectAlignError, match=f"--format checkpoint: .*{message}"):
            export_run(run, "checkpoint")
        assert not (run / "export").exists()


def test_a_checkpoint_serves_as_a_base_and_its_card_opens_it(tmp_path):
    """SD with v-prediction: the marks of the file, and the code of cards of runs on the file."""
    base = write_sd(tmp_path / "sd", prediction_type="v_prediction")
    update = updates_of_shape(QUERY)
    run = write_finished(tmp_path / "a", finished_recipe("sd", base), update, "unet")
    (file,) = export_run(run, "checkpoint", dtype="float32").glob("*.safetensors")
    assert load_file(file)["v_pred"].numel() == 0

    recipe = finished_recipe("sd", file, components=str(base))
    again = write_finished(tmp_path / "b", recipe, update, "unet")
    codes = []
    for out, form in ((tmp_path / "lora", "diffusers"), (tmp_path / "one", "checkpoint")):
        text = (export_run(again, form, out) / "README.md").read_text()
        assert str(tmp_path) not in text
        code = text.split("```python\n")[1].split("image = ")[0]
        for path in (file, base):
            code = code.replace(f"<path of {path.name}>", str(path))
        code = code.replace("'./", f"'{out}/").replace("FOLDER = '.'", f"FOLDER = {str(out)!r}")
        names: dict[str, Any] = {}
        exec(code, names)
        assert isinstance(names["pipe"], StableDiffusionPipeline)
        codes.append(code)
    file.rename(tmp_path / "gone.safetensors")  # the code is the same on another machine
    (tmp_path / "lora").rename(tmp_path / "before")
    text = (export_run(again, "diffusers", tmp_path / "lora") / "README.md").read_text()
    assert text == (tmp_path / "before/README.md").read_text()


def test_a_checkpoint_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    base = write_sd(tmp_path / "sd")
    run = write_finished(
        tmp_path / "run", finished_recipe("sd", base), updates_of_shape(QUERY), "unet"
    )
    before = sorted(run.rglob("*"))
    wrong = updates_of_shape(dict.fromkeys(QUERY, (9, 16)))
    monkeypatch.setattr("directalign.evaluation.run_weights.RunWeights.updates", lambda _: wrong)
    with pytest.raises(DirectAlignError, match="the base model has no such layer, or one of anot"):
        export_run(run, "checkpoint")
    monkeypatch.undo()
    monkeypatch.setattr("directalign.export.checkpoint_file.save_file", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_run(run, "checkpoint")
    assert sorted(run.rglob("*")) == before


def _interrupted(tensors: Any, file: Path, **_: Any) -> None:
    file.write_bytes(b"half")
    raise KeyboardInterrupt
