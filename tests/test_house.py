"""House rules: layers of imports, sizes, words, nothing swallowed or unpickled, sound recipes."""

from __future__ import annotations

import ast
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.api import read_configuration

from directalign.config import RunConfig
from directalign.config.load import RECIPES, load_run
from directalign.preflight.checks import (
    check_data,
    check_method,
    check_model,
    check_reward,
    check_steps,
    plan,
)
from directalign.preflight.meta_models import meta_model
from directalign.toyworld.assets import write_pictures

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "directalign"
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = [*sorted((ROOT / "benchmarks").glob("*.py")), *sorted((ROOT / "examples").glob("*.py"))]
WORLD = sorted(RECIPES.glob("world_*.yaml"))
REAL = sorted(set(RECIPES.glob("*.yaml")) - set(WORLD))
"""Recipes for published models: found sound without their weights, for a GPU of the size that the
benchmark of memory names."""
LONGEST_FILE, LONGEST_FUNCTION = 600, 60
RETIRED = {
    "Together",
    "ALONE",
    "Ranks",
    "preference_of",
    "Preferring",
    "per_sample",
    "worn",
    "wear_best",
    "swapped_in",
    "CallCounter",
    "take_step",
    "saving_what_was_done",
    "SeenReward",
    "SEES_ONCE",
    "PIXELS_ALONE",
    "Lessons",
    "Taught",
    "Student",
    "Agenda",
    "Doors",
    "FAMILIES",
    "load_family",
}
"""Names of the first edition that the package no longer uses."""
FORBIDDEN = (
    "nan_to_num",
    "weights_only=False",
    "trust_remote_code=True",
    "pickle.load",
    "unsafe_load",
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


# imports


def test_no_import_rule_is_broken() -> None:
    """In a process of its own: the linter disables all loggers that exist."""
    code = (
        "from importlinter.cli import lint_imports as lint; raise SystemExit(lint(no_cache=True))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_folder_has_a_layer() -> None:
    contracts = read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    placed = {
        name.strip().removeprefix("directalign.") for layer in layers for name in layer.split("|")
    }
    found = {
        path.stem
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert found - placed == {"__init__", "__main__"}


def test_files_and_functions_are_short() -> None:
    """Functions without their signature: the options of a command are its help."""
    long_files = {
        name_of(path): length
        for path in MODULES
        if (length := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    long_functions = {
        f"{name_of(path)}:{node.name}": length
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.body[0].lineno + 1) > LONGEST_FUNCTION
    }
    assert long_files == {} and long_functions == {}


def test_retired_names_are_gone() -> None:
    found = {}
    for path in MODULES:
        with path.open("rb") as file:
            names = {token.string for token in tokenize.tokenize(file.readline)}
        found[name_of(path)] = sorted(names & RETIRED)
    assert {name: each for name, each in found.items() if each} == {}


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=name_of)
def test_a_module_says_what_it_is_and_hides_nothing(path: Path) -> None:
    parsed = tree(path)
    assert ast.get_docstring(parsed), "no head"
    assert not any(_is_annotated(node) for node in ast.walk(parsed)) or _has_future_annotations(
        parsed
    ), "no from __future__ import annotations"
    assert [name for name in FORBIDDEN if name in path.read_text(encoding="utf-8")] == []
    assert list(_swallowing(parsed)) == []


def _is_annotated(node: ast.AST) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return True
    return isinstance(node, ast.AnnAssign)


def _has_future_annotations(parsed: ast.Module) -> bool:
    found = [
        node
        for node in parsed.body
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]
    return any(alias.name == "annotations" for node in found for alias in node.names)


def _swallowing(parsed: ast.Module) -> Iterator[int]:
    """Lines of handlers that take anything, or that do nothing with what they take."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.ExceptHandler):
            does_nothing = all(isinstance(each, ast.Pass) for each in node.body)
            if node.type is None or does_nothing:
                yield node.lineno


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("try:\n    f()\nexcept:\n    g()\n", [3]),
        ("try:\n    f()\nexcept Exception:\n    pass\n", [3]),
        ("try:\n    f()\nexcept OSError as error:\n    g(error)\n", []),
    ],
)
def test_the_search_finds_what_it_looks_for(code: str, found: list[int]) -> None:
    assert list(_swallowing(ast.parse(code))) == found


# recipes


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("set") / "pictures", 4)


def read(path: Path, pictures: Path) -> RunConfig:
    """The recipe; one that wants an image set gets a small one."""
    return load_run(
        path, [f"data.images={pictures}"] if load_run(path).data.images is not None else []
    )


@pytest.mark.parametrize("path", WORLD, ids=name_of)
def test_every_recipe_opens_with_what_to_expect_and_is_sound(
    path: Path, pictures: Path, tmp_path: Path
) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
    run = read(path, pictures)
    found = plan(run, tmp_path / "out")
    assert found.warnings == () and dict(found.findings)["model"].startswith(run.model.path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", REAL, ids=name_of)
def test_every_recipe_of_a_real_model_is_sound_without_its_weights(
    path: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the root; memory is estimated in tests/preflight and recorded by
    benchmarks/recipe_memory.py."""
    monkeypatch.chdir(ROOT)
    assert path.read_text(encoding="utf-8").startswith("# ")
    run = load_run(
        path,
        [f"data.images={pictures}", "data.buckets=null"]
        if load_run(path).data.images is not None
        else [],
    )
    check_reward(run)
    check_method(run)
    check_steps(run)
    model = meta_model(run.model)
    check_model(run, model)
    assert check_data(run, 1, False)[1] == []


def test_the_recipes_are_all_there() -> None:
    names = {path.stem for path in [*WORLD, *REAL]}
    assert {
        "flux_srpo",
        "flux_srpo_lora_24gb",
        "flux_srpo_offline",
        "sd35_srpo_lora",
        "sdxl_srpo_lora",
        "sd15_srpo_lora",
        "qwen_srpo_lora",
    } <= names
    assert {
        "world_srpo",
        "world_direct_align",
        "world_official",
        "world_sd",
        "world_sd_v",
        "world_offline",
        "world_srpo_lora",
    } <= names


def test_srpo_and_its_contrast_have_the_same_budget(pictures: Path) -> None:
    ours, theirs = (load_run(name) for name in ("world_srpo", "world_direct_align"))
    for section in ("seed", "model", "reward", "rollout", "data", "train", "evaluate"):
        assert getattr(ours, section) == getattr(theirs, section), section


def test_the_sd_recipes_differ_in_the_checkpoint_alone() -> None:
    epsilon, v = (load_run(name) for name in ("world_sd", "world_sd_v"))
    same = {"name": v.name, "model": v.model}
    assert epsilon.model_copy(update=same) == v and epsilon.model.path != v.model.path
