"""DoRA and LoKr through every use of a run, and runs that start from an existing LoRA."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from directalign.config import LoRAConfig, RunConfig
from directalign.evaluation.run_weights import find_weights
from directalign.export import export_run
from directalign.export.average import average_run
from directalign.models import load_model, lora, trainable
from directalign.types import Conditioning, DirectAlignError
from finished_runs import finished_recipe, image, write_finished

PIPELINES: dict[str, Any] = {"sd": StableDiffusionPipeline, "flux": FluxPipeline}
TYPES = {"dora": {"use_dora": True}, "lokr": {"type": "lokr"}}


def trained_run(folder: Path, architecture: str, base: Path, **settings: Any) -> RunConfig:
    """A finished run with random adapters."""
    recipe = finished_recipe(architecture, base, lora={"rank": 2, "alpha": 4, **settings})
    model = load_model(recipe.model, "cpu")
    write_finished(folder, recipe)
    generator = torch.Generator().manual_seed(1)
    for parameter in trainable(model).values():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    model.save(folder)
    return recipe


def predicted(recipe: RunConfig, folder: Path | None = None, **lora_settings: Any) -> torch.Tensor:
    """A prediction of the model with the run's weights, or with fresh adapters of `settings`."""
    own = LoRAConfig(**lora_settings) if lora_settings else recipe.model.lora
    settings = recipe.model.model_copy(update={"lora": own})
    model = load_model(settings, "cpu")
    if folder is not None:
        find_weights(recipe, folder).load(model)
    elif own.init is not None:
        lora.start_from(model.denoiser, settings, model.part, model.pipeline)
    embedded = 3.5 if recipe.model.architecture == "flux" else None
    cond: Conditioning = model.encode_prompt(["a red star"]).guided(embedded, 1.0)
    noise = torch.randn(1, *model.latent_shape(32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.predict(noise, torch.tensor([0.7], dtype=torch.float64), cond)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("architecture", ["sd", "flux"])
def test_dora_and_lokr_are_exported_to_diffusers(architecture, kind, tmp_path, request):
    base, run = request.getfixturevalue(f"tiny_{architecture}"), tmp_path / "run"
    recipe = trained_run(run, architecture, base, **TYPES[kind])
    trained, untrained = predicted(recipe, run), predicted(recipe)
    assert (trained - untrained).abs().max() > 1e-3

    code = (export_run(run, "diffusers") / "README.md").read_text().split("```python\n")[1]
    code = code.split("image = ")[0].replace(f"<path of {base.name}>", str(base))
    code = code.replace("FOLDER = '.'", f"FOLDER = {str(run / 'export/diffusers')!r}")
    exec(code.replace("bfloat16", "float32"), names := {})
    merged = export_run(run, "folder", merge=True, dtype="float32")
    pipeline = PIPELINES[architecture]
    as_adapter, as_weights = image(names["pipe"]), image(pipeline.from_pretrained(merged))
    assert np.abs(as_adapter - as_weights).max() <= 1e-4
    assert np.abs(as_adapter - image(pipeline.from_pretrained(base))).max() > 1e-3

    for form in ("comfyui", "kohya"):
        with pytest.raises(
            DirectAlignError, match=rf"(?i)--format {form}: the run trained a {kind}"
        ):
            export_run(run, form)
    assert not list(run.glob("export/[ck]*"))
    if kind == "dora":
        with pytest.raises(DirectAlignError, match=r"--strength 0\.5: the run trained a DoRA"):
            export_run(run, "diffusers", strength=0.5)
    else:
        none = export_run(run, "folder", merge=True, dtype="float32", strength=0.0)
        assert np.array_equal(
            image(pipeline.from_pretrained(none)), image(pipeline.from_pretrained(base))
        )
    with pytest.raises(DirectAlignError, match="there are not as many checkpoints"):
        average_run(run, tmp_path / "mean", last=1)


@pytest.mark.parametrize("form", ["run", "diffusers", "comfyui"])
def test_a_run_starts_from_an_existing_lora(form, tmp_path, tiny_sd):
    run = tmp_path / "run"
    recipe = trained_run(run, "sd", tiny_sd)
    wanted = predicted(recipe, run)
    file = run if form == "run" else next(export_run(run, form).glob("*.safetensors"))
    for settings in ({"rank": 2, "alpha": 1}, {"rank": 3, "alpha": 6}):
        found = predicted(recipe, init=str(file), **settings)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    with pytest.raises(DirectAlignError, match=r"has rank 2, and model\.lora\.rank is 1; set"):
        predicted(recipe, init=str(file), rank=1)
    with pytest.raises(DirectAlignError, match=r"model\.lora\.targets leaves out; add it there"):
        predicted(recipe, init=str(file), rank=2, targets=["to_q"])


def test_a_lora_with_a_scale_of_its_own_or_of_other_parts(tmp_path, tiny_sd):
    """diffusers records alpha in the header, kohya's tools beside the factors."""
    run = tmp_path / "run"
    recipe = trained_run(run, "sd", tiny_sd)
    wanted, kohya = predicted(recipe, run), next(export_run(run, "kohya").glob("*.safetensors"))
    tensors = load_file(kohya)
    half = {n: 4 * t if n.endswith("lora_up.weight") else t for n, t in tensors.items()}
    half |= {name: each / 4 for name, each in tensors.items() if name.endswith(".alpha")}
    save_file(half, tmp_path / "kohya.safetensors")
    plain = load_file(run / "lora.safetensors")
    scaled = {n: t / 3 if ".lora_B." in n else t for n, t in plain.items()}
    header = {"lora_adapter_metadata": '{"unet.r": 2, "unet.lora_alpha": 6}'}
    save_file(scaled, tmp_path / "diffusers.safetensors", metadata=header)
    for name in ("kohya", "diffusers"):
        found = predicted(recipe, init=str(tmp_path / f"{name}.safetensors"), rank=2)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    extra = {f"text_encoder.{name}": each.clone() for name, each in plain.items()}
    save_file(plain | extra, tmp_path / "both.safetensors")
    with pytest.raises(DirectAlignError, match="also adapts text_encoder, which is not trained"):
        predicted(recipe, init=str(tmp_path / "both.safetensors"), rank=2)
