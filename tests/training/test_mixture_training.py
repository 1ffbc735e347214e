"""Runs of the real command on several rewards: curves of their own, an exact resume, and a server that dies on the way."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import launching
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner, Result

from directalign.cli import app
from directalign.rewards import http
from tiny import write_flux

WORDS = {"positive": ["Photo", "Real"], "negative": ["Render"]}
FIRST = {"label": "first", "reward": {"name": "clip", "path": "world:reward"}}
SECOND = {
    "label": "second",
    "reward": {"name": "clip", "path": "world:second_reward"},
    "weight": 0.5,
}
RED = {
    "label": "red",
    "form": "absolute",
    "reward": {"name": "pixels", "statistic": "redness"},
    "weight": -0.3,
}
THREE = {
    "name": "mix",
    "members": [FIRST, SECOND, RED],
    "gradient_normalization": True,
    "std_penalty": 0.2,
}
GRPO = {
    "name": "flow_grpo",
    "form": "anchored",
    "control_phrases": WORDS,
    "group_size": 2,
    "sde": "ddim",
    "updates_per_rollout": 2,
    "anchor": {"reference_updates": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    write_flux(folder / "model")
    (folder / "prompts.txt").write_text(
        "a red star\na blue circle\na green square\na red circle\na blue star\n"
    )
    return folder


def recipe(
    folder: Path, name: str, reward: dict[str, Any], method: dict[str, Any], **train: Any
) -> Path:
    given = {
        "name": name,
        "model": {
            "architecture": "flux",
            "path": str(folder / "model"),
            "tune": "lora",
            "lora": {"rank": 2, "alpha": 2},
        },
        "reward": reward,
        "method": method,
        "rollout": {"num_inference_steps": 3, "embedded_guidance": 1.0},
        "data": {"prompts": str(folder / "prompts.txt"), "batch_size": 2},
        "train": {
            "num_steps": 4,
            "learning_rate": 1e-3,
            "save_every": 0,
            "sample_prompts": ["a red star"],
            **train,
        },
        "evaluate": {"num_samples": 2, "every": 0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(given))
    return folder / f"{name}.yaml"


def command(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def two_ranks(arguments: list[str], log: Path) -> list[int]:
    return launching.by_hand(arguments, log, variables=launching.plain_variables)


def records(out: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in record.items() if key not in ("seconds", "phases")}
        for record in found
    ]


def weights(out: Path) -> bytes:
    return (out / "lora.safetensors").read_bytes()


# --- three rewards ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(folder: Path) -> tuple[Path, Path]:
    """The recipe of three rewards, two branches and a hinge; its undisturbed run."""
    method = {
        "form": "relative",
        "control_phrases": WORDS,
        "branches": "both",
        "margin": 2.0,
        "embedded_guidance": 3.5,
    }
    made = recipe(folder, "mixed", THREE, method, gradient_accumulation_steps=2)
    result = command("train", str(made), "--out", str(folder / "mixed"))
    assert result.exit_code == 0, result.stderr
    return made, folder / "mixed"


def test_every_member_has_its_own_curves(mixed: tuple[Path, Path]) -> None:
    steps = [record["metrics"] for record in records(mixed[1]) if record["event"] == "step"]
    measured = [record for record in records(mixed[1]) if record["event"] == "evaluate"]
    for label in ("first", "second", "red"):
        for name in (f"reward_{label}", f"share_{label}", f"gradient_{label}"):
            assert len({metrics[name] for metrics in steps}) == 4
        assert all(f"reward_{label}" in record for record in measured)
    assert all(
        {"score_pos_first", "score_neg_second", "score_plain_red"} <= metrics.keys()
        for metrics in steps
    )
    assert all(
        m["reward"]
        == pytest.approx(
            m["reward_first"] + 0.5 * m["reward_second"] - 0.3 * m["reward_red"], abs=1e-5
        )
        for m in measured
    )


def test_the_curves_are_on_the_page_and_in_tensorboard(mixed: tuple[Path, Path]) -> None:
    page = (mixed[1] / "report.html").read_text()
    for title in (
        "Shares in the reward",
        "first in training",
        "second in training",
        "red in training",
        "red of whole images",
    ):
        assert f"<h3>{title}</h3>" in page
    board = EventAccumulator(str(mixed[1] / "tensorboard")).Reload().Tags()["scalars"]
    assert {"step/metrics/reward_red", "step/metrics/share_first", "evaluate/reward_second"} <= set(
        board
    )


def test_a_resumed_mixture_ends_where_the_undisturbed_run_does(
    mixed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    made, whole = mixed
    assert (
        command(
            "train", str(made), "--out", str(tmp_path / "out"), "--set", "train.num_steps=2"
        ).exit_code
        == 0
    )
    assert command("train", str(made), "--out", str(tmp_path / "out"), "--resume").exit_code == 0
    assert weights(tmp_path / "out") == weights(whole)
    assert [each for each in records(tmp_path / "out") if each["event"] == "step"] == [
        each for each in records(whole) if each["event"] == "step"
    ]


def test_two_processes_mix_as_one_does(folder: Path, tmp_path: Path) -> None:
    """What an update uses was seen by all ranks, so that how the batch is shared out is rounding."""
    method = {
        "form": "anchored",
        "control_phrases": WORDS,
        "branches": "denoise",
        "embedded_guidance": 3.5,
    }
    made, found = recipe(folder, "shared", THREE, method, max_grad_norm=100.0), []
    assert launching.alone(launching.train(made, tmp_path / "one"), tmp_path / "log") == 0, (
        tmp_path / "log"
    ).read_text()
    assert two_ranks(
        launching.train(made, tmp_path / "two", "--set=data.batch_size=1"), tmp_path / "log"
    ) == [0, 0], (tmp_path / "log").read_text()
    for out in (tmp_path / "one", tmp_path / "two"):
        found.append([each["metrics"] for each in records(out) if each["event"] == "step"])
    for ours, theirs in zip(*found, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


# --- a server that dies -----------------------------------------------------------------------------------------------


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waits, and no plan of the memory, which takes longer than all the rest."""
    monkeypatch.setattr(http, "FIRST_WAIT", 0.0)
    monkeypatch.setattr("directalign.preflight.plan", lambda run, out: SimpleNamespace(warnings=()))


class Service:
    """Scores every picture by the length of its file and of its prompt; `left` is how many requests it will still answer."""

    def __init__(self) -> None:
        self.left, self.port = 10**9, 0

    @contextmanager
    def up(self) -> Iterator[None]:
        """The server of this process, on the same port every time."""
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                service.left -= 1
                if service.left < 0:
                    return  # the connection ends without a word
                pairs = zip(given["images"], given["prompts"], strict=True)
                body = json.dumps(
                    {"scores": [len(image) / 1000 + len(prompt) / 100 for image, prompt in pairs]}
                ).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                del format, args

        with ThreadingHTTPServer(("127.0.0.1", self.port), Handler) as server:
            self.port = server.server_port
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            yield
            server.shutdown()

    def reward(self) -> dict[str, Any]:
        return {"name": "remote", "url": f"http://127.0.0.1:{self.port}/score", "retries": 1}


@pytest.mark.parametrize(("mixture", "answered"), [(False, 12), (True, 18)])
def test_a_server_that_dies_stops_the_run_and_resume_continues_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mixture: bool, answered: int
) -> None:
    """In an update that begins a rollout, after its first batch, and between updates that share one; the anchor has seen a part of it."""
    hurry(monkeypatch)
    service, out, whole = Service(), tmp_path / "out", tmp_path / "whole"
    with service.up():
        reward = (
            {"name": "mix", "members": [RED, {"label": "far", "reward": service.reward()}]}
            if mixture
            else service.reward()
        )
        made = recipe(
            tmp_path_model(folder, tmp_path),
            "remote",
            reward,
            GRPO,
            num_steps=6,
            gradient_accumulation_steps=2,
        )
        assert command("train", str(made), "--out", str(whole)).exit_code == 0
        service.left = answered
        result = command("train", str(made), "--out", str(out))
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("directalign: ")]
    assert f"{service.port}/score: no answer (RemoteDisconnected" in line and "(2 attempts)" in line
    done = int(line.split("; step ")[1].split()[0])
    assert done in (2, 4) and line.endswith(
        f"step {done} of 6 is saved: continue with --resume --out {out}"
    )
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-00000{done}"]

    refused = command("train", str(made), "--out", str(out), "--resume")
    assert (
        refused.exit_code == 1
        and "connection refused, nothing listens there (2 attempts)" in refused.stderr
    )

    service.left = 10**9
    with service.up():
        assert command("train", str(made), "--out", str(out), "--resume").exit_code == 0
    assert weights(out) == weights(whole)
    assert records(out) == records(whole)


def tmp_path_model(folder: Path, tmp_path: Path) -> Path:
    """The shared model and prompts, seen from a folder of the test's own."""
    for name in ("model", "prompts.txt"):
        (tmp_path / name).symlink_to(folder / name)
    return tmp_path


@pytest.mark.parametrize("answered", [9, 14])
def test_ranks_stop_together_when_the_server_of_one_dies(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answered: int
) -> None:
    """In the third update, and in the measurement after the fourth, which rank 0 makes alone."""
    hurry(monkeypatch)
    service, out, log = Service(), tmp_path / "out", tmp_path / "log"
    with service.up():
        made = recipe(
            tmp_path_model(folder, tmp_path),
            "ranks",
            service.reward(),
            {**GRPO, "form": "relative"},
            num_steps=6,
        )
        arguments = launching.train(made, out, "--set=data.batch_size=1", "--set=evaluate.every=4")
        service.left = answered
        assert two_ranks(arguments, log) == [1, 1], log.read_text()
        said = log.read_text()
        assert (
            "reward.url: " in said
            and " is saved: continue with --resume" in said
            and " is gone" not in said
        )
        assert len(list((out / "checkpoints").glob("step-*"))) == 1
        service.left = 10**9
        assert two_ranks([*arguments, "--resume"], log) == [0, 0], log.read_text()
        whole = launching.train(made, tmp_path / "whole", "--set=data.batch_size=1")
        assert two_ranks(whole, log) == [0, 0], log.read_text()
    assert weights(out) == weights(tmp_path / "whole")


def test_an_update_that_fails_before_any_was_done_leaves_no_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    service = Service()
    with service.up():
        made = recipe(tmp_path_model(folder, tmp_path), "first", service.reward(), GRPO)
        service.left = 4
        result = command("train", str(made), "--out", str(tmp_path / "out"))
        assert (
            result.exit_code == 1
            and "is saved" not in result.stderr
            and not (tmp_path / "out" / "checkpoints").exists()
        )
