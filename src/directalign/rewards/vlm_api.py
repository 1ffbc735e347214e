"""A vision-language model behind an OpenAI-compatible address as a reward, a black box.

    POST url    {"model": ..., "messages": [{"role": "user", "content": [image, text]}], ...}
    200         {"choices": [{"message": {"content": "Alignment Score (1-5): 4"}}]}

The text is `template` with the prompt in it, the image a data URL of a PNG of 8 bits. `pattern`
reads the number from the answer (UnifiedReward 2.0 and others by their own templates).
`answer: expected` takes sum p·n / sum p over the whole numbers n among the 20 most probable tokens
in the number's place instead, which distinguishes images that get the same number.

One request per image and prompt, `concurrency` at a time. Timeouts, retries and errors are those of
`remote`. An answer without a number ends the run with one line: no score is made up. The key is
read from the environment when the reward is loaded and is in no recipe, log or error.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import exp, isfinite
from typing import Any

from .. import config
from ..types import DirectAlignError, PerSample
from .black_box import HttpReward, _excerpt, check_scores
from .common import Device

ANSWER_BYTES = 4 * 2**20
"""Bytes that are read of an answer, with its logprobs."""
MOST_PROBABLE = 20
"""Tokens per place that a server is asked for, as many as OpenAI's gives."""


class VlmApiReward(HttpReward):
    """`scale` times the numbers in the answers of `settings.model` (`interfaces.Reward`)."""

    name = "vlm_api"

    @classmethod
    def _load(cls, settings: config.VlmApiConfig, device: Device, key: str) -> VlmApiReward:
        """The reward of a recipe section with its key; nothing is sent yet."""
        reward = super()._load(settings, device, key)
        variable = settings.api_key_variable
        if variable is not None:
            reward.secret = os.environ.get(variable, "").strip()
            if not re.fullmatch("[!-~]+", reward.secret):
                raise DirectAlignError(
                    f"{key}.api_key_variable: the environment variable {variable} is not set to a "
                    "key: set it to that of the server"
                )
        return reward

    @classmethod
    def _check(cls, settings: config.VlmApiConfig, key: str, online: bool) -> None:
        """Check address and key; if `online`, request the score of one gray image."""
        cls._load(settings, "cpu", key)
        super()._check(settings, key, online)

    def score(self, features: tuple[str, ...], prompts: Sequence[str]) -> PerSample:
        """The numbers in the answers (b,), float32 on the CPU.

        Raises DirectAlignError naming the address and what is wrong with the first bad answer.
        """
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            found = list(pool.map(self._ask, features, prompts))
        return self.settings.scale * check_scores(found, len(prompts), f"{self.source} must answer")

    def _ask(self, image: str, prompt: str) -> float:
        settings: config.VlmApiConfig = self.settings
        text = settings.template.replace("{prompt}", prompt)
        url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
        message = {"role": "user", "content": [url, {"type": "text", "text": text}]}
        request = {**settings.options, "model": settings.model, "messages": [message]}
        if settings.answer == "expected":
            request |= {"logprobs": True, "top_logprobs": MOST_PROBABLE}
        body = self._request(json.dumps(request).encode(), ANSWER_BYTES)
        try:
            choice = json.loads(body)["choices"][0]
            content = choice["message"]["content"]
            if not isinstance(content, str):
                raise TypeError("no text")
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise DirectAlignError(
                f"{self.source} responds with {_excerpt(body)}; it must send "
                '{"choices": [{"message": {"content": "..."}}]}'
            ) from error
        return self._number(content, choice)

    def _number(self, content: str, choice: dict[str, Any]) -> float:
        found, numbers = re.search(self.settings.pattern, content), list[float]()
        answer = f"{self.source} answers {_excerpt(content.encode(errors='replace'))}"
        if found is not None:
            with suppress(ValueError, TypeError):  # of a group that is no number, or took no part
                numbers = [float(group) for group in found.groups()]
        if found is None or not numbers or not all(map(isfinite, numbers)):
            raise DirectAlignError(
                f"{answer}, in which pattern {self.settings.pattern!r} finds no number: correct "
                "template or pattern, or raise options.max_tokens"
            )
        if self.settings.answer == "number":
            return sum(numbers) / len(numbers)
        try:
            return _expected(choice["logprobs"]["content"], found.start(1), found[1])
        except (LookupError, TypeError, ValueError) as error:
            raise DirectAlignError(
                f"{answer} without logprobs of its number {found[1]!r} as one token ({error}): set "
                "answer: number, or ask for a number of one digit"
            ) from error


def _expected(tokens: Sequence[dict[str, Any]], start: int, number: str) -> float:
    """Mean of the whole numbers among the most probable tokens where the answer has `number`."""
    end = 0
    for token in tokens:
        end += len(token["token"])
        if end > start:
            break
    else:
        raise LookupError("no token there")
    if token["token"].strip() != number:
        raise ValueError(f"the token there is {token['token']!r}")
    weights: dict[int, float] = {}
    for each in token["top_logprobs"]:
        if (text := each["token"].strip()).isdecimal():
            weights[int(text)] = weights.get(int(text), 0.0) + exp(each["logprob"])
    if not weights:
        raise ValueError("none of the most probable tokens is a whole number")
    return sum(value * weight for value, weight in weights.items()) / sum(weights.values())
