"""Black-box rewards: a Python function or class of the user, and a server behind an HTTP address.

A Python reward:

    reward: {name: python, path: my_reward.py:score, args: {strength: 2.0}}

    def score(images, prompts, strength):   # (b, 3, H, W) float32 in [0, 1] on the CPU, b strings
        return [...]                        # b numbers, larger is better

A class is constructed once with `args`. Its instance is called as the function above, or has the
two methods of `interfaces.Reward`: `encode(images)` gives features and `score(features, prompts)`
the numbers; then images are encoded once for all prompts. It may set `reads_prompt = False`,
`sees = "latents"` to get the denoiser's clean latents (b, c, h, w) instead of images, and with
`encode`, for models that edit images, `reads_sources = True`: `encode(images, sources)`, whose
`sources.images` and `sources.masks` are on the images' device.

A function is called once per batch: with k control phrases it gets all b images k times over, each
time under another phrase, and gives k·b numbers. So a score must not depend on the other images of
a call.

Every call gets a copy of its images or features, so the code may change them in place.

No gradient is used unless `differentiable: true`; only a policy gradient (method.name: flow_grpo)
can train without one. With it the images stay on the training device and in the graph, and the
result must be a tensor (b,) with its gradient. The file is run: name only files that you trust.
A torch module is put in eval mode, frozen and moved to the images' device; another class does so
with the models that it loads. `examples/my_reward.py` is a template.

A server (examples/reward_server.py is one):

    POST url    {"prompts": ["Photo. a red star", ...], "images": ["iVBORw0KGgo...", ...]}
    200         {"scores": [0.31, ...]}        one number each, larger is better

Images are base64 PNGs of 8 bits; a request has up to `batch_size`, the same image under several
control phrases counted each time. `timeout` is for the whole answer. Failed connections, timeouts
and busy or failing servers (429, 5xx) are retried after 1, 2, 4, ... seconds; any other response
ends the run with one line, and `--resume` continues it. No more is read than an answer needs.
Not supported: redirects, authentication (use a proxy) and concurrent requests (each rank sends its
own images).

`synchronized` makes a black box that fails on one rank fail on all ranks, at the same call.
Otherwise the other ranks would hang in their next collective and no checkpoint could be saved. It
costs one all-reduced number per call.
"""

from __future__ import annotations

import base64
import inspect
import io
import json
import logging
import numbers
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.client import HTTPException, HTTPResponse
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import URLError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPErrorProcessor, Request, build_opener, getproxies, proxy_bypass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .. import config
from ..errors import first_line
from ..interfaces import ProcessGroup, Reward
from ..io import hub
from ..io.tensors import to_pixels
from ..io.user_code import load_object
from ..types import DirectAlignError, Images, Latents, PerSample, Sources
from .common import BaseReward, Device, image_features, score_all
from .mixture import MixReward

Result = TypeVar("Result")
MESSAGE_BYTES = 1000
"""Bytes of an error message that are sent to the other ranks."""
FIRST_WAIT = 1.0
"""Seconds before the second attempt; each further wait is twice as long."""
EXCERPT = 200
"""Characters of a server's response that are quoted in errors."""
ANSWER_BYTES, SCORE_BYTES = 65_536, 100
"""Bytes that are read of an answer: so many, and so many more per score."""
logger = logging.getLogger(__name__)


class PythonReward(BaseReward):
    """`scale` times the results of `function` (`interfaces.Reward`); `source` names it in errors.

    `function` is a callable of images and prompts, or an object with `encode` and `score`.
    """

    name = "python"
    differentiable = False

    def __init__(
        self,
        function: Any,
        scale: float = 1.0,
        source: str = "reward: function",
        differentiable: bool = False,
    ) -> None:
        self.function, self.scale, self.source = function, scale, source
        self.differentiable = differentiable
        self.two_calls = _has_two_calls(function)
        self.reads_prompt = bool(getattr(function, "reads_prompt", True))
        self.sees = getattr(function, "sees", "pixels")
        self.reads_sources = self.two_calls and bool(getattr(function, "reads_sources", False))
        if self.sees not in ("pixels", "latents"):
            raise DirectAlignError(f"{source}: sees is {self.sees!r}; set 'pixels' or 'latents'")

    @classmethod
    def _load(cls, settings: config.PythonConfig, device: Device, key: str) -> PythonReward:
        """The reward of a recipe section; code that is no torch module chooses its own device."""
        source, args = f"{key}.path: {settings.path}", settings.args
        function = load_function(settings.path, f"{key}.path", args)
        if isinstance(function, nn.Module):
            function.requires_grad_(False).eval().to(device if settings.differentiable else "cpu")
        return cls(function, settings.scale, source, settings.differentiable)

    @classmethod
    def _check(cls, settings: config.PythonConfig, key: str, online: bool) -> None:
        """The file runs, has the name, and a class accepts `args`."""
        del online
        load_function(settings.path, f"{key}.path", settings.args)

    @classmethod
    def files(cls, settings: config.PythonConfig) -> dict[str, str]:
        return {"path": settings.path.rpartition(":")[0]}

    def encode(self, images: Images | Latents, sources: Sources | None = None) -> Any:
        """The object's features, or float32 images, detached on the CPU unless differentiable."""
        images = images.float() if self.differentiable else images.detach().float().cpu()
        if not self.two_calls:
            return images
        given = () if sources is None else (sources.to(images.device),)
        features = self._call(self.function.encode, images, *given)
        if isinstance(features, Tensor):
            self._require_gradient(images, features)
        return features

    def score(self, features: Any, prompts: Sequence[str]) -> PerSample:
        """scale · result (b,), float32: on the CPU, or where the images are if differentiable.

        Raises DirectAlignError for a result that is not one finite number per image or has lost its
        gradient, and for a function that fails.
        """
        call = self.function.score if self.two_calls else self.function
        result = self._call(call, features, list(prompts))
        scores = check_scores(result, len(prompts), f"{self.source} must return")
        if not self.differentiable:
            return self.scale * scores
        if isinstance(features, Tensor):
            self._require_gradient(features, result)
            return self.scale * torch.as_tensor(result).to(features)
        return self.scale * torch.as_tensor(result).float()

    def score_all(self, features: Any, texts: Sequence[Sequence[str]]) -> Float[Tensor, "k b"]:
        """Scores (k, b) under k lists of b prompts, in one call of a function."""
        if self.two_calls:
            return torch.stack([self.score(features, each) for each in texts])
        repeated = features.repeat(len(texts), 1, 1, 1)
        return self.score(repeated, [*chain(*texts)]).unflatten(0, (len(texts), -1))

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        own = tree_map_only(Tensor, Tensor.clone, args)  # changes in place stay in the call
        try:
            with _global_state_kept():
                return function(*own)
        except (torch.OutOfMemoryError, KeyboardInterrupt):
            raise  # reported by the run
        except BaseException as error:  # any error of the user's code
            raise DirectAlignError(
                f"{self.source} fails ({type(error).__name__}: {first_line(error)}); correct the "
                "function, --debug shows the traceback"
            ) from error

    def _require_gradient(self, given: Tensor, result: Any) -> None:
        in_graph = self.differentiable and given.requires_grad and torch.is_grad_enabled()
        if in_graph and not (isinstance(result, Tensor) and result.requires_grad):
            raise DirectAlignError(
                f"{self.source} must return a tensor with a gradient (differentiable: true): use "
                "only torch, without detach and no_grad"
            )


@contextmanager
def _global_state_kept() -> Iterator[None]:
    """Undo what the user's code does to the current folder, and to torch's random state, gradient
    mode and default dtype."""
    folder, grad, dtype = os.getcwd(), torch.is_grad_enabled(), torch.get_default_dtype()  # noqa: PTH109
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        os.chdir(folder)
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)


def check_scores(result: Any, count: int, must: str) -> PerSample:
    """The result as (count,) float32 on the CPU, detached; errors start with `must`.

    Example of `must`: "reward.path: f.py:score must return".
    """
    wanted = f"{must} a list or tensor of {count} numbers, one per image"
    _require_real(result, wanted)
    try:
        scores = torch.as_tensor(result, dtype=torch.float32).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DirectAlignError(
            f"{wanted}; it returned a {type(result).__name__} ({error})"
        ) from error
    if scores.shape != (count,):
        raise DirectAlignError(f"{wanted}; it returned shape {tuple(scores.shape)}")
    if not scores.isfinite().all():
        place = int((~scores.isfinite()).nonzero()[0])
        raise DirectAlignError(
            f"{wanted}; number {place} is {float(scores[place])}: give every image a finite score"
        )
    return scores


def _require_real(result: Any, wanted: str) -> None:
    """Refuse complex numbers, truth values and text, which torch would convert or not name."""
    if isinstance(result, list | tuple):
        for place, each in enumerate(result):
            value = each.item() if getattr(each, "shape", None) == () else each
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                kind = type(value).__name__
                raise DirectAlignError(f"{wanted}; number {place} is {value!r:.60} ({kind})")
    elif isinstance(result, Tensor | np.ndarray):
        kind = str(result.dtype).removeprefix("torch.")
        if kind.startswith(("complex", "bool", "object", "<U", "|S")):
            raise DirectAlignError(f"{wanted}; it returned an array of {kind}")


def load_function(
    path: str, key: str = "reward.path", args: Mapping[str, Any] | None = None
) -> Any:
    """Run the file of "file.py:name"; return the function with `args` bound, or an instance.

    A class is constructed with `args`. Raises DirectAlignError: another form, no such file or
    name, a file or constructor that fails, an object that is neither callable nor has `encode` and
    `score`.
    """
    found = load_object(path, key, "function")
    file, _, name = path.rpartition(":")
    if inspect.isclass(found):
        try:
            found = found(**(args or {}))
        except (Exception, SystemExit) as error:  # any error of the user's code
            raise DirectAlignError(
                f"{key}: {name} in {file} cannot be constructed with args {dict(args or {})} "
                f"({type(error).__name__}: {error})"
            ) from error
    elif args and callable(found):
        found = partial(found, **args)
    if not (callable(found) or _has_two_calls(found)):
        raise DirectAlignError(
            f"{key}: {name!r} in {file} is a {type(found).__name__}, which cannot be called; name "
            "a function of images and prompts"
        )
    return found


def _has_two_calls(found: Any) -> bool:
    return all(callable(getattr(found, name, None)) for name in ("encode", "score"))


class HttpReward(BaseReward):
    """`scale` times the scores of the server at `settings.url` (`interfaces.Reward`)."""

    name = "remote"
    differentiable = False
    file_keys = ()

    secret = ""
    """Sent as a bearer token; replaced wherever the server repeats it."""

    def __init__(self, settings: Any, key: str = "reward") -> None:
        self.settings, self.source = settings, f"{key}.url: {settings.url}"

    @classmethod
    def _load(cls, settings: Any, device: Device, key: str) -> Any:
        """The reward of a recipe section; nothing is sent yet."""
        del device
        return cls(settings, key)

    @classmethod
    def _check(cls, settings: Any, key: str, online: bool) -> None:
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

    def score_all(
        self, features: tuple[str, ...], texts: Sequence[Sequence[str]]
    ) -> Float[Tensor, "k b"]:
        """Scores (k, b) under k lists of b prompts, in as few requests as `batch_size` allows."""
        flat = self.score(features * len(texts), [*chain(*texts)])
        return flat.unflatten(0, (len(texts), -1))

    def _scores(self, images: Sequence[str], prompts: Sequence[str]) -> PerSample:
        request = json.dumps({"prompts": prompts, "images": images}).encode()
        body = self._request(request, ANSWER_BYTES + SCORE_BYTES * len(prompts))
        try:
            found = json.loads(body)
            if not isinstance(found, dict) or "scores" not in found:
                raise ValueError("no scores")
        except (ValueError, RecursionError) as error:
            raise DirectAlignError(
                f'{self.source} responds with {_excerpt(body)}; it must send {{"scores": [...]}}'
            ) from error
        return check_scores(found["scores"], len(prompts), f'{self.source} must send as "scores"')

    def _request(self, body: bytes, limit: int) -> bytes:
        """The body of the server's response, after up to `retries` further attempts."""
        for attempt in range(self.settings.retries + 1):
            try:
                return self._post(body, limit)
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

    def _post(self, body: bytes, limit: int) -> bytes:
        """The body of the response, at most `limit` bytes; `timeout` is for all of it."""
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self.secret}"} if self.secret else {}
        request = Request(self.settings.url, body, headers, method="POST")

        def ask() -> tuple[HTTPResponse, bytes | HTTPException]:
            response: HTTPResponse
            with build_opener(_AsSent).open(request, timeout=self.settings.timeout) as response:
                whole = response.length is not None and response.length <= limit
                try:
                    return response, response.read() if whole else response.read(limit + 1)
                except HTTPException as incomplete:
                    return response, incomplete

        try:
            response, content = hub.answer_within(self.settings.timeout, ask)
        except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
            raise _Temporary(self._reason(error)) from error
        if self.secret and isinstance(content, bytes):
            content = content.replace(self.secret.encode(), b"***")
        status, check = response.status, "check that a reward server answers at this address"
        if 300 <= status < 400:
            raise DirectAlignError(
                f"{self.source}: redirects to {response.headers['Location']}, which is not "
                "followed; give the address of the reward server itself"
            )
        if not 200 <= status < 300:
            said = f"incomplete response ({type(content).__name__})"
            said = _excerpt(content) if isinstance(content, bytes) else said
            trouble = f"HTTP {status} {_one_line(response.reason)}: {said}{self._by_way()}"
            if status == 429 or status >= 500:
                raise _Temporary(trouble)
            raise DirectAlignError(f"{self.source}: {trouble}; {check}")
        if isinstance(content, HTTPException):
            raise _Temporary(self._reason(content)) from content
        if len(content) > limit:
            raise DirectAlignError(
                f"{self.source}: responds with more than the {limit:,} bytes that its scores "
                f"need; {check}"
            )
        return content

    def _by_way(self) -> str:
        """The proxy of the environment that requests take, in words; empty without one."""
        address = urlsplit(self.settings.url)
        proxy, host = getproxies().get(address.scheme), address.hostname or ""
        if not proxy or proxy_bypass(host):
            return ""
        variable = f"{address.scheme}_proxy"
        return (
            f" by way of the proxy {proxy.rpartition('@')[2]} (unset {variable}, or set "
            f"no_proxy={host}, if it should not be used)"
        )

    def _reason(self, error: Exception) -> str:
        reason: Any = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, TimeoutError):
            return f"no answer within {self.settings.timeout:g} s{self._by_way()}"
        if isinstance(reason, ConnectionRefusedError) and not self._by_way():
            return "connection refused, nothing listens there"
        return f"no answer{self._by_way()} ({type(reason).__name__}: {_one_line(str(reason))})"


class _AsSent(HTTPErrorProcessor):
    """Responses as they are sent: no status is raised, and no redirect is followed."""

    def http_response(self, request: Request, response: HTTPResponse) -> HTTPResponse:
        del request
        return response

    https_response = http_response


class _Temporary(Exception):
    """A failure that is worth a retry."""


def png(image: Tensor) -> str:
    """An image (3, H, W) in [0, 1] as a base64 PNG of 8 bits."""
    file = io.BytesIO()
    Image.fromarray(to_pixels(image, "image for a reward server")).save(
        file, format="PNG", compress_level=1
    )
    return base64.b64encode(file.getvalue()).decode("ascii")


def _one_line(text: str) -> str:
    """Without line ends and what a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:EXCERPT]).split())


def _excerpt(body: bytes) -> str:
    text = " ".join(body.decode("utf-8", errors="replace").split())
    return f"{text[:EXCERPT]!r}" + ("..." if len(text) > EXCERPT else "")


def _check_address(url: str, key: str) -> None:
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").encode("idna"), parts.port
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


class SynchronizedError(DirectAlignError):
    on_all_ranks = True
    """A reward failed on some rank; every rank raises this, at the same call."""


class SynchronizedReward:
    """`reward` (`interfaces.Reward`), which must be called equally often on all ranks."""

    def __init__(self, reward: Reward, group: ProcessGroup) -> None:
        self.reward, self.group = reward, group
        self.name, self.reads_prompt = reward.name, reward.reads_prompt
        self.differentiable, self.sees = reward.differentiable, reward.sees
        self.reads_sources = getattr(reward, "reads_sources", False)

    def encode(self, images: Images | Latents, sources: Sources | None = None) -> Any:
        """As the reward. Raises: as `score`."""
        return synchronized_call(lambda: image_features(self.reward, images, sources), self.group)

    def score(self, features: Any, prompts: Sequence[str]) -> PerSample:
        """As the reward. Raises SynchronizedError where it raises DirectAlignError on any rank."""
        return synchronized_call(lambda: self.reward.score(features, prompts), self.group)

    def score_all(self, features: Any, texts: Sequence[Sequence[str]]) -> Float[Tensor, "k b"]:
        """As the reward, in one synchronized call. Raises: as `score`."""
        return synchronized_call(lambda: score_all(self.reward, features, texts), self.group)


def synchronized_call(function: Callable[[], Result], group: ProcessGroup) -> Result:
    """The result of `function`, which every rank calls.

    Raises SynchronizedError on all ranks if one rank raises DirectAlignError.
    """
    if group.size == 1:
        return function()
    results, message = list[Result](), ""
    try:
        results.append(function())
    except DirectAlignError as error:
        message = str(error)
    if float(group.sum(torch.tensor(float(not results)))) > 0:
        own = torch.zeros(1, MESSAGE_BYTES, dtype=torch.uint8)
        content = message.encode()[:MESSAGE_BYTES]
        own[0, : len(content)] = torch.tensor(list(content), dtype=torch.uint8)
        rows = [bytes(row.tolist()).rstrip(b"\0") for row in group.gather(own)]
        rank, text = next((rank, text) for rank, text in enumerate(rows) if text)
        raise SynchronizedError(f"rank {rank}: {text.decode(errors='replace')}")
    return results[0]


def synchronized(reward: Reward, group: ProcessGroup) -> Reward:
    """The same reward, whose black boxes fail on all ranks or on none."""
    if group.size == 1 or reward.differentiable:
        return reward
    if isinstance(reward, MixReward):
        members = [
            replace(member, reward=synchronized(member.reward, group)) for member in reward.members
        ]
        return MixReward(members, reward.settings)
    return SynchronizedReward(reward, group)


def path_of(function: Any) -> str:
    """file.py:name of a function or object; of one that no file defines, as far as known."""
    while isinstance(function, partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    try:
        file = inspect.getsourcefile(named) or ""
    except TypeError:
        file = ""
    return f"{file if Path(file).is_file() else 'memory.py'}:{named.__qualname__}"
