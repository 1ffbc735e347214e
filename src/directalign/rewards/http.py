"""A reward behind an HTTP address: a service, another machine's GPU, a model in another
environment.

    POST url    {"prompts": ["Photo. a red star", ...], "images": ["iVBORw0KGgo...", ...]}
    200         {"scores": [0.31, ...]}        one number each, larger is better

Images are base64 PNGs of 8 bits. examples/reward_server.py is such a server. It is a black box, for
policy gradients. Failed connections, timeouts and busy or failing servers (429, 5xx) are retried
after 1, 2, 4, ... seconds; any other response ends the run with one line, and `--resume` continues
it. Not supported: authentication (use a proxy) and concurrent requests (each rank sends its own
images).
"""

from __future__ import annotations

import base64
import io
import json
import logging
import time
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import torch
from PIL import Image
from torch import Tensor

from .. import config
from ..types import DirectAlignError, Images, PerSample
from .common import BaseReward, Device
from .python_function import check_scores

FIRST_WAIT = 1.0
"""Seconds before the second attempt; each further wait is twice as long."""
EXCERPT = 200
"""Characters of a server's response that are quoted in errors."""
logger = logging.getLogger(__name__)


class HttpReward(BaseReward):
    """`scale` times the scores of the server at `settings.url` (`interfaces.Reward`)."""

    name = "remote"
    differentiable = False
    file_keys = ()

    def __init__(self, settings: config.HttpConfig, key: str = "reward") -> None:
        self.settings, self.source = settings, f"{key}.url: {settings.url}"

    @classmethod
    def from_config(
        cls, settings: config.HttpConfig, device: Device = "cpu", key: str = "reward"
    ) -> HttpReward:
        """The reward of a recipe section; nothing is sent yet."""
        del device
        return cls(settings, key)

    @classmethod
    def check(cls, settings: config.HttpConfig, key: str = "reward", online: bool = False) -> None:
        """Check the address; if `online`, request the score of one gray image."""
        _check_address(settings.url, f"{key}.url")
        if online:
            reward = cls.from_config(settings, key=key)
            reward.score(reward.encode(torch.full((1, 3, 64, 64), 0.5)), [""])

    def encode(self, images: Images) -> tuple[str, ...]:
        """Each image as base64 PNG."""
        return tuple(png(image) for image in images.detach())

    def score(self, features: tuple[str, ...], prompts: Sequence[str]) -> PerSample:
        """The server's scores (b,), float32 on the CPU.

        Raises DirectAlignError naming the address and what went wrong there.
        """
        size, prompts = self.settings.batch_size, list(prompts)
        parts = [
            self._scores(features[at : at + size], prompts[at : at + size])
            for at in range(0, len(prompts), size)
        ]
        return self.settings.scale * torch.cat(parts)

    def _scores(self, images: Sequence[str], prompts: Sequence[str]) -> PerSample:
        body = self._request(json.dumps({"prompts": prompts, "images": images}).encode())
        try:
            found = json.loads(body)
            if not isinstance(found, dict) or "scores" not in found:
                raise ValueError("no scores")
        except (ValueError, RecursionError) as error:
            raise DirectAlignError(
                f'{self.source} responds with {_excerpt(body)}; it must send {{"scores": [...]}}'
            ) from error
        return check_scores(found["scores"], len(prompts), f'{self.source} must send as "scores"')

    def _request(self, body: bytes) -> bytes:
        """The body of the server's response, after up to `retries` further attempts."""
        for attempt in range(self.settings.retries + 1):
            try:
                return self._post(body)
            except _Temporary as trouble:
                if attempt == self.settings.retries:
                    count = f"{attempt + 1} attempts" if attempt else "1 attempt"
                    raise DirectAlignError(
                        f"{self.source}: {trouble} ({count}); check the server"
                    ) from trouble
                wait = FIRST_WAIT * 2**attempt
                logger.warning("%s: %s; trying again in %g s", self.source, trouble, wait)
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _post(self, body: bytes) -> bytes:
        request = Request(
            self.settings.url, body, {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urlopen(request, timeout=self.settings.timeout) as response:
                return response.read()
        except HTTPError as error:
            try:
                excerpt = _excerpt(error.read())
            except (OSError, HTTPException) as broken:
                excerpt = f"incomplete response ({type(broken).__name__})"
            trouble = f"HTTP {error.code} {error.reason}: {excerpt}"
            if error.code == 429 or error.code >= 500:
                raise _Temporary(trouble) from error
            raise DirectAlignError(
                f"{self.source}: {trouble}; check that a reward server answers at this address"
            ) from error
        except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
            raise _Temporary(self._reason(error)) from error

    def _reason(self, error: Exception) -> str:
        reason: Any = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, TimeoutError):
            return f"no answer within {self.settings.timeout:g} s"
        if isinstance(reason, ConnectionRefusedError):
            return "connection refused, nothing listens there"
        return f"no answer ({type(reason).__name__}: {reason})"


class _Temporary(Exception):
    """A failure that is worth a retry."""


def png(image: Tensor) -> str:
    """An image (3, H, W) in [0, 1] as a base64 PNG of 8 bits."""
    pixels = (image.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _excerpt(body: bytes) -> str:
    text = " ".join(body.decode("utf-8", errors="replace").split())
    return f"{text[:EXCERPT]!r}" + ("..." if len(text) > EXCERPT else "")


def _check_address(url: str, key: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise DirectAlignError(
            f"{key}: {url} is no address ({error}); write http://host:port/path"
        ) from error
    if not host:
        raise DirectAlignError(f"{key}: {url} names no host; write http://host:port/path")
    if parts.username is not None:
        raise DirectAlignError(
            f"{key}: contains a user name or password, which is not sent and would appear in the "
            "run's records; put a proxy before the server"
        )
    invalid = next((letter for letter in url if not "!" <= letter <= "~"), None)
    if invalid is not None:
        raise DirectAlignError(
            f"{key}: {url} holds {invalid!r}, which cannot be sent; write it as {quote(invalid)}"
        )
