"""Python functions and HTTP servers as rewards: results, gradients, errors, several ranks."""

import base64
import io
import json
import os
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from directalign import config
from directalign.config.load import load_run
from directalign.evaluation.eval_prompts import EvalSample
from directalign.evaluation.scores import MetricInput, trained_reward_metrics
from directalign.interfaces import Reward
from directalign.methods.objective import build_objective
from directalign.preflight import checks
from directalign.rewards import black_box, check_reward, load_reward
from directalign.rewards.black_box import PythonReward, SynchronizedError, synchronized
from directalign.rewards.common import score_all
from directalign.rewards.mixture import Member, MixReward
from directalign.types import Batch
from rewards.black_boxes import PROMPTS, Answer, failing, images, means, running, served
from rewards.cases import refused, scores_of

LENGTHS = torch.tensor([1.0, 3.0, 2.0])


def score(reward: Reward, prompts: list[str] = PROMPTS) -> Tensor:
    return scores_of(reward, images().double(), prompts)


# --- Python functions and classes -----------------------------------------------------------------

SOURCE = """
import torch

number = 3

def score(images, prompts, factor):
    return factor * images.mean((1, 2, 3))

class Callable:
    reads_prompt = False
    def __init__(self, factor):
        self.factor = factor
    def __call__(self, images, prompts):
        return self.factor * images.mean((1, 2, 3))

class TwoCalls(Callable):
    encoded = 0
    def encode(self, images):
        self.encoded += 1
        return images.mean((1, 2, 3))
    def score(self, features, prompts):
        return self.factor * features
"""


@pytest.fixture
def own(tmp_path):
    """The user's file."""
    (tmp_path / "own.py").write_text(SOURCE)
    return tmp_path / "own.py"


def test_a_function_gets_plain_images_and_a_list():
    def measure(given: Tensor, prompts: list[str]) -> Tensor:
        assert given.dtype == torch.float32 and not given.requires_grad and prompts == PROMPTS
        return means(given)

    reward = PythonReward(measure)
    found = reward.score(reward.encode(images().double().requires_grad_()), tuple(PROMPTS))
    assert found.dtype == torch.float32 and found.equal(means(images()))


class Changing:
    """Changes its images and its features, a pair of tensors, in place."""

    def encode(self, given: Tensor) -> tuple[Tensor, list[Tensor]]:
        return means(given.mul_(255)), [given]

    def score(self, features: tuple[Tensor, list[Tensor]], prompts: list[str]) -> Tensor:
        features[1][0].zero_()
        return features[0].mul_(2)


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize(
    ("function", "factor"), [(lambda given, prompts: means(given.mul_(255)), 1), (Changing(), 2)]
)
def test_what_the_code_does_to_its_images_stays_in_the_call(function, factor, differentiable):
    reward, given = PythonReward(function, differentiable=differentiable), images()
    given.requires_grad_(differentiable)
    features = reward.encode(given)
    found = [reward.score(features, PROMPTS) for _ in range(2)]
    assert given.equal(images()) and found[0].equal(found[1])
    assert found[0].allclose(255 * factor * means(images()))
    if differentiable:
        assert torch.autograd.grad(found[1].sum(), given)[0].std() == 0


def test_the_global_state_is_as_before_the_call():
    def careless(given: Tensor, prompts: list[str]) -> Tensor:
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(len(prompts))
        os.chdir("/")
        return means(given)

    before, folder = torch.get_rng_state(), Path.cwd()
    assert score(PythonReward(careless)).equal(means(images()))
    assert torch.is_grad_enabled() and torch.get_default_dtype() is torch.float32
    assert torch.get_rng_state().equal(before) and Path.cwd() == folder


@pytest.mark.parametrize(
    "answer",
    [[1, 2.5, 3], (1.0, 2.5, 3), np.array([1.0, 2.5, 3]), torch.tensor([1, 2.5, 3]).double()],
)
def test_any_sequence_of_numbers_is_accepted(answer):
    assert score(PythonReward(lambda images, prompts: answer)).tolist() == [1.0, 2.5, 3.0]


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ([1.0], r"3 numbers, one per image; it returned shape \(1,\)"),
        (torch.zeros(3, 1), r"shape \(3, 1\)"),
        ([1.0, float("nan"), 0.0], "number 1 is nan"),
        (None, "it returned a NoneType"),
        (["good", "bad", "bad"], r"number 0 is 'good' \(str\)"),
        ([0.5, True, 0.0], r"number 1 is True \(bool\)"),
        ([0.5, 1.0, 1j], r"number 2 is 1j \(complex\)"),
        (torch.zeros(3, dtype=torch.complex64), "an array of complex64"),
        (np.array(["1", "2", "3"]), "an array of <U1"),
        ([10**400, 0.0, 0.0], "too large"),
    ],
)
def test_an_unusable_result_is_refused(answer, complaint):
    reward = PythonReward(lambda images, prompts: answer, source="reward.path: own.py:score")
    with refused(rf"reward\.path: own\.py:score must return .*{complaint}"):
        score(reward)


def test_errors_of_the_function_name_it():
    def fails(images: Any, prompts: Any) -> Any:
        raise ConnectionError("the service is down")

    for differentiable in (False, True):
        with refused(r"own\.py fails \(ConnectionError: the service is down\); correct the"):
            score(PythonReward(fails, 1.0, "own.py", differentiable))


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("own.py", "names no function; write file.py:function"),
        ("other.py:score", "no such Python file"),
        ("own.py:rate", "has no function 'rate'"),
        ("own.py:number", "'number' in .*own.py is a int, which cannot be called"),
        ("torn.py:score", r"torn\.py cannot be run \(SyntaxError"),
        ("poor.py:score", r"poor\.py cannot be run \(ModuleNotFoundError: .*'nowhere_to_be_found'"),
        ("own.py:Callable", r"cannot be constructed with args {'other': 1}"),
    ],
)
def test_unusable_files_are_found_by_the_check(own, path, complaint):
    (own.parent / "torn.py").write_text("def score(:\n")
    (own.parent / "poor.py").write_text("import nowhere_to_be_found\n")
    with refused(rf"held\.path: .*{complaint}"):
        check_reward(config.PythonConfig(path=f"{own.parent}/{path}", args={"other": 1}), "held")


@pytest.mark.parametrize("name", ["srpo", "draft"])
def test_a_method_that_needs_a_gradient_is_refused(own, name):
    reward = f"reward={{name: python, path: '{own}:score'}}"
    checks.check_reward(load_run("remote_reward", [reward]))
    run = load_run("world_srpo", [reward, f"method={{name: {name}, form: absolute}}"])
    with refused(rf"method\.name {name} needs its gradient .* set method\.name: flow_grpo"):
        checks.check_reward(run)


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("name", ["score", "Callable", "TwoCalls"])
def test_functions_and_classes_take_args_and_keep_the_gradient(own, name, differentiable):
    settings = config.PythonConfig(
        path=f"{own}:{name}", args={"factor": 3.0}, differentiable=differentiable, scale=2.0
    )
    reward, given = load_reward(settings), images().requires_grad_()
    assert isinstance(reward, Reward) and reward.differentiable == differentiable
    assert reward.reads_prompt == (name == "score")
    features = reward.encode(given)
    scores = [reward.score(features, PROMPTS) for _ in range(2)]
    assert torch.allclose(scores[0], 6 * means(given)) and torch.equal(*scores)
    if name == "TwoCalls":
        assert reward.function.encoded == 1  # pyright: ignore[reportAttributeAccessIssue]
    if differentiable:
        (gradient,) = torch.autograd.grad(scores[0].sum(), given)
        torch.testing.assert_close(gradient, torch.full_like(given, 6 / (3 * 8 * 8)))
    else:
        assert not scores[0].requires_grad


@pytest.mark.parametrize("body", ["images.detach().mean((1, 2, 3))", "[1.0, 2.0, 3.0]"])
def test_a_lost_gradient_is_refused(tmp_path, body):
    (tmp_path / "own.py").write_text(f"def score(images, prompts):\n    return {body}\n")
    settings = config.PythonConfig(path=f"{tmp_path}/own.py:score", differentiable=True)
    reward = load_reward(settings)
    with refused(r"own\.py:score must return a tensor with a gradient .* without detach"):
        reward.score(reward.encode(images().requires_grad_()), PROMPTS)
    assert len(score(reward)) == 3  # where no gradient is requested, as in a measurement


class Counting:
    """Counts the calls of the user's function; the score depends on image and prompt."""

    calls = 0

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        self.calls += 1
        return means(images) * torch.tensor([float(len(prompt)) for prompt in prompts])


class Encoding(Counting):
    """The same in two calls; counts those that encode."""

    def encode(self, images: Tensor) -> Tensor:
        self.calls += 1
        return means(images)

    def score(self, features: Tensor, prompts: list[str]) -> Tensor:
        return features * torch.tensor([float(len(prompt)) for prompt in prompts])


class Singly:
    """A reward that is asked once per phrase."""

    name, sees, reads_prompt, differentiable = "singly", "pixels", True, True

    def __init__(self, reward: Reward) -> None:
        self.encode, self.score = reward.encode, reward.score


@pytest.mark.parametrize("kind", [Counting, Encoding])
@pytest.mark.parametrize("form", ["absolute", "relative", "anchored"])
def test_the_function_is_called_once_per_batch(form, kind):
    phrases = {"positive": ["A", "Bc", "Def"], "negative": ["G", "Hi"], "order": "average"}
    settings = config.SRPOConfig.model_validate({"form": form, "control_phrases": phrases})
    function, batch = kind(), Batch(0, tuple(PROMPTS))
    reward, given = PythonReward(function, differentiable=True), images().requires_grad_()
    outputs = []
    for each in (reward, Singly(reward)):
        found = build_objective(each, settings)(given, batch, 0.3, 0.2)
        outputs.append((found.reward, torch.autograd.grad(found.reward.sum(), given)[0]))
        if each is reward:
            assert function.calls == 1
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("mixed", [False, True])
def test_measurements_call_the_function_once_per_batch(mixed):
    function = Counting()
    reward: Any = PythonReward(function)
    if mixed:
        member = {"label": "own", "weight": 2.0, "reward": {"name": "python", "path": "f.py:f"}}
        other = member | {"label": "other", "reward": {"name": "pixels", "statistic": "redness"}}
        settings = config.MixtureConfig.model_validate({"members": [member, other]})
        loaded = [reward, load_reward(settings.members[1].reward)]
        reward = MixReward(list(map(Member, settings.members, loaded)), settings)
    run = load_run("world_srpo", ["evaluate.batch_size=2"])
    metrics = trained_reward_metrics(reward, run, "cpu")
    samples = [EvalSample(i, prompt, 0) for i, prompt in enumerate(PROMPTS)]
    found = metrics(MetricInput(samples, images()))
    assert function.calls == 2  # three images in batches of two
    assert {"reward", "score_pos", "score_neg"} <= set(found)
    torch.testing.assert_close(found["reward"], scores_of(reward, images(), PROMPTS))


def test_a_server_gets_all_phrases_of_a_batch_in_as_few_requests_as_fit():
    texts = [PROMPTS, ["xy", "x", ""]]
    with served(scores) as (url, requests):
        reward = reward_at(url, batch_size=4)
        features = reward.encode(images())
        found = score_all(reward, features, texts)
        assert [len(each["prompts"]) for each in requests] == [4, 2]
        assert found.equal(torch.stack([reward.score(features, each) for each in texts]))


# --- a server -------------------------------------------------------------------------------------


def pictures(given: dict[str, Any]) -> list[np.ndarray]:
    return [
        np.array(Image.open(io.BytesIO(base64.b64decode(each)))) / 255 for each in given["images"]
    ]


def scores(given: dict[str, Any]) -> tuple[int, bytes]:
    """The mean of each picture and the length of its prompt."""
    pairs = zip(pictures(given), given["prompts"], strict=True)
    return saying([picture.mean() + len(prompt) for picture, prompt in pairs])(given)


def saying(scores: Any) -> Answer:
    return failing(200, json.dumps({"scores": scores}))


def reward_at(url: str, **settings: Any) -> Reward:
    return load_reward(config.HttpConfig(url=url, **{"retries": 0, **settings}))


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Waits are recorded and skipped."""
    waits: list[float] = []
    monkeypatch.setattr(black_box.time, "sleep", waits.append)
    return waits


def test_pictures_and_prompts_are_sent_in_batches():
    with served(scores) as (url, requests):
        reward = reward_at(url, batch_size=2, scale=2.0)
        found = score(reward)
    assert isinstance(reward, Reward) and reward.reads_prompt and not reward.differentiable
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, 2 * (means(images()) + LENGTHS), rtol=0, atol=2e-3)
    assert [each["prompts"] for each in requests] == [["a", "bcd"], ["ef"]]
    picture = pictures(requests[0])[1].transpose(2, 0, 1)
    assert np.abs(picture - images()[1].numpy()).max() <= 0.5 / 255 + 1e-6


def test_temporary_failures_are_retried_after_doubling_waits(waits):
    with served(failing(503), failing(200, "{", cut=True), failing(429), scores) as (url, requests):
        found = score(reward_at(url, retries=3))
    assert len(found) == 3 and len(requests) == 4 and waits == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("answer", "complaint", "attempts"),
    [
        (
            failing(503, "being\nloaded"),
            r"HTTP 503 of \[2J tests: 'being loaded' \(2 attempts\); check the",
            2,
        ),
        (failing(200, "{", cut=True), r"no answer \(IncompleteRead: .* \(2 attempts\)", 2),
        (failing(404, "no path"), r"HTTP 404 .*'no path'; check that a reward server answers", 1),
        (failing(400, "x" * 900), r"HTTP 400 .*'x{200}'\.\.\.;", 1),
        (failing(200, "<html>hello</html>"), r"responds with '<html>hello</html>'", 1),
        (failing(200, '{"score": 1}'), r"'\{\"score\": 1\}'; it must send \{\"scores\"", 1),
        (
            failing(302, "elsewhere"),
            r"redirects to http://127\.0\.0\.1:1/, which is not followed",
            1,
        ),
        (failing(200, " " * 2**20), r"more than the 65,836 bytes", 1),
        (saying([1.0, True, 2.0]), r"number 1 is True \(bool\)", 1),
        (saying([1.0, 2.0]), r"\"scores\" a list .* of 3 numbers, .* returned shape \(2,\)", 1),
        (saying([1.0, float("nan"), 2.0]), r"number 1 is nan: give every image a finite score", 1),
    ],
)
def test_unusable_responses_name_the_address(answer, complaint, attempts):
    with served(answer) as (url, requests):
        with refused(rf"^reward\.url: {url}.*{complaint}"):
            score(reward_at(url, retries=1))
        assert len(requests) == attempts


def test_without_a_server_or_a_timely_response(waits, free_address):
    with refused(r"connection refused, nothing listens there \(3 attempts\)"):
        score(reward_at(free_address, retries=2))
    assert waits == [1.0, 2.0]
    slow = threading.Event()

    def late(given: dict[str, Any]) -> tuple[int, bytes]:
        slow.wait(5)
        return scores(given)

    with served(late) as (url, _):
        with refused(r"no answer within 0\.2 s \(1 attempt\)"):
            score(reward_at(url, timeout=0.2))
        slow.set()


@pytest.mark.parametrize("at", ["headers", "body of unknown length", "error"])
def test_the_timeout_is_for_the_whole_answer(at):
    done = threading.Event()

    class Trickling(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            start = "HTTP/1.0 200 OK\r\nX: "
            if at != "headers":
                length = "" if "unknown" in at else "Content-Length: 1000\r\n"
                start = f"HTTP/1.0 {500 if at == 'error' else 200} OK\r\n{length}\r\n"
            self.wfile.write(start.encode())
            with suppress(OSError):
                while not done.wait(0.05):
                    self.wfile.write(b" ")

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Trickling)) as url:
        with refused(r"no answer within 0\.4 s \(1 attempt\)"):
            score(reward_at(url, timeout=0.4))
        done.set()


@pytest.mark.parametrize("answers", [False, True])
def test_a_proxy_of_the_environment_is_named(answers, monkeypatch, free_address):
    with served(failing(502, "no route"), scores) as (url, _):
        proxy = (url if answers else free_address).removesuffix("/score")
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, proxy.replace("//", "//user:secret@"))
        monkeypatch.setenv("no_proxy", "")
        reward, host = reward_at("http://rewards.example/score"), proxy.removeprefix("http://")
        with refused(rf"by way of the proxy {host} .*no_proxy=rewards\.example") as raised:
            score(reward)
    assert "secret" not in str(raised.value)


def test_the_check_requests_one_score_only_if_online(free_address):
    settings = config.HttpConfig(url=free_address, retries=0)
    check_reward(settings)
    with refused(r"reward\.members\.0\.reward\.url: .* connection refused"):
        check_reward(settings, "reward.members.0.reward", online=True)
    with served(scores) as (url, requests):
        check_reward(config.HttpConfig(url=url), online=True)
    assert [each["prompts"] for each in requests] == [[""]]
    with refused(r"reward\.url: http:///score names no host"):
        check_reward(config.HttpConfig(url="http:///score"))


# --- several ranks --------------------------------------------------------------------------------


class TwoRanks:
    """Rank `rank` of two that do the same; rank 1 fails with `message` unless it is empty."""

    size = 2

    def __init__(self, rank: int, message: str = "") -> None:
        self.rank, self.message = rank, message

    def sum(self, values: Tensor) -> Tensor:
        return values + (1.0 if self.message and self.rank == 0 else 0.0)

    def gather(self, values: Tensor) -> Tensor:
        other = torch.zeros_like(values)
        if self.rank == 1:
            return torch.cat([other, values])
        content = list(self.message.encode())
        other[0, : len(content)] = torch.tensor(content, dtype=torch.uint8)
        return torch.cat([values, other])


def test_a_failure_on_one_rank_is_raised_on_all_also_in_a_mixture():
    fine, broken = (PythonReward(lambda images, prompts, n=n: [1.0] * n) for n in (3, 1))
    pixels = {"name": "pixels", "statistic": "redness"}
    members = [{"label": label, "reward": pixels} for label in ("a", "b")]
    settings = config.MixtureConfig.model_validate({"members": members})
    both = zip(settings.members, (load_reward(settings.members[0].reward), fine), strict=True)
    mix = MixReward([Member(*each) for each in both], settings)
    for reward, group, message in (
        (fine, TwoRanks(0, "it was the network"), "it was the network$"),
        (broken, TwoRanks(1, "failed"), "reward: function must return a list or tensor of 3"),
        (mix, TwoRanks(0, "gone"), "gone$"),
    ):
        with pytest.raises(SynchronizedError, match=f"^rank 1: {message}"):
            score(synchronized(reward, group))
    assert score(synchronized(fine, TwoRanks(0))).tolist() == [1.0, 1.0, 1.0]
