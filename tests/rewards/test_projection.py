"""A projected reward is invariant along its directions and refuses those of another reward."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from directalign import config
from directalign.rewards import check_reward, load_reward
from directalign.rewards.clip import ClipReward
from directalign.rewards.projection import Directions, fingerprint, project_out, write_directions
from rewards.cases import PROMPTS, refused, scores_of

WIDTH = 8


def rows(count: int = 2, width: int = WIDTH) -> Tensor:
    """Orthonormal rows."""
    return torch.linalg.qr(random(width, count, 0)).Q.T.contiguous()


def random(height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(height, width, generator=generator, dtype=torch.float64)


@pytest.fixture
def model(clip_folder):
    return ClipReward.load(str(clip_folder)).model


@pytest.fixture
def settings(clip_folder, tmp_path):
    """The tiny CLIP with these directions projected out."""

    def make(directions: Directions | Path | None) -> config.ClipConfig:
        if isinstance(directions, Directions):
            directions = write_directions(tmp_path / "made" / "d.safetensors", directions)
        project = None if directions is None else str(directions)
        return config.ClipConfig(path=str(clip_folder), project_out=project)

    return make


def test_scores_and_gradients_ignore_the_directions():
    d, features, text = rows(), random(2, WIDTH, 1).requires_grad_(), random(2, WIDTH, 2)
    moved = features + torch.tensor([[3.0, -0.7], [0.2, 11.0]], dtype=torch.float64) @ d
    assert (project_out(features, d) - project_out(moved, d)).abs().max() < 1e-12
    assert (project_out(features, None) - project_out(moved, None)).abs().max() > 0.1
    (gradient,) = torch.autograd.grad((project_out(features, d) * text).sum(), features)
    assert (gradient @ d.T).abs().max() < 1e-12 < gradient.abs().max()
    inside = features - (features @ d.T) @ d
    assert torch.allclose(project_out(inside, d), project_out(inside, None), atol=1e-12)


def test_a_loaded_reward_ignores_them_from_the_pixels_on(settings, model):
    d, images = rows().float(), torch.rand(2, 3, 40, 40, requires_grad=True)
    reward = load_reward(settings(Directions(d, fingerprint(model))))
    found, whole = reward.encode(images), load_reward(settings(None)).encode(images)
    assert (found @ d.T).abs().max() < 1e-6 < (whole @ d.T).abs().max()
    assert torch.allclose(found, project_out(whole, d), atol=1e-6)
    scores_of(reward, images, PROMPTS).sum().backward()
    assert images.grad is not None and images.grad.abs().max() > 0


def test_directions_of_another_reward_are_refused(settings, model):
    own = fingerprint(model)
    with torch.no_grad():
        model.text_projection.weight.add_(1)
    assert fingerprint(model) == own  # the text side may change
    with torch.no_grad():
        model.vision_model.encoder.layers[0].mlp.fc1.weight.mul_(1.01)
    other = settings(Directions(rows().float(), fingerprint(model)))
    with refused(r"reward\.project_out: .*another image tower; make it with directalign"):
        load_reward(other)
    check_reward(other)  # only the weights determine whose directions they are
    wide = settings(Directions(rows(1, width=12).float(), "0" * 16))
    with refused("directions of 12 numbers, and this reward's features have 8"):
        load_reward(wide)


FACTS = {"fingerprint": "f"}


@pytest.mark.parametrize(
    ("tensors", "facts", "complaint"),
    [
        ({"directions": torch.ones(1, WIDTH)}, FACTS, "not orthonormal"),
        ({"directions": torch.full((1, WIDTH), torch.nan)}, FACTS, "directions has .* not finite"),
        ({"directions": torch.eye(WIDTH).int()}, FACTS, "directions is of type int32"),
        ({"directions": torch.eye(WIDTH)[0]}, FACTS, "holds no `directions`"),
        ({"directions": torch.eye(WIDTH)}, {}, "holds no `directions`"),
        (None, {}, "no such file; make it with directalign reward bias-directions"),
        ({}, {}, "not a complete safetensors file"),
    ],
)
def test_unusable_files_are_refused(settings, tmp_path, tensors, facts, complaint):
    file = tmp_path / "d.safetensors"
    if tensors:
        save_file(tensors, file, metadata=facts)
    elif tensors is not None:
        file.write_bytes(b"cut")
    for act in (load_reward, check_reward):
        with refused(rf"reward\.project_out: .*{complaint}"):
            act(settings(file))
