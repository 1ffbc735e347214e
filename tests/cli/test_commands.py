"""Each command passes on its options, and ends as it should; one test starts real processes."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from directalign import cli
from directalign.cli.evaluate import table_of
from directalign.training import Interrupted
from directalign.types import NonFiniteError

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


def test_train_passes_on_the_checked_run(command, recipe, calls):
    result = command("train", recipe, "--set", "train.num_steps=7", "--resume")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "page\n", "")
    ((_, run, out, resume),) = calls
    assert (run.train.num_steps, out, resume) == (7, Path("runs/recipe"), True)


def test_a_recipe_of_the_package_is_named(command, recipe, calls):
    assert command("train", "world_srpo").exit_code == 0
    ((_, run, out, _),) = calls
    assert (run.model.path, out) == ("world:flux", Path("runs/world_srpo"))
    wrong = command("train", "wrld_srpo")
    assert wrong.exit_code == 1 and "wrld_srpo: no such recipe" in wrong.stderr
    assert "did you mean world_srpo or " in wrong.stderr


def test_sample_pairs_every_prompt_with_every_seed(command, recipe, calls):
    given = "--prompts prompts.txt --prompt extra --seed 1 --seed 2 --num-inference-steps 4"
    sizes = "--cfg-scale 4.5 --embedded-guidance 0 --height 64 --width 32"
    command("sample", "run", *given.split(), *sizes.split(), "--base", "--out", "o")
    prompts = ["extra", "extra", "a red star", "a red star", "a blue circle", "a blue circle"]
    rollout = {"num_inference_steps": 4, "cfg_scale": 4.5, "embedded_guidance": 0.0}
    rollout |= {"height": 64, "width": 32}
    seeds = [1, 2, 1, 2, 1, 2]
    assert calls == [("sample", Path("run"), prompts, seeds, Path("o"), rollout, True)]


def test_sample_needs_prompts(command, calls):
    result = command("sample", "world:flux")
    assert result.exit_code == 1 and "give --prompt" in result.stderr and calls == []


def test_evaluate_compares_the_run_with_its_base(command, calls):
    command("evaluate", "run", "--num-samples", "8", "--num-inference-steps", "4", "--judge=none")
    (_, request, *_), _ = calls
    assert (request.sources, request.out, request.base) == (("run",), Path("run/evaluation"), True)
    assert (request.num_samples, request.judge, request.rewards) == (8, "none", ())
    assert request.rollout == {"num_inference_steps": 4}
    assert {"commit", "machine", "versions"} == set(request.where)


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
        ("demo --out d", ("demo", Path("d"))),
        ("world export w", ("export", Path("w"))),
        ("world images p --count 3 --style cg", ("images", Path("p"), 3, "cg", 0)),
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
        (FULL, 1, "no space left on the disk of x.bin; free some, then continue with --resume"),
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


def test_only_the_warning_about_an_unused_kernel_is_filtered(monkeypatch, caplog):
    monkeypatch.setattr(sys, "argv", ["directalign", "--version"])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    monkeypatch.setattr(logger, "disabled", False)  # other libraries may disable all loggers
    monkeypatch.setattr(logging.root.manager, "disable", 0)
    logger.warning("Failed to load CPU %s from kernels-community: no kernels", "gemm_4bit_forward")
    logger.warning("4 bits do not work here")
    assert caplog.messages == ["4 bits do not work here"]


@pytest.mark.parametrize(
    "words",
    [
        *("trian", "train", "train a --bogus", "sample x --seed one"),
        *("evaluate x --num-samples 0", "evaluate x --judge human"),
    ],
)
def test_an_invalid_command_line_ends_with_2(command, words):
    assert command(*words.split()).exit_code == 2


def test_version(command):
    assert command("--version").stdout == f"directalign {cli.__version__}\n"


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
    assert list(tmp_path.iterdir()) == []
    valid = process("-m", "directalign", "check", "world_srpo")
    assert (valid.returncode, valid.stderr) == (0, "")  # no library warning
    light = (
        "import sys; from typer.testing import CliRunner; from directalign.cli import app; "
        "codes = [CliRunner().invoke(app, [word]).exit_code for word in ('--help', 'schema')]; "
        "print(codes, 'torch' in sys.modules)"
    )
    assert process("-c", light).stdout == "[0, 0] False\n"


@pytest.mark.parametrize(
    ("n", "half", "cell"),
    [(4, 0.25, "[bold]0.50[/bold]\n0.25 to 0.75"), (1, 0.0, "[bold]0.500[/bold]\n")],
)
def test_the_table_has_the_mean_and_its_interval_if_any(n, half, cell):
    models = [{"key": key, "label": key, "trained_on": []} for key in ("base", "tuned")]
    found = {"value": 0.5, "low": 0.5 - half, "high": 0.5 + half, "n": n}
    summary: dict[str, Any] = {
        "names": {"entropy": {"label": "Entropy", "role": "drift", "better": 0}},
        "models": {each["key"]: {"entropy": found} for each in models},
        "wins": [],
    }
    assert list(table_of(models, summary).columns[2].cells)[-1] == cell
