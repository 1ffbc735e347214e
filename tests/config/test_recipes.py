"""The recipes of the package: each starts with a comment and passes `directalign check`."""

import json
from pathlib import Path

import pytest

from directalign.config import RunConfig
from directalign.config.load import load_run, recipe_names, recipe_path
from directalign.preflight import plan
from directalign.preflight.checks import (
    check_data,
    check_method,
    check_model,
    check_reward,
    check_steps,
)
from directalign.preflight.meta_models import meta_model
from directalign.toyworld.assets import write_pictures

WORLD = [name for name in recipe_names() if name.startswith("world_")]
WORLD2 = [name for name in recipe_names() if name.startswith("world2_")]
# remote_reward needs a running server: tests/rewards/test_black_box.py
REAL = sorted(set(recipe_names()) - {*WORLD, *WORLD2, "remote_reward"})


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = write_pictures(tmp_path_factory.mktemp("set") / "images", 4)
    files = sorted(folder.glob("*.png"))
    pair = {"prompt": files[0].with_suffix(".txt").read_text("utf-8"), "rejected": files[1].name}
    (folder / "pairs.jsonl").write_text(json.dumps({**pair, "chosen": files[0].name}))
    return folder


def load(name: str, images: Path, *overrides: str) -> RunConfig:
    """The recipe; one that trains on images, or on pairs of them, gets a small set."""
    assert recipe_path(name).read_text(encoding="utf-8").startswith("# ")
    data = load_run(name).data
    if data.pairs is not None:
        return load_run(name, [f"data.pairs={images}/pairs.jsonl"])
    return load_run(name, [f"data.images={images}", *overrides] if data.images is not None else [])


@pytest.mark.parametrize("name", WORLD)
def test_a_recipe_of_the_toy_world_can_run(name, images, tmp_path):
    """Without its activations: tests/preflight traces each method."""
    run = load(name, images)
    found = plan(run, tmp_path / "out")
    assert found.warnings == () and dict(found.findings)["model"].startswith(run.model.path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", WORLD2)
def test_a_recipe_of_the_second_toy_world_can_run(name, world2, tmp_path):
    test_a_recipe_of_the_toy_world_can_run(name, tmp_path, tmp_path)


@pytest.mark.parametrize("name", REAL)
def test_a_recipe_of_a_published_model_is_valid_without_weights(name, images):
    """Its memory is estimated in tests/preflight and by benchmarks/recipe_memory.py."""
    run = load(name, images, "data.buckets=null")
    check_reward(run)
    check_method(run)
    check_steps(run)
    check_model(run, meta_model(run.model))
    assert check_data(run, 1, False)[1] == []


def test_srpo_and_direct_align_have_the_same_budget():
    ours, theirs = (load_run(name) for name in ("world_srpo", "world_direct_align"))
    for section in ("seed", "model", "reward", "rollout", "data", "train", "evaluate"):
        assert getattr(ours, section) == getattr(theirs, section), section
