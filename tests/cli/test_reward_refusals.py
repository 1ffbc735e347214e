"""Wrong rewards, words, servers and output places through the command: one line that names the key,
exit code 1, nothing left behind.

Models and the environment are in `test_refusals`, single rewards in their own tests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from typer.testing import Result

Command = Callable[..., Result]
CLIP = "{name: clip, path: world:reward}"


def line_of(result: Result) -> str:
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1), result.output
    assert result.stderr.startswith("directalign: ") and "fault of directalign" not in result.stderr
    return result.stderr


def refusal(command: Command, *words: object) -> str:
    """The one line of a command that left nothing."""
    before = sorted(Path().rglob("*"))
    line = line_of(command(*words))
    assert sorted(Path().rglob("*")) == before
    return line


def refused_alike(command: Command, recipe: Path, *overrides: str) -> str:
    """The line of `train`, which `check` says too."""
    asked = (recipe, *(f"--set={each}" for each in overrides), "--out", "out/run")
    line = refusal(command, "train", *asked)
    assert refusal(command, "check", *asked) == line
    return line


@pytest.fixture
def grpo(recipe: Path) -> Path:
    """The recipe for a method that needs no gradient."""
    given = yaml.safe_load(recipe.read_text()) | {
        "method": {"name": "flow_grpo", "form": "absolute", "group_size": 2, "trained_steps": 1}
    }
    recipe.write_text(yaml.safe_dump(given))
    return recipe


@pytest.mark.parametrize("kind", ["clip", "siglip", "mps"])
def test_a_file_that_is_no_weights(command: Command, recipe: Path, kind: str) -> None:
    line = refused_alike(command, recipe, f"reward={{name: {kind}, path: prompts.txt}}")
    assert "reward.path: prompts.txt: " in line and ".safetensors" in line


@pytest.mark.parametrize(
    ("held_out", "complaint"),
    [
        ("{a_pos: %s}", "evaluate.rewards.a_pos: a label has"),
        ("{a/b: %s}", "evaluate.rewards.a/b: a label has"),
    ],
)
def test_labels_that_are_no_names(
    command: Command, recipe: Path, held_out: str, complaint: str
) -> None:
    assert complaint in refused_alike(command, recipe, f"evaluate.rewards={held_out % CLIP}")


def test_a_held_out_reward_that_is_trained_on(command: Command, recipe: Path) -> None:
    same, other = (f"{{name: pixels, statistic: {each}}}" for each in ("redness", "brightness"))
    held_out = f"evaluate.rewards={{same: {same}, other: {other}}}"
    result = command("check", recipe, "--set", held_out)
    assert result.exit_code == 0
    assert "warning: evaluate.rewards.same: is also trained on" in result.stderr
    assert "rewards.other" not in result.stderr


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("gone.txt", "no such prompt file"), ("empty.txt", "no prompts in it; write one a line")],
)
def test_off_topic_prompts_are_blamed_by_their_key(
    command: Command, recipe: Path, name: str, complaint: str
) -> None:
    Path("empty.txt").write_text("")
    assert f"evaluate.control_prompts: {name}: {complaint}" in refused_alike(
        command, recipe, f"evaluate.control_prompts={name}"
    )


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://", "names no host"),
        ("http://localhost:port/score", "is no address"),
        ("http://localhost:8000/sc\u00f6re", "write it as %C3%B6"),
        ("http://local host/score", "write it as %20"),
        ("http://me:secret@localhost/score", "user name or password"),
    ],
)
def test_addresses_that_cannot_be_sent(
    command: Command, grpo: Path, url: str, complaint: str
) -> None:
    line = refused_alike(command, grpo, f"reward={{name: remote, url: '{url}'}}")
    assert "reward.url: " in line and complaint in line and "secret" not in line


@contextmanager
def saying(body: bytes, status: int = 200, promised: int | None = None) -> Iterator[str]:
    """A server that answers each request with this body, of which more may be promised than
    comes."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(promised or len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/score"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("body", "status", "promised", "complaint"),
    [
        (b"[" * 100_000, 200, None, "must send"),
        (b'{"scores": [1' + b"0" * 400 + b"]}", 200, None, "must send"),
        (b"oh", 500, 100, "HTTP 500 Internal Server Error: incomplete response (IncompleteRead)"),
    ],
)
def test_answers_that_are_none(
    command: Command, grpo: Path, body: bytes, status: int, promised: int | None, complaint: str
) -> None:
    with saying(body, status, promised) as url:
        line = refusal(
            command,
            "train",
            grpo,
            f"--set=reward={{name: remote, url: '{url}', retries: 0}}",
            "--out",
            "out/run",
        )
    assert f"reward.url: {url}" in line and complaint in line


FUNCTIONS = """
def raises(images, prompts):
    raise KeyError("a name\\nin two lines")

def leaves(images, prompts):
    raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("name", "complaint"), [("raises", "fails (KeyError: "), ("leaves", "fails (SystemExit: 3)")]
)
def test_a_function_that_fails_is_named(
    command: Command, grpo: Path, name: str, complaint: str
) -> None:
    Path("mine.py").write_text(FUNCTIONS)
    line = line_of(
        command(
            "train",
            grpo,
            f"--set=reward={{name: python, path: 'mine.py:{name}'}}",
            "--set=evaluate.every=0",
        )
    )
    assert f"reward.path: mine.py:{name} {complaint}" in line and "correct the function" in line


def test_a_file_of_python_that_leaves(command: Command, grpo: Path) -> None:
    Path("mine.py").write_text("raise SystemExit(3)\n")
    assert "reward.path: mine.py cannot be run (SystemExit: 3)" in refused_alike(
        command, grpo, "reward={name: python, path: 'mine.py:score'}"
    )


WORKS = {
    "phrases": ("--reward", "world:reward", "--count", 4),
    "soft-prompts": ("--reward", "world:reward", "--positive", "Photo"),
    "finetune": (
        "--reward",
        "world:reward",
        "--images",
        "world:photo/cg",
        "--positive",
        "Photo",
        "--negative",
        "Render",
    ),
    "bias-directions": ("--reward", "world:reward", "--prompts", "world"),
}


@pytest.mark.parametrize("name", WORKS)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    command: Command, recipe: Path, name: str
) -> None:
    line = refusal(command, "reward", name, *WORKS[name], "--out", "prompts.txt/made.safetensors")
    assert (
        "--out prompts.txt/made.safetensors" in line
        and "prompts.txt is not a folder that you may write to" in line
    )


@pytest.mark.parametrize("name", ["soft-prompts", "finetune", "bias-directions"])
def test_what_is_there_already_is_not_overwritten(
    command: Command, recipe: Path, name: str
) -> None:
    Path("there.safetensors").write_text("mine")
    assert "there.safetensors exists already" in refusal(
        command, "reward", name, *WORKS[name], "--out", "there.safetensors"
    )


@pytest.mark.parametrize(
    ("name", "words", "option"),
    [
        ("phrases", ("--positive", "  "), "--positive"),
        ("soft-prompts", ("--negative", "  "), "--negative"),
        ("finetune", ("--positive", "  "), "--positive"),
        ("bias-directions", ("--keep-words", " ", "--against", "CG render"), "--keep-words"),
    ],
)
def test_words_of_blanks_alone(
    command: Command, recipe: Path, name: str, words: tuple[str, ...], option: str
) -> None:
    assert f"{option}: phrase " in refusal(
        command, "reward", name, *WORKS[name], *words, "--out", "made.safetensors"
    )


@pytest.mark.parametrize(
    ("former", "name"), zip(["words", "tokens", "listen", "directions"], WORKS, strict=True)
)
def test_a_former_command_names_the_new_one(
    command: Command, recipe: Path, former: str, name: str
) -> None:
    line = refusal(command, former, *WORKS[name], "--out", "made.safetensors")
    assert line == f"directalign: {former}: renamed to `directalign reward {name}`\n"


@pytest.mark.parametrize("name", ["soft-prompts", "finetune"])
def test_learned_tokens_where_words_are_wanted(command: Command, recipe: Path, name: str) -> None:
    line = refusal(
        command,
        "reward",
        name,
        *WORKS[name],
        "--positive",
        "old.safetensors",
        "--out",
        "made.safetensors",
    )
    assert "old.safetensors: is a file of learned tokens, and " in line and "give words" in line


def test_directions_blame_the_option_that_was_given(command: Command, recipe: Path) -> None:
    Path("nothing").mkdir()
    line = refusal(
        command,
        "reward",
        "bias-directions",
        "--reward",
        "world:reward",
        "--after",
        "nothing",
        "--out",
        "made.safetensors",
    )
    assert "--after nothing: holds neither images nor a run" in line
