"""The rules of the house: imports, sizes, names; nothing swallowed or unpickled."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from importlinter.api import read_configuration
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "directalign"


def python_files(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


MODULES = python_files("src/directalign", "experiments", "tools")
SCRIPTS = python_files("benchmarks", "examples")
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_COLUMNS = 600, 60, 100
MAX_PACKAGE_FILES = 160
MAX_LINES = {
    ("src/directalign",): 32_000,
    ("tests",): 26_000,
    ("experiments", "tools"): 6_000,
}
FORBIDDEN_CODE = (
    "nan_to_num",
    "weights_only=False",
    "trust_remote_code=True",
    "pickle.load",
    "unsafe_load",
)
FORBIDDEN_NAMES = frozenset(
    """
    Together together Ranks ALONE Preference Asked preference_of Preferring Words Running Move
    WindowGrid UniformWindow ConstantGainWindow landing REACH EDGE per_sample worn wear_best
    swapped_in trust CallCounter Levels Job Parts Updater settle take_step saving_what_was_done
    Chosen Place Feed Subject Item Look Shown About Ledger SeenReward SEES_ONCE PIXELS_ALONE Lessons
    Taught Student Told told hear heard Held passing Piece Rounded Agenda Blind Doors Guard album
    wall strips story plane family families Family FAMILIES load_family say Say
    """.split()  # noqa: SIM905
)
"""Names of earlier versions; each has a standard term now."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


# --- imports ---


def test_no_import_rule_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    code = lint_imports(config_filename="pyproject.toml", no_cache=True, no_logo=True)
    assert code == os.EX_OK, capsys.readouterr().out


def test_every_subpackage_has_a_layer() -> None:
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


# --- sizes ---


@pytest.mark.parametrize("folders", MAX_LINES, ids="+".join)
def test_the_code_is_small(folders: tuple[str, ...]) -> None:
    assert sum(len(lines_of(path)) for path in python_files(*folders)) <= MAX_LINES[folders]


def test_the_package_has_few_files() -> None:
    assert len(python_files("src/directalign")) <= MAX_PACKAGE_FILES


def test_files_and_lines_are_short() -> None:
    too_long = {name_of(path) for path in MODULES if len(lines_of(path)) > MAX_FILE_LINES}
    too_wide = {
        f"{name_of(path)}:{number}"
        for path in MODULES
        for number, line in enumerate(lines_of(path), start=1)
        if len(line) > MAX_COLUMNS
    }
    assert (too_long, too_wide) == (set(), set())


def test_functions_are_short() -> None:
    assert {
        f"{name_of(path)}:{node.lineno} {node.name}": length
        for path in MODULES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := _length(node)) > MAX_FUNCTION_LINES
    } == {}


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function; a command's are those of its body, as its options are declarations."""
    first = function.body[0].lineno if _is_command(function) else function.lineno
    return (function.end_lineno or first) - first + 1


def _is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any("typer" in ast.dump(each.annotation or ast.Pass()) for each in function.args.args)


# --- names and contents ---


def test_no_name_of_earlier_versions_is_defined() -> None:
    found = {
        f"{name_of(path)}:{line} {name}"
        for path in MODULES
        for name, line in _defined(tree(path))
        if name in FORBIDDEN_NAMES
    }
    assert found == set()


def _defined(parsed: ast.Module) -> Iterator[tuple[str, int]]:
    """(name, line) of each class, function, argument and variable that is defined."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name.lstrip("_"), node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg.lstrip("_"), node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id.lstrip("_"), node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr.lstrip("_"), node.lineno


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=name_of)
def test_a_module_has_a_docstring_and_hides_nothing(path: Path) -> None:
    parsed = tree(path)
    assert ast.get_docstring(parsed), "no module docstring"
    assert _has_future_annotations(parsed) or not any(map(_is_annotated, ast.walk(parsed))), (
        "no from __future__ import annotations"
    )
    assert [code for code in FORBIDDEN_CODE if code in path.read_text(encoding="utf-8")] == []
    assert list(_swallowing(parsed)) == []


def _is_annotated(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.AnnAssign)


def _has_future_annotations(parsed: ast.Module) -> bool:
    return any(
        isinstance(node, ast.ImportFrom)
        and node.module == "__future__"
        and any(alias.name == "annotations" for alias in node.names)
        for node in parsed.body
    )


def _swallowing(parsed: ast.Module) -> Iterator[int]:
    """Lines of handlers that catch everything, or that do nothing with what they catch."""
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
def test_swallowed_errors_are_found(code: str, found: list[int]) -> None:
    assert list(_swallowing(ast.parse(code))) == found
