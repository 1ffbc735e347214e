"""A vision-language model behind an OpenAI-compatible address: requests, scores, errors."""

import base64
import io
import json
import logging
import threading
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from directalign import config
from directalign.config.load import load_run
from directalign.preflight import checks
from directalign.rewards import black_box, check_reward, load_reward
from directalign.rewards.common import score_all
from directalign.types import DirectAlignError
from rewards.black_boxes import PROMPTS, Answer, failing, images, means, served
from rewards.cases import refused

ASKED = "Rate it from 0 to 9.\nCaption: [{prompt}]"
UNIFIED = r"(?s)Alignment.*?: ([\d.]+).*Coherence.*?: ([\d.]+).*Style.*?: ([\d.]+)"


def vlm_at(url: str, **settings: Any) -> Any:
    given = {"model": "unified", "template": ASKED, "retries": 0, **settings}
    return load_reward(config.VlmApiConfig(url=url, **given))


def scored(reward: Any, prompts: list[str] = PROMPTS) -> Tensor:
    return reward.score(reward.encode(images()), prompts)


def saying(content: Any, **choice: Any) -> Answer:
    return failing(200, json.dumps({"choices": [{"message": {"content": content}, **choice}]}))


def seen(given: dict[str, Any]) -> tuple[float, str]:
    """Mean of the image and text of a request."""
    image, text = given["messages"][0]["content"]
    kind, data = image["image_url"]["url"].split(",")
    assert kind == "data:image/png;base64"
    return float(np.array(Image.open(io.BytesIO(base64.b64decode(data)))).mean() / 255), text[
        "text"
    ]


def measuring(given: dict[str, Any]) -> tuple[int, bytes]:
    """The mean of the image plus the length of the prompt."""
    mean, text = seen(given)
    return saying(f"{mean + len(text) - len(ASKED) + len('{prompt}'):.6f}")(given)


def test_scores_are_in_order_of_images_and_phrases_with_many_requests_at_a_time():
    first, together = threading.Event(), threading.Barrier(3, timeout=10)

    def slow_first(given: dict[str, Any]) -> tuple[int, bytes]:
        if not first.is_set():
            together.wait()  # only if three requests are under way at once
            first.set()
        return measuring(given)

    texts = [PROMPTS, ["xy", "x", ""]]
    with served(slow_first) as (url, requests):
        reward = vlm_at(url, scale=2.0, concurrency=3, options={"max_tokens": 5})
        found = score_all(reward, reward.encode(images()), texts)
    lengths = torch.tensor([[float(len(prompt)) for prompt in row] for row in texts])
    torch.testing.assert_close(found, 2 * (means(images()) + lengths), rtol=0, atol=8e-3)
    assert sorted(seen(each)[1] for each in requests) == sorted(
        ASKED.replace("{prompt}", prompt) for row in texts for prompt in row
    )
    assert all(
        (each["model"], each["max_tokens"], each["Authorization"]) == ("unified", 5, None)
        for each in requests
    )


@pytest.mark.parametrize(
    ("content", "pattern", "number"),
    [
        (" 4.5\n", None, 4.5),
        ("Final Score: 3", r"Final Score: (\d)", 3),
        ("Alignment (1-5): 3.6\nCoherence (1-5): 4.0\nStyle (1-5): 2", UNIFIED, 3.2),
    ],
)
def test_a_pattern_reads_the_number_or_the_mean_of_several(content, pattern, number):
    with served(saying(content)) as (url, _):
        reward = vlm_at(url, **({"pattern": pattern} if pattern else {}))
        torch.testing.assert_close(scored(reward), torch.full((3,), float(number)))


def place(token: str, **others: float) -> dict[str, Any]:
    """A token of an answer with the probabilities of those in its place."""
    return {
        "token": token,
        "top_logprobs": [{"token": each, "logprob": log(p)} for each, p in others.items()],
    }


def test_the_expected_number_is_the_mean_over_the_probable_numbers_in_its_place():
    numbers = {"4": 0.5, "5": 0.2, " 5": 0.1, "five": 0.1, "1": 0.0001}
    tokens = [place("Score (1-5): ", **{"1": 1.0}), place("4", **numbers), place(".")]
    answer = saying("Score (1-5): 4.", logprobs={"content": tokens})
    with served(answer) as (url, requests):
        reward = vlm_at(url, pattern=r": (\d)", answer="expected")
        expected = (4 * 0.5 + 5 * 0.3 + 0.0001) / 0.8001
        torch.testing.assert_close(scored(reward), torch.full((3,), expected))
    assert all(each["logprobs"] is True and each["top_logprobs"] == 20 for each in requests)


@pytest.mark.parametrize(
    ("answer", "settings", "complaint"),
    [
        (saying("It is a fine image."), {}, r"answers 'It is a fine image\.', in which pattern"),
        (saying("4 or 5"), {}, r"answers '4 or 5', .* finds no number: correct template or"),
        (saying(""), {}, r"answers '', in which"),
        (saying("nan"), {"pattern": "(nan)"}, r"finds no number"),
        (saying("b"), {"pattern": "(a)|b"}, r"finds no number"),
        (saying(None), {}, r"it must send \{\"choices\""),
        (failing(200, '{"choices": []}'), {}, r"responds with '\{\"choices\": \[\]\}'; it must"),
        (failing(200, "<html>"), {}, r"responds with '<html>'; it must send"),
        (failing(404, "no such model"), {}, r"HTTP 404 .*'no such model'"),
        (failing(500, "out of memory"), {}, r"HTTP 500 .*\(1 attempt\)"),
        (saying("4"), {"answer": "expected"}, r"without logprobs of its number '4' .*logprobs"),
        (
            saying("10", logprobs={"content": [place("1"), place("0")]}),
            {"answer": "expected"},
            r"number '10' as one token \(the token there is '1'\): set answer: number",
        ),
        (
            saying("4", logprobs={"content": [place("4", four=1.0)]}),
            {"answer": "expected"},
            r"none of the most probable tokens is a whole number",
        ),
    ],
)
def test_an_unusable_answer_is_one_error_and_never_a_score(answer, settings, complaint):
    with served(answer) as (url, _), refused(rf"^reward\.url: {url}.*{complaint}"):
        scored(vlm_at(url, **settings))


def test_a_refused_connection_and_a_busy_server(free_address, monkeypatch):
    waits = list[float]()
    monkeypatch.setattr(black_box.time, "sleep", waits.append)
    with refused(r"connection refused, nothing listens there \(2 attempts\)"):
        scored(vlm_at(free_address, retries=1))
    waits.clear()
    with served(failing(429), measuring) as (url, requests):
        assert len(scored(vlm_at(url, retries=1, concurrency=1))) == 3
    assert len(requests) == 4 and waits == [1.0]


def test_the_key_comes_from_the_environment_and_is_in_no_error_or_record(monkeypatch, caplog):
    monkeypatch.setenv("MY_KEY", " sk-very-secret\n")
    echoing: Answer = lambda given: (503, b"denied sk-very-secret")  # noqa: E731
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(black_box.time, "sleep", lambda _: None)
    with served(measuring) as (url, requests), served(echoing) as (closed, _):
        scored(vlm_at(url, api_key_variable="MY_KEY"))
        with pytest.raises(DirectAlignError, match=r"'denied \*\*\*'") as raised:
            scored(vlm_at(closed, api_key_variable="MY_KEY", retries=1))
    assert {each["Authorization"] for each in requests} == {"Bearer sk-very-secret"}
    reward = vlm_at(url, api_key_variable="MY_KEY")
    assert "very-secret" not in f"{raised.value} {caplog.text} {reward.settings}"
    for value in (None, "", "two words"):
        monkeypatch.delenv("MY_KEY") if value is None else monkeypatch.setenv("MY_KEY", value)
        with refused(r"reward\.api_key_variable: the environment variable MY_KEY is not set"):
            check_reward(reward.settings)


def test_the_check_asks_once_only_if_online(free_address):
    settings = vlm_at(free_address).settings
    check_reward(settings)
    with refused("connection refused"):
        check_reward(settings, online=True)
    with served(saying("3")) as (url, requests):
        check_reward(settings.model_copy(update={"url": url}), online=True)
    assert len(requests) == 1


def section(**changes: Any) -> str:
    given = {"name": "vlm_api", "url": "http://h/v1", "model": "m", "template": ASKED, **changes}
    return f"reward={json.dumps(given)}"


@pytest.mark.parametrize("name", ["flow_grpo", "raft", "diffusion_nft", "awm"])
def test_methods_that_need_scores_only_take_it(name):
    method = f"method={{name: {name}, form: absolute}}"
    checks.check_reward(load_run("remote_reward", [section(), method]))


def test_a_method_that_needs_a_gradient_is_refused():
    with refused(r"reward\.name vlm_api is a black box, and method\.name srpo needs its gradient"):
        checks.check_reward(load_run("world_srpo", [section()]))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"template": "Is it good?"}, r"template has no \{prompt\}"),
        ({"pattern": "(a"}, "pattern is no regular expression"),
        ({"pattern": r"\d"}, "pattern has 0 groups"),
        ({"pattern": UNIFIED, "answer": "expected"}, "pattern has 3 groups around a number"),
        ({"options": {"model": "other"}}, "options: model is set by this reward"),
        ({"api_key_variable": "sk-secret"}, "api_key_variable is no name of an environment"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, complaint):
    with pytest.raises(DirectAlignError, match=complaint) as raised:
        load_run("remote_reward", [section(**changes)])
    assert "sk-secret" not in str(raised.value)
