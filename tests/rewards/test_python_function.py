from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from directalign import config
from directalign.interfaces import Reward
from directalign.preflight.checks import check_reward
from directalign.rewards import load_reward
from directalign.rewards.clip import ClipReward
from directalign.rewards.python_function import PythonReward
from directalign.types import DirectAlignError

ROOT = Path(__file__).parents[2]
GOOD = "def score(images, prompts):\n    return [float(image.mean()) + len(prompt) for image, prompt in zip(images, prompts)]\n"  # noqa: E501
PROMPTS = ["a", "bcd"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(GOOD + "number = 3\n")
    return path


def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def run_of(path: str, **method: Any) -> config.RunConfig:
    recipe = {
        "name": "x",
        "model": {"architecture": "flux", "path": "world:flux"},
        "reward": {"name": "python", "path": path},
        "method": method,
    }
    return config.RunConfig.model_validate(
        recipe | {"data": {"prompts": "world"}, "train": {"num_steps": 1}}
    )


def test_a_function_in_a_file_is_a_reward(file: Path) -> None:
    reward = load_reward(config.PythonConfig(name="python", path=f"{file}:score", scale=2.0))
    assert isinstance(reward, Reward) and reward.reads_prompt and not reward.differentiable
    found = reward.score(reward.encode(images()), PROMPTS)
    torch.testing.assert_close(found, 2 * (images().mean((1, 2, 3)) + torch.tensor([1.0, 3.0])))


def test_the_function_gets_plain_images_and_a_list() -> None:
    seen: list[Any] = []

    def score(given: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        seen.append((given, prompts))
        return given.mean((1, 2, 3))

    reward = PythonReward(score)
    found = reward.score(reward.encode(images().double().requires_grad_()), tuple(PROMPTS))
    (given, prompts) = seen[0]
    assert given.dtype == torch.float32 and not given.requires_grad and prompts == PROMPTS
    assert found.dtype == torch.float32 and not found.requires_grad


@pytest.mark.parametrize(
    "answer",
    [[1, 2.5], (1.0, 2.5), np.array([1.0, 2.5]), torch.tensor([1.0, 2.5], dtype=torch.float64)],
)
def test_any_row_of_numbers_will_do(answer: Any) -> None:
    reward = PythonReward(lambda images, prompts: answer)
    assert reward.score(reward.encode(images()), PROMPTS).tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ([1.0], r"2 numbers, one per image; it returned shape \(1,\)"),
        (torch.zeros(2, 1), r"shape \(2, 1\)"),
        (0.5, r"shape \(\)"),
        ([1.0, float("nan")], "number 1 is nan"),
        ([float("-inf"), 0.0], "number 0 is -inf"),
        (None, "it returned a NoneType"),
        (["good", "bad"], "it returned a list"),
        ({"score": 1.0}, "it returned a dict"),
    ],
)
def test_a_wrong_answer_names_the_function_and_what_is_wanted(answer: Any, complaint: str) -> None:
    reward = PythonReward(lambda images, prompts: answer, source="reward.path: mine.py:score")
    with pytest.raises(
        DirectAlignError, match=rf"reward\.path: mine\.py:score must return .*{complaint}"
    ):
        reward.score(reward.encode(images()), PROMPTS)


@pytest.mark.parametrize("differentiable", [False, True])
def test_what_the_function_raises_is_told_with_its_name(differentiable: bool) -> None:
    def score(images: Any, prompts: Any) -> Any:
        raise ConnectionError("the service is down")

    with pytest.raises(
        DirectAlignError,
        match=r"reward\.path: mine\.py:score fails \(ConnectionError: the service is down\); correct the function",  # noqa: E501
    ):
        PythonReward(
            score, source="reward.path: mine.py:score", differentiable=differentiable
        ).score(images(), PROMPTS)


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("{folder}/mine.py", "names no function; write file.py:function"),
        ("{folder}/other.py:score", "no such Python file"),
        ("{folder}:score", "no such Python file"),
        ("{folder}/mine.py:rate", "has no function 'rate'"),
        ("{folder}/mine.py:number", "'number' in .*mine.py is a int, which cannot be called"),
        ("{folder}/torn.py:score", r"torn\.py cannot be run \(SyntaxError"),
        (
            "{folder}/poor.py:score",
            r"poor\.py cannot be run \(ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        ),
    ],
)
def test_mistakes_are_found_before_any_weight_is_loaded(
    file: Path, path: str, complaint: str
) -> None:
    (file.parent / "torn.py").write_text("def score(:\n")
    (file.parent / "poor.py").write_text("import nowhere_to_be_found\n")
    with pytest.raises(DirectAlignError, match=complaint):
        check_reward(run_of(path.format(folder=file.parent), name="flow_grpo"))


@pytest.mark.parametrize("name", ["srpo", "refl", "draft"])
def test_a_method_that_needs_a_gradient_is_refused_with_the_alternative(
    file: Path, name: str
) -> None:
    with pytest.raises(
        DirectAlignError,
        match=rf"black box, and method\.name {name} needs its gradient .* set method\.name: flow_grpo",  # noqa: E501
    ):
        check_reward(run_of(f"{file}:score", name=name, form="absolute"))
    check_reward(run_of(f"{file}:score", name="flow_grpo"))


def test_the_example_judges_what_is_left_in_the_file() -> None:
    path = ROOT / "examples" / "black_box_reward.py"
    reward, clip = (
        load_reward(config.PythonConfig(name="python", path=f"{path}:score")),
        ClipReward.load("world:reward"),
    )
    smooth = torch.nn.functional.interpolate(
        images()[:, :, :4, :4], size=(64, 64), mode="bicubic"
    ).clamp(0, 1)
    prompts = [
        "a red star on a navy background",
        "Realistic photo. a blue ring on a white background",
    ]
    found = reward.score(reward.encode(smooth), prompts)
    expected = clip.score(clip.encode(smooth), prompts)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)
    assert not found.equal(expected)


def test_the_example_s_jpeg_is_a_jpeg() -> None:
    spec = importlib.util.spec_from_file_location(
        "black_box_reward", ROOT / "examples" / "black_box_reward.py"
    )
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    flat, noise = (
        torch.full((3, 64, 64), 0.5),
        torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)),
    )
    assert (
        (example.through_jpeg(flat) - flat).abs().max()
        < 0.01
        < 0.05
        < (example.through_jpeg(noise) - noise).abs().mean()
    )


SOURCE = """
import torch

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


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("name", ["score", "Callable", "TwoCalls"])
def test_functions_and_classes_take_args(tmp_path: Path, name: str, differentiable: bool) -> None:
    (tmp_path / "own.py").write_text(SOURCE)
    settings = config.PythonConfig(
        path=f"{tmp_path}/own.py:{name}", args={"factor": 3.0}, differentiable=differentiable
    )
    reward, given = load_reward(settings), torch.rand(2, 3, 4, 4, requires_grad=True)
    features = reward.encode(given)
    scores = [reward.score(features, PROMPTS[:2]) for _ in range(2)]
    assert torch.allclose(scores[0], 3 * given.mean((1, 2, 3))) and torch.equal(*scores)
    assert scores[0].requires_grad == differentiable
    assert reward.reads_prompt == (name == "score")
    if name == "TwoCalls":
        assert reward.function.encoded == 1  # pyright: ignore[reportAttributeAccessIssue]


def test_a_class_that_refuses_its_args_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(SOURCE)
    with pytest.raises(
        DirectAlignError,
        match=r"reward\.path: Callable in .*own\.py cannot be constructed with args {'other': 1}",
    ):
        load_reward(config.PythonConfig(path=f"{tmp_path}/own.py:Callable", args={"other": 1}))


def test_the_template_is_a_differentiable_reward() -> None:
    path, given = ROOT / "examples" / "my_reward.py", images().requires_grad_()
    settings = config.PythonConfig(
        path=f"{path}:MyReward", differentiable=True, args={"target": 0.25}
    )
    reward = load_reward(settings)
    scores = reward.score(reward.encode(given), PROMPTS)
    torch.testing.assert_close(scores, -((given.mean((1, 2, 3)) - 0.25) ** 2))
    (gradient,) = torch.autograd.grad(scores.sum(), given)
    assert gradient.abs().max() > 0 and not reward.reads_prompt
    plain = load_reward(config.PythonConfig(path=f"{path}:contrast"))
    torch.testing.assert_close(plain.score(images(), PROMPTS), images().flatten(1).std(1))
