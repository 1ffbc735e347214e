"""Each command hands on what the user said, and ends as it should; one test starts real processes."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from directalign import cli
from directalign.training import Interrupted
from directalign.types import NonFiniteError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """Replace everything that does real work by a note of how it was called."""
    calls: list[tuple[Any, ...]] = []

    def note(name: str, result: object) -> Any:
        return lambda *args: calls.append((name, *args)) or result

    monkeypatch.setattr("directalign.training.run", note("train", Path("page")))
    monkeypatch.setattr(
        "directalign.evaluate.sampling.sample_images", note("sample", [Path("0000-seed0.png")])
    )
    monkeypatch.setattr(
        "directalign.evaluate.compare.evaluate_run", note("evaluate", Path("run/evaluation"))
    )
    monkeypatch.setattr("directalign.evaluate.compare.compare", note("compare", Path("out")))
    monkeypatch.setattr("directalign.cli.comparing.show", lambda out: None)
    monkeypatch.setattr("directalign.report.write_page", note("report", Path("page.html")))
    monkeypatch.setattr("directalign.world.assets.export", note("export", [Path("w/flux")]))
    monkeypatch.setattr("directalign.world.build.build_world", note("build", None))
    return calls


def test_train_hands_on_the_checked_run(
    command, recipe: Path, heard: list[tuple[Any, ...]]
) -> None:
    result = command("train", recipe, "--set", "train.num_steps=7", "--resume")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "page\n", "")
    (_, run, out, resume), = heard  # fmt: skip
    assert (run.train.num_steps, out, resume) == (7, Path("runs/recipe"), True)


def test_sample_pairs_every_prompt_with_every_seed(
    command, recipe: Path, heard: list[tuple[Any, ...]]
) -> None:
    words = [
        "--prompts",
        "prompts.txt",
        "--prompt",
        "extra",
        "--seed",
        "1",
        "--seed",
        "2",
        "--num-sampling-steps",
        "4",
        "--base",
        "--out",
        "o",
    ]
    command("sample", "run", *words)
    prompts = ["extra", "extra", "a red star", "a red star", "a blue circle", "a blue circle"]
    assert heard == [
        (
            "sample",
            Path("run"),
            prompts,
            [1, 2, 1, 2, 1, 2],
            Path("o"),
            {"num_inference_steps": 4},
            True,
        )
    ]


def test_sample_overrides_what_the_rollout_names(
    command, recipe: Path, heard: list[tuple[Any, ...]]
) -> None:
    command(
        "sample",
        "run",
        "--prompt",
        "x",
        "--cfg-scale",
        "4.5",
        "--embedded-guidance",
        "0",
        "--height",
        "64",
        "--width",
        "32",
    )
    assert heard == [
        (
            "sample",
            Path("run"),
            ["x"],
            [0],
            Path("images"),
            {"cfg_scale": 4.5, "embedded_guidance": 0.0, "height": 64, "width": 32},
            False,
        )
    ]


def test_sample_needs_prompts(command, heard: list[tuple[Any, ...]]) -> None:
    result = command("sample", "world:flux")
    assert result.exit_code == 1 and "give --prompt" in result.stderr and heard == []


def test_evaluate_asks_for_the_run_and_its_base(command, heard: list[tuple[Any, ...]]) -> None:
    command("evaluate", "run", "--num-samples", "8", "--sampling-steps", "4", "--judge", "none")
    (_, request, _), = heard  # fmt: skip
    assert (request.sources, request.out, request.base, request.num_samples) == (
        ("run",),
        Path("run/evaluation"),
        True,
        8,
    )
    assert (request.rollout, request.judge, request.rewards) == (
        {"num_inference_steps": 4},
        "none",
        (),
    )
    assert {"commit", "machine", "versions"} == set(request.where)


def test_compare_hands_on_every_word(command, heard: list[tuple[Any, ...]]) -> None:
    sizes = ["--height", "64", "--width", "32", "--cfg-scale", "2", "--embedded-guidance", "1"]
    sets = [
        "--prompts",
        "world",
        "--seeds-per-prompt",
        "3",
        "--control-prompts",
        "o.txt",
        "--batch-size",
        "5",
    ]
    words = ["--reward", "a=x", "--reward", "b=y", "--positive", "Photo", "--negative", "CG"]
    assert (
        command(
            "compare", "A=runs/a", "runs/b", "--out", "o", "--base", *sizes, *sets, *words
        ).exit_code
        == 0
    )
    (_, request, _), = heard  # fmt: skip
    assert (request.sources, request.out, request.base) == (("A=runs/a", "runs/b"), Path("o"), True)
    assert request.rollout == {
        "height": 64,
        "width": 32,
        "cfg_scale": 2.0,
        "embedded_guidance": 1.0,
    }
    assert (
        request.prompts,
        request.seeds_per_prompt,
        request.control_prompts,
        request.batch_size,
    ) == ("world", 3, "o.txt", 5)
    assert (request.rewards, request.positive, request.negative) == (
        ("a=x", "b=y"),
        ("Photo",),
        ("CG",),
    )


def test_a_judge_that_there_is_not_is_refused(command, heard: list[tuple[Any, ...]]) -> None:
    result = command("evaluate", "run", "--judge", "human")
    assert (
        result.exit_code == 1
        and "--judge human: no such judge; world or none" in result.stderr
        and heard == []
    )


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["report", "runs"], ("report", Path("runs"))),
        (["world", "export", "w"], ("export", Path("w"))),
        (
            ["world", "build", "w", "--only", "flux", "--device", "cuda"],
            ("build", Path("w"), ["flux"], "cuda"),
        ),
        (["world", "build", "w"], ("build", Path("w"), None, "cpu")),
    ],
)
def test_the_other_commands_hand_on_what_was_said(
    command, heard: list[tuple[Any, ...]], words: list[str], call: tuple[Any, ...]
) -> None:
    assert command(*words).exit_code == 0 and heard == [call]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            NonFiniteError("step 3, inversion:\nsigma 0.8"),
            1,
            "directalign: step 3, inversion: sigma 0.8",
        ),
        (
            Interrupted("stopped after step 3; continue with --resume"),
            130,
            "directalign: stopped after step 3",
        ),
        (
            KeyboardInterrupt(),
            130,
            "interrupted; continue with: directalign train recipe.yaml '--set=name=a b' --out runs/recipe --resume",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.bin"),
            1,
            "no space left on the disk of x.bin; free some, then go on with --resume",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "x.bin"),
            1,
            "directalign: x.bin: Permission denied",
        ),
        (
            type("OutOfMemoryError", (RuntimeError,), {})("CUDA"),
            1,
            "out of device memory; set model.tune: lora",
        ),
        (
            TypeError("int + str"),
            1,
            "unexpected TypeError: int + str; this is a fault of directalign",
        ),
    ],
)
def test_whatever_goes_wrong_is_one_line(
    command,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    line: str,
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr("directalign.training.run", fail)
    result = command("train", recipe, "--set", "name=a b")
    assert result.exit_code == code and result.stderr.count("\n") == 1 and line in result.stderr
    if isinstance(error, Exception):
        assert command("train", recipe, "--debug").exception is error


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help_begins_with_the_main_job(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["directalign", *words])
    monkeypatch.setattr(
        os,
        "environ",
        {name: value for name, value in os.environ.items() if "VERBOSITY" not in name},
    )
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    text = capsys.readouterr().out
    assert (
        os.environ["TRANSFORMERS_VERBOSITY"] == os.environ["DIFFUSERS_VERBOSITY"] == "error"
    )  # libraries keep quiet around our one line
    assert 0 < text.index("directalign train RECIPE") < text.index("check") < text.index("world")


def test_only_what_is_of_no_use_here_is_kept_from_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["directalign", "--version"])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    monkeypatch.setattr(
        logger, "disabled", False
    )  # another library's setup may have switched all loggers off
    monkeypatch.setattr(logging.root.manager, "disable", 0)
    logger.warning("Failed to load CPU %s from kernels-community: no kernels", "gemm_4bit_forward")
    logger.warning("4 bits do not work here")
    assert caplog.messages == ["4 bits do not work here"]


@pytest.mark.parametrize(
    "words",
    [
        ["trian"],
        ["train"],
        ["train", "a", "--bogus"],
        ["sample", "x", "--seed", "one"],
        ["evaluate", "x", "--num-samples", "0"],
    ],
)
def test_a_command_line_that_cannot_be_read_ends_with_2(command, words: list[str]) -> None:
    assert command(*words).exit_code == 2


def test_version(command) -> None:
    assert command("--version").stdout == f"directalign {cli.__version__}\n"


def test_as_a_process_errors_are_short_and_help_needs_no_torch(tmp_path: Path) -> None:
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
    assert (
        failed.stderr.startswith("directalign: gone.yaml: no such recipe")
        and list(tmp_path.iterdir()) == []
    )
    sound = process("-m", "directalign", "check", "world_srpo")
    assert (sound.returncode, sound.stderr) == (0, "")  # no library speaks in between
    light = "import sys; from typer.testing import CliRunner; from directalign.cli import app; r = CliRunner().invoke(app, sys.argv[1:]);"
    for words in (["--help"], ["schema"]):
        assert (
            process("-c", f"{light} print(r.exit_code, 'torch' in sys.modules)", *words).stdout
            == "0 False\n"
        )
