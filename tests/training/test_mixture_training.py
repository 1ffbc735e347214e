"""Runs of the real command on several rewards, and on a reward server that fails."""

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
from launching import processes, records, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner, Result

from directalign.cli import app
from directalign.rewards import black_box
from tiny import write_flux

PHRASES = {"positive": ["Photo", "Real"], "negative": ["Render"]}
RED = {"name": "pixels", "statistic": "redness"}
MEMBERS = [
    {"label": "first", "reward": {"name": "clip", "path": "world:reward"}},
    {"label": "second", "reward": {"name": "clip", "path": "world:second_reward"}, "weight": 0.5},
    {"label": "red", "form": "absolute", "reward": RED, "weight": -0.3},
]
MIX = {"name": "mix", "members": MEMBERS, "gradient_normalization": True, "std_penalty": 0.2}
SRPO = {"control_phrases": PHRASES, "embedded_guidance": 3.5}
GRPO = {
    "name": "flow_grpo",
    "form": "anchored",
    "control_phrases": PHRASES,
    "group_size": 2,
    "sde": "ddim",
    "updates_per_rollout": 2,
    "anchor": {"reference_updates": 4},
}


@pytest.fixture(scope="module", autouse=True)
def _fast():
    """No waits and no memory estimate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(black_box, "FIRST_WAIT", 0.0)
        no_plan = SimpleNamespace(warnings=(), update_flops=None)
        patch.setattr("directalign.preflight.plan", lambda run, out: no_plan)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    write_flux(folder / "model")
    lines = ("a red star", "a blue circle", "a green square", "a red circle", "a blue star")
    (folder / "prompts.txt").write_text("\n".join(lines))
    return folder


def recipe(
    folder: Path, file: Path, reward: dict[str, Any], method: dict[str, Any], **train: Any
) -> Path:
    lora = {"tune": "lora", "lora": {"rank": 2, "alpha": 2}}
    settings = {"num_steps": 4, "learning_rate": 1e-3, "save_every": 0}
    given = {
        "name": "mixture",
        "model": {"architecture": "flux", "path": str(folder / "model"), **lora},
        "reward": reward,
        "method": method,
        "rollout": {"num_inference_steps": 3, "embedded_guidance": 1.0},
        "data": {"prompts": str(folder / "prompts.txt"), "batch_size": 2},
        "train": {**settings, "sample_prompts": ["a red star"], **train},
        "evaluate": {"num_samples": 2, "every": 0},
    }
    file.write_text(yaml.safe_dump(given))
    return file


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def two(arguments: list[str], log: Path) -> list[int]:
    return processes(lambda: launching.run(arguments), log)


def weights(out: Path) -> bytes:
    return (out / "lora.safetensors").read_bytes()


@pytest.fixture(scope="module")
def mixed(folder):
    """The recipe of three rewards, two branches and a hinge, and its uninterrupted run.

    One member has soft prompts; one reward is held out.
    """
    sides = ("--positive", "Photo", "--negative", "Render", "--out", str(folder / "a.safetensors"))
    fitted = command("reward", "soft-prompts", "--reward", "world:reward", *sides)
    assert fitted.exit_code == 0, fitted.stderr
    ends = {"positive": "a.safetensors", "negative": "a.negative.safetensors"}
    phrases = {side: [str(folder / name)] for side, name in ends.items()}
    first, *others = MEMBERS
    reward = MIX | {"members": [first | {"control_phrases": phrases}, *others]}
    method = {"form": "relative", "branches": "both", "margin": 2.0, **SRPO}
    file = recipe(folder, folder / "mixed.yaml", reward, method, gradient_accumulation_steps=2)
    given = yaml.safe_load(file.read_text())
    given["evaluate"]["rewards"] = {"bright": {"name": "pixels", "statistic": "brightness"}}
    file.write_text(yaml.safe_dump(given))
    result = command(*train(file, folder / "mixed"))
    assert result.exit_code == 0, result.stderr
    return file, folder / "mixed"


def test_every_member_is_logged_and_on_the_page(mixed):
    out = mixed[1]
    steps = [record["metrics"] for record in records(out, "step")]
    evaluated = records(out, "evaluate")
    for label in ("first", "second", "red"):
        for name in (f"reward_{label}", f"share_{label}", f"gradient_{label}"):
            assert len({metrics[name] for metrics in steps}) == 4
    scores = {"score_pos_first", "score_neg_second", "score_plain_red"}
    assert all(scores <= metrics.keys() for metrics in steps)
    for m in evaluated:
        total = m["reward_first"] + 0.5 * m["reward_second"] - 0.3 * m["reward_red"]
        assert m["reward"] == pytest.approx(total, abs=1e-5)
    page = (out / "report.html").read_text()
    for title in ("Shares in the reward", "second in training", "red of whole images"):
        assert f"<h3>{title}</h3>" in page
    names = set(EventAccumulator(str(out / "tensorboard")).Reload().Tags()["scalars"])
    assert {"step/metrics/reward_red", "step/metrics/share_first", "evaluate/reward_second"} < names


def test_the_page_and_the_model_card_name_every_member(mixed, tmp_path):
    _, run = mixed
    members = "first (clip world:reward), second (clip world:second_reward, weight 0.5)"
    named = f"mix of {members}, red (pixels redness, weight −0.3)"
    assert named in (run / "report.html").read_text()
    words = ("--format", "diffusers", "--out", str(tmp_path / "out"))
    assert command("export", str(run), *words).exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"reward `{named}`" in card and str(run.parent) not in card
    rows = {line.split(" | ")[0][2:]: line for line in card.splitlines() if line.startswith("| ")}
    assert "one member of the mixture" in rows["reward_first"]
    assert "a reward that is never trained on" in rows["held_out_bright"]


def test_a_resumed_mixture_ends_with_the_same_bits(mixed, tmp_path):
    file, whole = mixed
    arguments = train(file, tmp_path / "out")
    assert command(*arguments, "--set", "train.num_steps=2").exit_code == 0
    assert command(*arguments, "--resume", "--set", "train.num_steps=4").exit_code == 0
    assert weights(tmp_path / "out") == weights(whole)
    assert records(tmp_path / "out", "step") == records(whole, "step")


def test_processes_mix_as_one_does(folder, tmp_path):
    """Normalization and penalty use values of all ranks, so the batch layout is only rounding."""
    method, log = {"form": "anchored", "branches": "denoise", **SRPO}, tmp_path / "log"
    file = recipe(folder, tmp_path / "mix.yaml", MIX, method, max_grad_norm=100.0)
    assert launching.one_process(train(file, tmp_path / "one"), log) == 0, log.read_text()
    arguments = train(file, tmp_path / "two", "--set=data.batch_size=1")
    assert two(arguments, log) == [0, 0], log.read_text()
    ours, theirs = (records(tmp_path / out, "step") for out in ("two", "one"))
    for a, b in zip(ours, theirs, strict=True):
        assert a["metrics"] == pytest.approx(b["metrics"], rel=1e-3, abs=1e-4)


# --- a server that fails --------------------------------------------------------------------------


class Server:
    """Scores an image by the length of its file and prompt, for `left` more requests."""

    def __init__(self) -> None:
        self.left, self.port = 10**9, 0

    @contextmanager
    def up(self) -> Iterator[None]:
        """The server, on the same port every time."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.left -= 1
                if server.left < 0:
                    return  # the connection ends without an answer
                pairs = zip(given["images"], given["prompts"], strict=True)
                scores = [len(image) / 1000 + len(prompt) / 100 for image, prompt in pairs]
                body = json.dumps({"scores": scores}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                del format, args

        with ThreadingHTTPServer(("127.0.0.1", self.port), Handler) as http_server:
            self.port = http_server.server_port
            threading.Thread(target=http_server.serve_forever, args=(0.01,), daemon=True).start()
            yield
            http_server.shutdown()

    def reward(self) -> dict[str, Any]:
        return {"name": "remote", "url": self.url, "retries": 1}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/score"


def test_a_server_that_fails_stops_the_run_and_resume_continues_it(folder, tmp_path):
    """In a step that begins a rollout, after its first batch."""
    server, out, whole = Server(), tmp_path / "out", tmp_path / "whole"
    with server.up():
        far = {"label": "far", "reward": server.reward()}
        reward = {"name": "mix", "members": [MEMBERS[2], far]}
        settings = {"num_steps": 6, "gradient_accumulation_steps": 2}
        file = recipe(folder, tmp_path / "remote.yaml", reward, GRPO, **settings)
        assert command(*train(file, whole)).exit_code == 0
        server.left = 6
        result = command(*train(file, out))
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("directalign: ")]
    assert f"{server.port}/score: no answer (RemoteDisconnected" in line and "(2 attempts)" in line
    done = int(line.split("; step ")[1].split()[0])
    assert done in (2, 4)
    assert line.endswith(f"step {done} of 6 is saved: continue with --resume --out {out}")
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-00000{done}"]

    refused = command(*train(file, out, "--resume"))
    assert refused.exit_code == 1 and "connection refused" in refused.stderr
    server.left = 10**9
    with server.up():
        assert command(*train(file, out, "--resume")).exit_code == 0
    assert weights(out) == weights(whole) and records(out) == records(whole)


def test_all_ranks_stop_when_the_server_of_one_fails(folder, tmp_path):
    """In the third step."""
    server, out, log = Server(), tmp_path / "out", tmp_path / "log"
    with server.up():
        method = {**GRPO, "form": "relative"}
        file = recipe(folder, tmp_path / "ranks.yaml", server.reward(), method, num_steps=6)
        arguments = train(file, out, "--set=data.batch_size=1", "--set=evaluate.every=4")
        server.left = 8
        assert two(arguments, log) == [1, 1], log.read_text()
        output = log.read_text()
        assert "reward.url: " in output and " is saved: continue with --resume" in output
        assert "lost the connection" not in output
        assert len(list((out / "checkpoints").glob("step-*"))) == 1
        server.left = 10**9
        assert two([*arguments, "--resume"], log) == [0, 0], log.read_text()
        whole = train(file, tmp_path / "whole", "--set=data.batch_size=1")
        assert two(whole, log) == [0, 0], log.read_text()
    assert weights(out) == weights(tmp_path / "whole")


def test_a_server_may_move_and_be_asked_otherwise(folder, tmp_path):
    """Between two calls, after the first checkpoint; what changes the score may not."""
    server, out, whole = Server(), tmp_path / "out", tmp_path / "whole"
    with server.up():
        method = {**GRPO, "form": "absolute", "control_phrases": {}}
        file = recipe(folder, tmp_path / "remote.yaml", server.reward(), method, num_steps=3)
        assert command(*train(file, whole)).exit_code == 0
        server.left = 3
        assert "no answer" in command(*train(file, out)).stderr
    server.left, server.port = 10**9, 0
    with server.up():
        moved = [f"--set=reward.{each}" for each in (f"url={server.url}", "batch_size=1")]
        other = command(*train(file, out, "--resume", *moved, "--set=reward.scale=2"))
        assert "reward.scale 1.0 -> 2.0; restore" in other.stderr
        moved.append("--set=reward.timeout=9")
        assert command(*train(file, out, "--resume", *moved)).exit_code == 0
    assert weights(out) == weights(whole) and records(out) == records(whole)
    assert server.url in (out / "run.yaml").read_text()
