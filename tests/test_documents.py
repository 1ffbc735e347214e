"""README and docs: links lead somewhere, Python imports resolve, commands and options exist."""

import ast
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import typer

from directalign.cli import app
from document_commands import CODE, command_lines

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_links_lead_to_files(document):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (document.parent / target).exists()] == []


def test_python_examples_import_what_exists():
    lines = [
        line.removeprefix(">>> ")
        for document in DOCUMENTS
        for language, code in CODE.findall(document.read_text(encoding="utf-8"))
        if language == "python"
        for line in dedent(code).splitlines()
    ]
    imports = [line for line in lines if re.match(r"(from|import) directalign", line)]
    assert imports
    for line in imports:
        exec(compile(ast.parse(line), line, "exec"), {})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_commands_and_options_exist(document):
    for words in command_lines(document.read_text(encoding="utf-8")):
        command: Any = typer.main.get_command(app)
        rest = words[1:]
        while commands := getattr(command, "commands", None):
            default = commands.get("serve")  # `arena SOURCE` means `arena serve SOURCE`
            command = commands[rest.pop(0)] if rest[0] in commands else default
            assert command is not None, " ".join(words)
        known = {option for each in command.params for option in each.opts + each.secondary_opts}
        given = [word.split("=")[0] for word in rest if word.startswith("--")]
        assert not set(given) - known - {"--help"}, " ".join(words)


def test_tests_that_hold_a_promise_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text("utf-8"))
    assert named
    assert [pair for pair in named if f"def {pair[1]}(" not in (ROOT / pair[0]).read_text()] == []
