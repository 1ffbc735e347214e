"""A reward written by the user in Python: a function, or a class.

    reward: {name: python, path: my_reward.py:score, args: {strength: 2.0}}

    def score(images, prompts, strength):   # (b, 3, H, W) float32 in [0, 1] on the CPU, b strings
        return [...]                        # b numbers, larger is better

A class is constructed once with `args`. Its instance is called as the function above, or has the
two methods of `interfaces.Reward`: `encode(images)` gives features and `score(features, prompts)`
the numbers; then images are encoded once for all prompts. It may set `reads_prompt = False`.

No gradient is used unless `differentiable: true`; only a policy gradient (method.name: flow_grpo)
can train without one. With it the images stay on the training device and in the graph, and the
result must be a tensor (b,) with its gradient. The file is run: name only files that you trust.
Load models in the class, and freeze their weights. `examples/my_reward.py` is a template.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import config
from ..io.user_code import load_object
from ..types import DirectAlignError, Images, PerSample
from .common import BaseReward, Device


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

    @classmethod
    def from_config(
        cls, settings: config.PythonConfig, device: Device = "cpu", key: str = "reward"
    ) -> PythonReward:
        """The reward of a recipe section; the user's code chooses its own device."""
        del device
        function = load_function(settings.path, f"{key}.path", settings.args)
        source = f"{key}.path: {settings.path}"
        return cls(function, settings.scale, source, settings.differentiable)

    @classmethod
    def check(
        cls, settings: config.PythonConfig, key: str = "reward", online: bool = False
    ) -> None:
        """The file runs, has the name, and a class accepts `args`."""
        del online
        load_function(settings.path, f"{key}.path", settings.args)

    @classmethod
    def files(cls, settings: config.PythonConfig) -> dict[str, str]:
        return {"path": settings.path.rpartition(":")[0]}

    def encode(self, images: Images) -> Any:
        """The object's features, or float32 images, detached on the CPU unless differentiable."""
        images = images.float() if self.differentiable else images.detach().float().cpu()
        if not self.two_calls:
            return images
        features = self._call(self.function.encode, images)
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

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return function(*args)
        except torch.OutOfMemoryError:
            raise  # reported by the run
        except (Exception, SystemExit) as error:  # any error of the user's code
            raise DirectAlignError(
                f"{self.source} fails ({type(error).__name__}: {error}); correct the function, "
                "--debug shows the traceback"
            ) from error

    def _require_gradient(self, given: Tensor, result: Any) -> None:
        in_graph = self.differentiable and given.requires_grad and torch.is_grad_enabled()
        if in_graph and not (isinstance(result, Tensor) and result.requires_grad):
            raise DirectAlignError(
                f"{self.source} must return a tensor with a gradient (differentiable: true): use "
                "torch alone, without detach and no_grad"
            )


def check_scores(result: Any, count: int, must: str) -> PerSample:
    """The result as (count,) float32 on the CPU, detached; errors start with `must`.

    Example of `must`: "reward.path: f.py:score must return".
    """
    wanted = f"{must} a list or tensor of {count} numbers, one per image"
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
