"""A reward that is any Python function of images and prompts: a served model, a compression rate, a network of your own.

    reward: {name: python, path: my_reward.py:score}

    def score(images, prompts):        # (b, 3, H, W) float32 in [0, 1] on the CPU, b strings
        return [...]                   # b numbers, larger is better

No gradient is asked of it, so a policy gradient alone (method.name: flow_grpo) can learn from it. With `differentiable: true` the
images come on the training device and in the graph, the function is torch code, and its answer is a tensor (b,) with the gradient
still in it: then every method can. The file is run as Python when it is read: name only files that you trust. Load models in the
function, once, and not at the top of the file; freeze their weights.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import config
from ..types import DirectAlignError, Images, PerSample


class BlackBoxReward:
    """`scale` times the answers of `function` (`interfaces.Reward`); `source` is what errors call it."""

    name = "python"
    reads_prompt = True
    differentiable = False

    def __init__(self, function: Callable[..., Any], scale: float = 1.0, source: str = "reward: function") -> None:
        self.function, self.scale, self.source = function, scale, source

    def encode(self, images: Images) -> Images:
        """The images themselves, (b, 3, H, W), cut off from the graph, float32 on the CPU."""
        return images.detach().float().cpu()

    def score(self, features: Images, prompts: Sequence[str]) -> PerSample:
        """What the function says of each image under its prompt, (b,) float32 on the CPU.

        Raises DirectAlignError for an answer that is not one finite number per image, and for a function that fails.
        """
        answer = _answer(self.function, features, prompts, self.source)
        return self.scale * checked(answer, len(prompts), f"{self.source} must return")


class TorchFunctionReward:
    """`scale` times the answers of `function`, a function of torch, with their gradient (`interfaces.Reward`)."""

    name = "python"
    reads_prompt = True
    differentiable = True

    def __init__(self, function: Callable[..., Any], scale: float = 1.0, source: str = "reward: function") -> None:
        self.function, self.scale, self.source = function, scale, source

    def encode(self, images: Images) -> Images:
        """The images themselves, (b, 3, H, W), float32, on their device and in the graph."""
        return images.float()

    def score(self, features: Images, prompts: Sequence[str]) -> PerSample:
        """What the function says of each image under its prompt, (b,), on the device of the images.

        Raises DirectAlignError for an answer that is no tensor of one finite number per image or has lost the gradient, and for a function that fails.
        """
        answer = _answer(self.function, features, prompts, self.source)
        checked(answer, len(prompts), f"{self.source} must return")
        cut_off = features.requires_grad and torch.is_grad_enabled() and not (isinstance(answer, Tensor) and answer.requires_grad)
        if cut_off:
            raise DirectAlignError(f"{self.source} must return a tensor with a gradient (differentiable: true): keep to torch and leave out detach and no_grad")
        return self.scale * torch.as_tensor(answer).to(features)


def _answer(function: Callable[..., Any], images: Images, prompts: Sequence[str], source: str) -> Any:
    try:
        return function(images, list(prompts))
    except torch.OutOfMemoryError:
        raise  # the run's to report
    except (Exception, SystemExit) as error:  # whatever a stranger's function may raise
        raise DirectAlignError(f"{source} fails ({type(error).__name__}: {error}); mend the function, --debug shows where") from error


def checked(answer: Any, count: int, must: str) -> PerSample:
    """The answer as (count,) float32 on the CPU, without a graph; `must` begins the error: who must do what."""
    wanted = f"{must} a list or tensor of {count} numbers, one per image"
    try:
        scores = torch.as_tensor(answer, dtype=torch.float32).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DirectAlignError(f"{wanted}; it returned a {type(answer).__name__} ({error})") from error
    if scores.shape != (count,):
        raise DirectAlignError(f"{wanted}; it returned shape {tuple(scores.shape)}")
    if not scores.isfinite().all():
        place = int((~scores.isfinite()).nonzero()[0])
        raise DirectAlignError(f"{wanted}; number {place} is {float(scores[place])}: give every image a finite score")
    return scores


def load(settings: config.Python, device: torch.device | str = "cpu", key: str = "reward") -> BlackBoxReward | TorchFunctionReward:
    """The reward of a recipe's section; a black box decides itself where it computes."""
    del device
    kind = TorchFunctionReward if settings.differentiable else BlackBoxReward
    return kind(load_function(settings.path, f"{key}.path"), settings.scale, f"{key}.path: {settings.path}")


def check(settings: config.Python, key: str = "reward", online: bool = False) -> None:
    """The file runs and has the function."""
    del online
    load_function(settings.path, f"{key}.path")


def load_function(path: str, key: str = "reward.path") -> Callable[..., Any]:
    """The function that "file.py:function" names; its file is run. `key` is where the recipe says so.

    Raises DirectAlignError: no such form, file or name, a file that fails when run, a name that cannot be called.
    """
    file, separator, name = path.rpartition(":")
    if not (separator and file and name):
        raise DirectAlignError(f"{key}: {path!r} names no function; write file.py:function")
    if not (Path(file).is_file() and file.endswith(".py")):
        raise DirectAlignError(f"{key}: {file}: no such Python file; write file.py:function, the file seen from where you start")
    found = vars(_run(Path(file), key)).get(name)
    if found is None:
        raise DirectAlignError(f"{key}: {file} has no function {name!r}; define it at the top level of the file")
    if not callable(found):
        raise DirectAlignError(f"{key}: {name!r} in {file} is a {type(found).__name__}, which cannot be called; name a function of images and prompts")
    return found


def _run(file: Path, key: str) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever a stranger's file may raise
        raise DirectAlignError(f"{key}: {file} cannot be run ({type(error).__name__}: {error}); see that it runs with python {file}") from error
    return module
