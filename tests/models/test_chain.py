"""For every architecture: train, resume, sample, export, and back into the library's pipeline."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

import directalign
from directalign.config import LoRAConfig
from directalign.evaluation.generate import sample_images
from directalign.export import export_run
from models.cases import CASES, PLAIN, load_trained
from models.library_calls import write_edits
from models.qwen_edit_calls import source_reader
from models.srpo_by_hand import PROMPTS
from models.test_equality import close, image_of, noise_for, rollout_of
from tiny import SIZE

RECORDED = ("flux2_klein", "sd3", "qwen_image", "z_image", "kolors", "hidream")
"""Beside those of edits; others: tests/cli/test_models_end_to_end.py."""


def recipe_of(case, folder):
    guidance = {"embedded_guidance": case.embedded}
    lora = {"rank": 2, "alpha": 3}
    own = {}
    if case.edits:
        redness = {"label": "red", "reward": {"name": "pixels", "statistic": "redness"}}
        preserved = {"label": "kept", "weight": 0.5, "reward": {"name": "preservation"}}
        own["reward"] = {"name": "mix", "members": [redness, preserved]}
        own["data"] = {"edits": str(write_edits(folder))}
        own["train"] = {"num_steps": 1, "learning_rate": 0.1}
    return {
        "name": case.architecture,
        "model": {"architecture": case.architecture, "path": str(folder), "lora": lora},
        "reward": {"name": "pixels", "statistic": "redness"},
        "method": {"name": "srpo", "form": "absolute", **guidance},
        "rollout": {"num_inference_steps": 2, "height": SIZE, "width": SIZE, **guidance},
        "data": {"prompts": str(folder / "prompts.txt")},
        "train": {"num_steps": 1, "learning_rate": 0.1, "sample_prompts": PROMPTS[:1]},
        "trackers": {"tensorboard": False},
        "evaluate": {"num_samples": 1, "batch_size": 1, "references": False},
        **own,
    }


@pytest.mark.parametrize("name", PLAIN)
def test_train_resume_sample_export_and_back_into_the_pipeline(name, tmp_path):
    case, out = CASES[name], tmp_path / "out"
    folder = case.folder(tmp_path / "model")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_of(case, folder)))
    first = directalign.Run.from_recipe(recipe).train(out, progress=False)
    longer = directalign.Run.from_recipe(recipe, {"train.num_steps": 2})
    last = longer.train(out, resume=True, progress=False)
    assert (first["num_steps"], last["num_steps"]) == (1, 2)
    image = folder / "0.png" if case.edits else None
    (file,) = sample_images(out, PROMPTS[:1], [0], tmp_path / "images", image=image)
    assert Image.open(file).size == (SIZE, SIZE)
    if case.edits or name in RECORDED:  # the recorded call makes the same image
        call, names = json.loads((tmp_path / "images/images.jsonl").read_text()), {}
        code = call["diffusers"]["code"]
        if case.reads_sources:  # its processor needs torchvision
            names["reader"] = source_reader(folder)
            code = code.replace(f"({str(folder)!r}", f"({str(folder)!r}, processor=reader")
        exec(code, names)
        made, sampled = (
            np.asarray(each).astype(int) for each in (names["image"], Image.open(file))
        )
        assert np.abs(made - sampled).max() <= 1
    exported = export_run(out, "diffusers")

    model = case.load(folder, tune="lora", lora=LoRAConfig(rank=2, alpha=3))
    noise, rollout = noise_for(model), rollout_of(case, 2.0)
    base = image_of(model, case, noise, rollout)
    load_trained(model, out)
    trained = image_of(model, case, noise, rollout)
    assert (trained - base).abs().max() > 1e-3
    model.save(tmp_path)
    assert (tmp_path / "lora.safetensors").read_bytes() == (out / "lora.safetensors").read_bytes()
    pipeline = case.pipeline(folder)
    (weights,) = exported.glob("*.safetensors")
    pipeline.load_lora_weights(exported, weight_name=weights.name)
    close(case.call(pipeline, model, PROMPTS, noise, rollout), trained, atol=1e-4)
