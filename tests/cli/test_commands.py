"""Each command passes on its options, and ends as it should; one test starts real processes."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import Result

from directalign import cli
from directalign.cli.common import DroppingStream, protect_streams
from directalign.demo import QUICK, SHORT
from directalign.rewards.black_box import SynchronizedError
from directalign.toyworld.worlds import WORLDS
from directalign.training import Interrupted
from directalign.types import DirectAlignError, NonFiniteError

Command = Callable[..., Result]
Calls = list[tuple[Any, ...]]


@pytest.fixture
def calls(monkeypatch):
    """Replace everything that does real work by a record of its arguments."""
    recorded: Calls = []
    for target, name, result in (
        ("training.run", "train", Path("page")),
        ("evaluation.generate.sample_images", "sample", [Path("0000-seed0.png")]),
        ("evaluation.compare.evaluate_run", "evaluate", Path("run/evaluation")),
        ("evaluation.compare.compare", "compare", Path("out")),
        ("cli.evaluate.show", "show", None),
        ("report.write_page", "report", Path("page.html")),
        ("toyworld.assets.export", "export", [Path("w/flux")]),
        ("toyworld.assets.write_pictures", "images", Path("p")),
        ("demo.demo", "demo", Path("runs/demo/report.html")),
    ):
        monkeypatch.setattr(
            f"directalign.{target}",
            lambda *args, name=name, result=result: recorded.append((name, *args)) or result,
        )
    return recorded


def test_a_recipe_of_the_package_is_named(command, recipe, calls):
    assert command("train", "world_srpo").exit_code == 0
    ((_, run, out, *_),) = calls
    assert (run.model.path, out) == ("world:flux", Path("runs/world_srpo"))
    wrong = command("train", "wrld_srpo")
    assert wrong.exit_code == 1 and "wrld_srpo: no such recipe" in wrong.stderr
    assert "did you mean world_srpo or " in wrong.stderr


def test_the_page_of_a_run_is_named_first_and_last(command, recipe, monkeypatch):
    def train(run: object, out: Path, *_: object) -> Path:
        out.mkdir(parents=True)
        (out / "report.html").touch()
        raise NonFiniteError("step 3")

    monkeypatch.setattr("directalign.training.run", train)
    result = command("train", recipe, "--out", "my run")
    page = f"page: {Path('my run/report.html').absolute().as_uri()}"
    first, last = result.stdout.splitlines()
    assert first.endswith(page) and last == page and "my%20run" in page
    assert result.stderr == "directalign: step 3\n"


def test_sample_pairs_every_prompt_with_every_seed(command, recipe, calls):
    given = "--prompts prompts.txt --prompt extra --seed 1 --seed 2 --num-inference-steps 4"
    sizes = "--cfg-scale 4.5 --embedded-guidance 0 --height 64 --width 32"
    command("sample", "run", *given.split(), *sizes.split(), "--base", "--out", "o")
    prompts = ["extra", "extra", "a red star", "a red star", "a blue circle", "a blue circle"]
    rollout = {"num_inference_steps": 4, "cfg_scale": 4.5, "embedded_guidance": 0.0}
    rollout |= {"height": 64, "width": 32}
    seeds = [1, 2, 1, 2, 1, 2]
    ((*given, source),) = calls
    assert source is None
    assert given == ["sample", Path("run"), prompts, seeds, Path("o"), rollout, True, None, 1.0]


def test_compare_passes_on_every_option(command, calls):
    sizes = "--height 64 --width 32 --cfg-scale 2 --embedded-guidance 1"
    sets = "--prompts world --seeds-per-prompt 3 --control-prompts o.txt --batch-size 5"
    rewards = "--reward a=x --reward b=y --positive Photo --negative CG --metric m.py:f"
    options = f"{sizes} {sets} {rewards} --base --out o".split()
    assert command("compare", "A=runs/a", "runs/b", *options).exit_code == 0
    (_, request, *_), _ = calls
    assert (request.sources, request.out, request.base) == (("A=runs/a", "runs/b"), Path("o"), True)
    sampling = {"height": 64, "width": 32, "cfg_scale": 2.0, "embedded_guidance": 1.0}
    assert request.rollout == sampling
    assert (request.prompts, request.seeds_per_prompt) == ("world", 3)
    assert (request.control_prompts, request.batch_size) == ("o.txt", 5)
    assert (request.rewards, request.positive) == (("a=x", "b=y"), ("Photo",))
    assert (request.negative, request.metrics) == (("CG",), ("m.py:f",))


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("report runs", ("report", Path("runs"))),
        ("demo --out d", ("demo", Path("d"), SHORT, "world2")),
        ("demo --full", ("demo", Path("runs/demo_full"), (), "world2")),
        ("demo --quick", ("demo", Path("runs/demo_quick"), QUICK, "world2")),
        ("demo --world world --out d", ("demo", Path("d"), SHORT, "world")),
        ("world export w --name world2", ("export", Path("w"), WORLDS["world2"])),
        ("world export w", ("export", Path("w"), WORLDS["world"])),
        ("world images p --count 3 --style cg", ("images", Path("p"), 3, "cg", 0, WORLDS["world"])),
    ],
)
def test_the_other_commands_pass_on_their_options(command, calls, words, call):
    assert command(*words.split()).exit_code == 0 and calls == [call]


FULL = OSError(errno.ENOSPC, "No space left on device", "x.bin")
AGAIN = "directalign train recipe.yaml '--set=name=a b' --out runs/recipe --resume"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (NonFiniteError("step 3:\nsigma 0.8"), 1, "directalign: step 3: sigma 0.8"),
        (Interrupted("stopped after step 3"), 130, "directalign: stopped after step 3"),
        (KeyboardInterrupt(), 130, f"interrupted; continue with: {AGAIN}"),
        (
            FULL,
            1,
            "no space left on the disk of x.bin; free some, then give the same command again",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x.bin"), 1, "x.bin: Permission den"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 1, "out of device memory; set"),
        (TypeError("int + str"), 1, "unexpected TypeError: int + str; this is a bug in directal"),
    ],
)
def test_every_error_is_one_line(command, recipe, monkeypatch, error, code, line):
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr("directalign.training.run", fail)
    result = command("train", recipe, "--set", "name=a b")
    assert result.exit_code == code and result.stderr.count("\n") == 1 and line in result.stderr
    if isinstance(error, Exception):
        assert command("train", recipe, "--debug").exception is error


def test_an_error_of_all_ranks_is_printed_by_the_first_of_a_machine(command, recipe, monkeypatch):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("directalign.training.run", fail)
    of_all = Interrupted("stopped after step 3"), SynchronizedError("rank 0: no such image")
    for rank, printed in (("0", True), ("1", False)):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        refused = command("train", "gone.yaml")
        assert refused.exit_code == 1 and refused.stderr.count("gone.yaml: no such") == printed
        for error in (*of_all, DirectAlignError("2 processes on a machine with 1 GPU")):
            failed = command("train", recipe)
            own = printed or error not in of_all
            assert failed.stderr.count(str(error)) == own and failed.exit_code in (1, 130)
            assert failed.stdout.count("checking, then training; page: file://") == printed


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_begins_with_train_and_libraries_are_silenced(monkeypatch, capsys, words):
    environment = {name: value for name, value in os.environ.items() if "VERBOSITY" not in name}
    monkeypatch.setattr(sys, "argv", ["directalign", *words])
    monkeypatch.setattr(os, "environ", environment)
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    text = capsys.readouterr().out
    assert os.environ["TRANSFORMERS_VERBOSITY"] == os.environ["DIFFUSERS_VERBOSITY"] == "error"
    assert 0 < text.index("directalign train RECIPE") < text.index("check") < text.index("world")


@pytest.mark.parametrize(
    "words",
    [
        *("trian", "train", "train a --bogus", "sample x --seed one"),
        *("evaluate x --num-samples 0", "evaluate x --judge human"),
    ],
)
def test_an_invalid_command_line_ends_with_2(command, words):
    assert command(*words.split()).exit_code == 2


def test_as_a_process_errors_are_short_and_help_needs_no_torch(tmp_path):
    def process(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "100"},
            capture_output=True,
            text=True,
        )

    failed = process("-m", "directalign", "train", "gone.yaml")
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (1, "", 1)
    assert failed.stderr.startswith("directalign: gone.yaml: no such recipe")
    failed = process("-m", "directalign", "sample", "m", "--prompt", "a\udcff")
    assert failed.returncode == 1 and failed.stderr.count("\n") == 1
    assert "not Unicode; write or rename it" in failed.stderr
    assert list(tmp_path.iterdir()) == []
    call = (
        "import directalign.preflight, directalign.reward_analysis, directalign.export, sys; "
        "from directalign.cli import main; "
        "sys.argv = ['directalign', 'check', 'world_srpo']; main()"
    )
    os.environ["PYTHONIOENCODING"] = "ascii"
    valid = process("-c", call)
    del os.environ["PYTHONIOENCODING"]
    assert (valid.returncode, valid.stderr) == (0, "")  # no library warning
    light = (
        "import sys; from typer.testing import CliRunner; from directalign.cli import app; "
        "codes = [CliRunner().invoke(app, [word]).exit_code for word in ('--help', 'schema')]; "
        "print(codes, 'torch' in sys.modules)"
    )
    assert process("-c", light).stdout == "[0, 0] False\n"


def test_a_cache_that_cannot_be_written_is_named_with_its_remedy(command, tmp_path, monkeypatch):
    (tmp_path / "no_home").write_text("")
    monkeypatch.setenv("DIRECTALIGN_CACHE", str(tmp_path / "no_home"))
    failed = command("check", "world_srpo")
    assert failed.exit_code == 1
    assert "set the environment variable DIRECTALIGN_CACHE to a folder" in failed.stderr


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ("sample m --prompt a --seed 18446744073709551616", 2, "is no seed: give 0 to"),
        ("world images p --count 99999999999999999999", 2, "Input should be less than or"),
        (f"sample {'x' * 5000} --prompt a", 1, f"{'x' * 60}...: longer than any path; give the"),
        (f"compare a={'x' * 300} --out o", 1, "longer than any path"),
        (f"train recipe.yaml --out {'x' * 300}", 1, "longer than any path"),
    ],
)
def test_numbers_and_paths_beyond_any_use(command, recipe, words, code, line):
    result = command(*words.split())
    assert result.exit_code == code and line in " ".join(result.stderr.split()), result.stderr


# --- the standard streams ------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "directalign", "schema"]


@pytest.mark.parametrize(
    ("stdout", "said"),
    [("closed pipe", ""), ("/dev/full", "warning: stdout cannot be written (No space left")],
)
def test_a_command_whose_output_cannot_be_written_ends_with_0(stdout, said):
    reader, writer = os.pipe()
    os.close(reader)
    target = writer if stdout == "closed pipe" else os.open(stdout, os.O_WRONLY)
    done = subprocess.run(COMMAND, stdout=target, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(target)
    assert done.returncode == 0 and done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == bool(said)


def test_the_streams_pass_on_what_can_be_written(monkeypatch):
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stdout", plain)
    monkeypatch.setattr(sys, "stderr", plain)
    protect_streams()
    protect_streams()
    assert isinstance(sys.stdout, DroppingStream) and not sys.stdout.isatty()
    print("one")
    typer.echo("two", err=True)
    assert plain.getvalue() == "one\ntwo\n"
