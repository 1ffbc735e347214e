"""A reward that is any Python function of images and prompts: a served model, a compression rate, a person behind a web page.

    reward: {name: python, path: my_reward.py:score}

    def score(images, prompts):        # (b, 3, H, W) float32 in [0, 1] on the CPU, b strings
        return [...]                   # b numbers, larger is better

No gradient is asked of it, so a policy gradient alone (method.name: flow_grpo) can learn from it. The file is run as Python
when it is read: name only files that you trust. Load models in the function, once, and not at the top of the file.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .. import config
from ..types import DirectAlignError, Images, PerSample


class BlackBoxReward:
    """`scale` times the answers of `function` (`interfaces.Reward`); `name` is what errors call it."""

    name = "python"
    reads_prompt = True
    differentiable = False

    def __init__(self, function: Callable[..., Any], scale: float = 1.0, path: str = "function") -> None:
        self.function, self.scale, self.path = function, scale, path

    @classmethod
    def load(cls, path: str, scale: float = 1.0) -> BlackBoxReward:
        """From "file.py:function"; see `load_function` for what may be wrong."""
        return cls(load_function(path), scale, path)

    def encode(self, images: Images) -> Images:
        """The images themselves, (b, 3, H, W), cut off from the graph, float32 on the CPU."""
        return images.detach().float().cpu()

    def score(self, features: Images, prompts: Sequence[str]) -> PerSample:
        """What the function says of each image under its prompt, (b,) float32 on the CPU.

        Raises DirectAlignError for an answer that is not one finite number per image. What the function itself raises goes through.
        """
        answer = self.function(features, list(prompts))
        return self.scale * self._checked(answer, len(prompts))

    def _checked(self, answer: Any, count: int) -> PerSample:
        wanted = f"reward.path: {self.path} must return a list or tensor of {count} numbers, one per image"
        try:
            scores = torch.as_tensor(answer, dtype=torch.float32).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise DirectAlignError(f"{wanted}; it returned a {type(answer).__name__} ({error})") from error
        if scores.shape != (count,):
            raise DirectAlignError(f"{wanted}; it returned shape {tuple(scores.shape)}")
        if not scores.isfinite().all():
            place = int((~scores.isfinite()).nonzero()[0])
            raise DirectAlignError(f"{wanted}; number {place} is {float(scores[place])}: give every image a finite score")
        return scores


def load(settings: config.Python, device: torch.device | str = "cpu", key: str = "reward") -> BlackBoxReward:
    """The reward of a recipe's section; the function decides itself where it computes."""
    del device, key
    return BlackBoxReward.load(settings.path, settings.scale)


def check(settings: config.Python, key: str = "reward", online: bool = False) -> None:
    """The file runs and has the function."""
    del key, online
    load_function(settings.path)


def load_function(path: str) -> Callable[..., Any]:
    """The function that "file.py:function" names; its file is run.

    Raises DirectAlignError: no such form, file or name, a file that fails when run, a name that cannot be called.
    """
    file, separator, name = path.rpartition(":")
    if not (separator and file and name):
        raise DirectAlignError(f"reward.path: {path!r} names no function; write file.py:function")
    if not (Path(file).is_file() and file.endswith(".py")):
        raise DirectAlignError(f"reward.path: {file}: no such Python file; write file.py:function, the file seen from where you start")
    found = vars(_run(Path(file))).get(name)
    if found is None:
        raise DirectAlignError(f"reward.path: {file} has no function {name!r}; define it at the top level of the file")
    if not callable(found):
        raise DirectAlignError(f"reward.path: {name!r} in {file} is a {type(found).__name__}, which cannot be called; name a function of images and prompts")
    return found


def _run(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a stranger's file may raise
        raise DirectAlignError(f"reward.path: {file} cannot be run ({type(error).__name__}: {error}); see that it runs with python {file}") from error
    return module
