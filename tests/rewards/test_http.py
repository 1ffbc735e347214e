"""A reward behind HTTP: requests, responses, retries, several ranks, and the reference server."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from directalign import config
from directalign.interfaces import Reward
from directalign.rewards import check_reward, http, load_reward
from directalign.rewards.distributed import SynchronizedError, synchronized
from directalign.rewards.mixture import Member, MixReward
from directalign.rewards.python_function import PythonReward
from directalign.types import DirectAlignError

ROOT = Path(__file__).parents[2]
PROMPTS = ["a", "bcd", "ef"]
Answer = Callable[[dict[str, Any]], tuple[int, bytes]]


def images() -> Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def scores(given: dict[str, Any]) -> tuple[int, bytes]:
    """The mean of each picture and the length of its prompt."""
    means = [
        np.array(Image.open(io.BytesIO(base64.b64decode(each)))).mean() / 255
        for each in given["images"]
    ]
    return 200, json.dumps(
        {
            "scores": [
                mean + len(prompt) for mean, prompt in zip(means, given["prompts"], strict=True)
            ]
        }
    ).encode()


@contextmanager
def served(*answers: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(address, requests) of a server that gives each response once, then repeats the last."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = answers[min(len(asked), len(answers)) - 1](asked[-1])
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/score", asked
        server.shutdown()


def free_address() -> str:
    """Where nobody listens."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return f"http://127.0.0.1:{server.server_port}/score"


def reward_at(url: str, **settings: Any) -> Reward:
    return load_reward(config.HttpConfig(url=url, **{"retries": 0, **settings}), key="reward")


def ask(reward: Reward) -> Tensor:
    return reward.score(reward.encode(images().double()), tuple(PROMPTS))


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits are noted, not waited."""
    waits: list[float] = []
    monkeypatch.setattr(http.time, "sleep", waits.append)
    return waits


def test_pictures_and_prompts_are_sent_in_batches_and_numbers_come_back() -> None:
    with served(scores) as (url, asked):
        reward = reward_at(url, batch_size=2, scale=2.0)
        found = ask(reward)
    assert isinstance(reward, Reward) and reward.reads_prompt and not reward.differentiable
    torch.testing.assert_close(
        found, 2 * (images().mean((1, 2, 3)) + torch.tensor([1.0, 3.0, 2.0])), rtol=0, atol=2e-3
    )
    assert found.dtype == torch.float32 and [each["prompts"] for each in asked] == [
        ["a", "bcd"],
        ["ef"],
    ]
    picture = np.array(Image.open(io.BytesIO(base64.b64decode(asked[0]["images"][1]))))
    assert np.abs(picture.transpose(2, 0, 1) / 255 - images()[1].numpy()).max() <= 0.5 / 255 + 1e-6


def test_an_image_is_encoded_once_for_two_questions() -> None:
    with served(scores) as (url, asked):
        reward = reward_at(url)
        features = reward.encode(images())
        first, second = (
            reward.score(features, [f"{word}. {prompt}" for prompt in PROMPTS])
            for word in ("Photo", "CG")
        )
    torch.testing.assert_close(first - second, torch.full((3,), 3.0))
    assert asked[0]["images"] == asked[1]["images"]


def failing(status: int, text: str = "") -> Answer:
    return lambda given: (status, text.encode())


def saying(scores: Any) -> Answer:
    return lambda given: (200, json.dumps({"scores": scores}).encode())


def test_a_passing_failure_is_tried_again_after_doubling_waits(hurry: list[float]) -> None:
    with served(failing(503, "loading"), failing(500), failing(429), scores) as (url, asked):
        found = ask(reward_at(url, retries=3))
    assert len(found) == 3 and len(asked) == 4 and hurry == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("answer", "complaint", "attempts"),
    [
        (
            failing(503, "model is\nloading"),
            r"HTTP 503 .*'model is loading' \(2 attempts\); check the server",
            2,
        ),
        (
            failing(404, "no such path"),
            r"HTTP 404 .*'no such path'; check that a reward server answers",
            1,
        ),
        (failing(400, "x" * 900), r"HTTP 400 .*'x{200}'\.\.\.;", 1),
        (
            failing(200, "<html>hello</html>"),
            r"responds with '<html>hello</html>'",
            1,
        ),
        (
            failing(200, '{"score": 1}'),
            r"responds with '\{\"score\": 1\}'; it must send \{\"scores\"",
            1,
        ),
        (failing(200, "[1, 2, 3]"), r"responds with '\[1, 2, 3\]'; it must send", 1),
        (
            saying([1.0, 2.0]),
            r"\"scores\" a list or tensor of 3 numbers, one per image; it returned shape \(2,\)",
            1,
        ),
        (saying([1.0, float("nan"), 2.0]), r"number 1 is nan: give every image a finite score", 1),
        (saying(["a", "b", "c"]), r"it returned a list", 1),
        (saying(None), r"it returned a NoneType", 1),
    ],
)
def test_what_is_no_answer_is_one_line_with_the_address(
    answer: Answer, complaint: str, attempts: int
) -> None:
    with served(answer) as (url, asked), pytest.raises(DirectAlignError, match=complaint) as raised:
        ask(reward_at(url, retries=1))
    assert str(raised.value).startswith(f"reward.url: {url}") and "\n" not in str(raised.value)
    assert len(asked) == attempts


def test_nobody_there_is_said(hurry: list[float]) -> None:
    url = free_address()
    with pytest.raises(
        DirectAlignError,
        match=rf"^reward\.url: {url}: connection refused, nothing listens there \(3 attempts\)",
    ):
        ask(reward_at(url, retries=2))
    assert hurry == [1.0, 2.0]


def test_a_server_that_takes_too_long_is_left() -> None:
    slow = threading.Event()

    def late(given: dict[str, Any]) -> tuple[int, bytes]:
        slow.wait(5)
        return scores(given)

    with served(late) as (url, _):
        with pytest.raises(DirectAlignError, match=r"no answer within 0\.2 s \(1 attempt\)"):
            ask(reward_at(url, timeout=0.2))
        slow.set()


def test_a_torn_answer_is_tried_again() -> None:
    class Torn(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b'{"scores": [')

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Torn) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with pytest.raises(
            DirectAlignError, match=r"no answer \(IncompleteRead: .* \(2 attempts\)"
        ):
            ask(reward_at(f"http://127.0.0.1:{server.server_port}/score", retries=1))
        server.shutdown()


def test_the_check_asks_about_one_image_when_it_may() -> None:
    settings = config.HttpConfig(url=free_address(), retries=0)
    check_reward(settings)
    with pytest.raises(
        DirectAlignError, match=r"reward\.members\.0\.reward\.url: .* connection refused"
    ):
        check_reward(settings, "reward.members.0.reward", online=True)
    with served(scores) as (url, asked):
        check_reward(config.HttpConfig(url=url), online=True)
    assert [each["prompts"] for each in asked] == [[""]]
    with pytest.raises(DirectAlignError, match=r"reward\.url: http:///score names no host"):
        check_reward(config.HttpConfig(url="http:///score"))


# --- several ranks
# ---


class Both:
    """Rank `rank` of two that do the same, of whom rank 1 fails with `words` or not at all."""

    size = 2

    def __init__(self, rank: int, words: str = "") -> None:
        self.rank, self.words = rank, words

    def sum(self, values: Tensor) -> Tensor:
        return values + (1.0 if self.words and self.rank == 0 else 0.0)

    def gather(self, values: Tensor) -> Tensor:
        other = torch.zeros_like(values)
        if self.rank == 0:
            other[0, : len(self.words)] = torch.tensor(list(self.words.encode()), dtype=torch.uint8)
            return torch.cat([values, other])
        return torch.cat([other, values])


def fine(images: Tensor, prompts: list[str]) -> list[float]:
    return [1.0] * len(prompts)


def broken(images: Tensor, prompts: list[str]) -> list[float]:
    return [1.0]


def test_a_black_box_that_fails_on_one_rank_fails_on_all() -> None:
    with pytest.raises(SynchronizedError, match=r"^rank 1: it was the network$"):
        ask(synchronized(PythonReward(fine), Both(0, "it was the network")))
    with pytest.raises(
        SynchronizedError,
        match=r"^rank 1: reward: function must return a list or tensor of 3 numbers",
    ):
        ask(synchronized(PythonReward(broken), Both(1, "failed")))
    assert ask(synchronized(PythonReward(fine), Both(0))).tolist() == [1.0, 1.0, 1.0]


def test_black_boxes_within_a_mixture_agree_too() -> None:
    given = {"reward": {"name": "pixels", "statistic": "redness"}}
    parsed = config.MixtureConfig.model_validate(
        {"members": [{"label": "a", **given}, {"label": "b", **given}]}
    )
    mix = MixReward(
        [
            Member(parsed.members[0], load_reward(parsed.members[0].reward)),
            Member(parsed.members[1], PythonReward(fine)),
        ],
        parsed,
    )
    with pytest.raises(SynchronizedError, match=r"^rank 1: gone$"):
        ask(synchronized(mix, Both(0, "gone")))


# --- the reference server
# ---


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location(
        "reward_server", ROOT / "examples" / "reward_server.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    with server:
        handler: Any = server.RequestHandlerClass
        handler.log_message = lambda *words: None
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/score"
        server.shutdown()


def test_the_server_serves_the_reward_of_a_recipe(example: Any) -> None:
    recipe = "world_srpo"
    here = load_reward(config.ClipConfig(path="world:reward"))
    with running(example.server_of(example.score_of(recipe, "cpu"), 0)) as url:
        found = ask(reward_at(url))
    rounded = (images() * 255).round() / 255
    torch.testing.assert_close(found, here.score(here.encode(rounded), PROMPTS), rtol=0, atol=1e-5)


def test_the_server_serves_a_function_and_tells_whose_fault_it_is(
    example: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "def score(images, prompts):\n    if 'bad' in prompts: raise RuntimeError('no model')\n    "
        "return images.mean((1, 2, 3))\n"
    )
    with running(
        example.server_of(example.score_of(f"{tmp_path / 'mine.py'}:score", "cpu"), 0)
    ) as url:
        torch.testing.assert_close(ask(reward_at(url)), images().mean((1, 2, 3)), rtol=0, atol=2e-3)
        reward = reward_at(url)
        with pytest.raises(DirectAlignError, match=r"HTTP 500 .*RuntimeError: no model"):
            reward.score(reward.encode(images()), ["bad"] * 3)
        with pytest.raises(DirectAlignError, match=r"HTTP 400 .*want POST /score"):
            ask(reward_at(url.replace("/score", "/else")))
        with pytest.raises(DirectAlignError, match=r"HTTP 400 .*want .*prompts"):
            reward.score(("no picture",) * 3, PROMPTS)


def test_the_server_listens_on_this_machine_alone(example: Any) -> None:
    with example.server_of(lambda images, prompts: [0.0], 0) as server:
        assert server.server_address[0] == "127.0.0.1"


# --- functions with a gradient
# ---


def function_reward(folder: Path, body: str) -> Reward:
    (folder / "own.py").write_text(
        f"import torch\ndef score(images, prompts):\n    return {body}\n"
    )
    return load_reward(
        config.PythonConfig(path=f"{folder / 'own.py'}:score", differentiable=True, scale=3.0)
    )


def test_a_torch_function_keeps_its_gradient(tmp_path: Path) -> None:
    reward, at = (
        function_reward(tmp_path, "images.square().mean((1, 2, 3))"),
        images().requires_grad_(),
    )
    assert isinstance(reward, Reward) and reward.differentiable
    gradient = torch.autograd.grad(reward.score(reward.encode(at), PROMPTS).sum(), at)[0]
    torch.testing.assert_close(gradient, 3 * 2 * at.detach() / (3 * 8 * 8))


@pytest.mark.parametrize("body", ["images.detach().mean((1, 2, 3))", "[1.0, 2.0, 3.0]"])
def test_a_function_that_loses_the_gradient_is_told(tmp_path: Path, body: str) -> None:
    reward = function_reward(tmp_path, body)
    with pytest.raises(
        DirectAlignError,
        match=r"reward\.path: .*own\.py:score must return a tensor with a gradient .* without detach",  # noqa: E501
    ):
        reward.score(reward.encode(images().requires_grad_()), PROMPTS)
    assert (
        len(reward.score(reward.encode(images()), PROMPTS)) == 3
    )  # where none is asked for, as in a measurement
