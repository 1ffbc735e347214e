"""The whole method in one short file computes what the trainer computes, weight by weight."""

import ast
import importlib.util
import inspect
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from directalign.config.load import load_run
from directalign.data.prompts import PromptStream
from directalign.toyworld import assets
from directalign.toyworld.scenes import train_captions
from directalign.training import run

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "one_file.py"
UPDATES, BATCH = 3, 2
ALLOWED = {"torch", "diffusers", "transformers", "PIL"}


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("one_file", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def recipe():
    """The recipe that the example says it equals, with small batches and next to no measuring."""
    small = [
        f"train.num_steps={UPDATES}",
        f"data.batch_size={BATCH}",
        "evaluate.num_samples=1",
        "evaluate.every=0",
    ]
    few_samples = ["train.sample_every=0", "train.sample_prompts=[a red star on a navy background]"]
    return load_run("world_srpo", [*small, *few_samples])


@pytest.fixture(scope="module")
def world_folder(tmp_path_factory):
    return assets.export(tmp_path_factory.mktemp("world"))[0].parent


@pytest.fixture(scope="module")
def trained(recipe, tmp_path_factory):
    out = run(recipe, tmp_path_factory.mktemp("run") / "out", resume=False)
    return load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")


def test_it_equals_the_trainer_after_three_updates(example, recipe, world_folder, trained, capsys):
    world = example.World(str(world_folder))
    before = {name: weight.clone() for name, weight in world.pipe.transformer.state_dict().items()}
    stream = PromptStream(train_captions(), recipe.seed)
    example.align(world, [stream.batch(step, size=BATCH) for step in range(UPDATES)])
    after = world.pipe.transformer.state_dict()
    assert after.keys() == trained.keys()
    apart = sum((after[name] - trained[name]).double().square().sum() for name in trained)
    moved = sum((after[name] - before[name]).double().square().sum() for name in trained)
    # of the update's norm: AdamW enlarges the rounding of weights with a tiny gradient
    assert float((apart / moved).sqrt()) <= 1e-4 and float(moved) > 0
    assert capsys.readouterr().out.count("reward") == UPDATES


def test_its_defaults_are_the_recipe_s(example, recipe):
    defaults = {
        name: each.default for name, each in inspect.signature(example.align).parameters.items()
    }
    assert (
        defaults["seed"] == recipe.seed and defaults["learning_rate"] == recipe.train.learning_rate
    )
    assert defaults["tolerance"] == recipe.method.anchor.tolerance
    assert (recipe.method.control_phrases.positive, recipe.method.control_phrases.negative) == (
        example.POSITIVE,
        example.NEGATIVE,
    )
    assert recipe.rollout.num_inference_steps == example.STEPS


def test_it_is_short_and_needs_the_mathematics_alone():
    text = EXAMPLE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 145
    imported: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module
            imported.add(node.module)
    own = {name for name in imported if name.split(".")[0] == "directalign"}
    assert own and all(
        name.startswith("directalign.diffusion") or name == "directalign.methods.objective_math"
        for name in own
    )
    assert {name.split(".")[0] for name in imported - own} <= ALLOWED | sys.stdlib_module_names
