"""House rules: layers of imports, sizes, docstrings, nothing swallowed or unpickled."""

import ast
import subprocess
import sys
from pathlib import Path

from importlinter.api import read_configuration

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "directalign"
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = [*sorted((ROOT / "benchmarks").glob("*.py")), *sorted((ROOT / "examples").glob("*.py"))]
LONGEST_FILE, LONGEST_FUNCTION = 600, 60
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef
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


def test_no_import_rule_is_broken():
    """In a process of its own: the linter disables all loggers that exist."""
    code = (
        "from importlinter.cli import lint_imports as lint; raise SystemExit(lint(no_cache=True))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_folder_has_a_layer():
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


def test_files_and_functions_are_short():
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
        if isinstance(node, FUNCTIONS)
        and (length := (node.end_lineno or 0) - node.body[0].lineno + 1) > LONGEST_FUNCTION
    }
    assert long_files == {} and long_functions == {}


def test_modules_have_a_docstring_and_hide_nothing():
    problems = []
    for path in MODULES + SCRIPTS:
        parsed = tree(path)
        nodes = list(ast.walk(parsed))
        text = path.read_text(encoding="utf-8")
        checks = {
            "no docstring": ast.get_docstring(parsed) is None,
            "an exception is swallowed": any(map(_swallows, nodes)),
            **{name: name in text for name in FORBIDDEN},
        }
        problems += [f"{name_of(path)}: {problem}" for problem, is_so in checks.items() if is_so]
    assert problems == []


def _swallows(node: ast.AST) -> bool:
    """Whether it is a handler that takes anything, or that does nothing with what it takes."""
    if not isinstance(node, ast.ExceptHandler):
        return False
    return node.type is None or all(isinstance(each, ast.Pass) for each in node.body)
