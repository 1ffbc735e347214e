"""A projected reward is blind along its directions, in value and in gradient, and refuses directions that are not its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from directalign import config
from directalign.rewards import check_reward, load_reward
from directalign.rewards.clip import ClipReward
from directalign.rewards.projection import (
    Directions,
    fingerprint,
    project_out,
    read_directions,
    write_directions,
)
from directalign.types import DirectAlignError

PROMPTS = ["a red star on a navy background", "a blue ring on an olive background"]
WIDTH = 8


def rows(count: int = 2, width: int = WIDTH, seed: int = 0) -> Tensor:
    """Orthonormal rows."""
    random = torch.randn(
        width, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return torch.linalg.qr(random).Q.T.contiguous()


def raw_features(count: int = 2, seed: int = 1) -> Tensor:
    return torch.randn(
        count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


@pytest.fixture
def file(clip_folder: Path, tmp_path: Path) -> Path:
    """Directions of the tiny CLIP."""
    model = ClipReward.load(str(clip_folder)).model
    return write_directions(
        tmp_path / "made" / "d.safetensors",
        Directions(rows().float(), fingerprint(model), {"from": "a test"}),
    )


def settings(folder: Path, project: Path | None) -> config.ClipConfig:
    return config.ClipConfig(
        path=str(folder), project_out=None if project is None else str(project)
    )


def test_scores_do_not_see_a_move_along_the_directions() -> None:
    d, features, text = rows(), raw_features(), raw_features(seed=2)
    moved = features + torch.tensor([[3.0, -0.7], [0.2, 11.0]], dtype=torch.float64) @ d
    assert (project_out(features, d) * text - project_out(moved, d) * text).abs().max() < 1e-12
    assert (project_out(features, None) * text - project_out(moved, None) * text).abs().max() > 0.1


def test_without_restoring_the_length_a_move_would_be_seen() -> None:
    d, features = rows(), raw_features()

    def unrestored(each: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(each, dim=-1)
        return unit - (unit @ d.T) @ d

    moved = features + 3 * d[:1]
    assert (unrestored(moved) - unrestored(features)).abs().max() > 0.05
    assert torch.allclose(
        project_out(moved, d).norm(dim=1), torch.ones(2, dtype=torch.float64), atol=1e-12
    )


def test_the_gradient_has_no_part_along_the_directions() -> None:
    d, features = rows(), raw_features().requires_grad_()
    (gradient,) = torch.autograd.grad(
        (project_out(features, d) * raw_features(seed=2)).sum(), features
    )
    assert (gradient @ d.T).abs().max() < 1e-12 < gradient.abs().max()


def test_what_is_orthogonal_to_the_directions_is_judged_as_before() -> None:
    d = rows(1)
    inside = raw_features() - (raw_features() @ d.T) @ d
    assert torch.allclose(project_out(inside, d), project_out(inside, None), atol=1e-12)


def test_a_loaded_reward_is_blind_through_its_pixels(clip_folder: Path, file: Path) -> None:
    reward = load_reward(settings(clip_folder, file))
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(3))
    seen, whole = reward.encode(images), load_reward(settings(clip_folder, None)).encode(images)
    assert (seen @ rows().float().T).abs().max() < 1e-6 < (whole @ rows().float().T).abs().max()
    assert torch.allclose(seen, project_out(whole, rows().float()), atol=1e-6)
    pixels = images.clone().requires_grad_()
    reward.score(reward.encode(pixels), PROMPTS).sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().max() > 0


def test_a_file_tells_how_it_was_made(file: Path, clip_folder: Path) -> None:
    found = read_directions(file, "reward.project_out")
    assert torch.equal(found.rows, rows().float()) and found.made == {"from": "a test"}
    assert found.fingerprint == fingerprint(ClipReward.load(str(clip_folder)).model)


def test_directions_of_another_reward_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    model = ClipReward.load(str(clip_folder)).model
    with torch.no_grad():
        model.vision_model.encoder.layers[0].mlp.fc1.weight.mul_(1.01)
    other = write_directions(
        tmp_path / "d.safetensors", Directions(rows().float(), fingerprint(model))
    )
    with pytest.raises(
        DirectAlignError,
        match=r"reward\.project_out: .*another image side; make it with directalign reward bias-directions",
    ):
        load_reward(settings(clip_folder, other))
    check_reward(settings(clip_folder, other))  # whose they are is known from the weights alone


def test_the_text_side_may_change(clip_folder: Path) -> None:
    model = ClipReward.load(str(clip_folder)).model
    before = fingerprint(model)
    with torch.no_grad():
        model.text_projection.weight.add_(1)
    assert fingerprint(model) == before


def test_another_width_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    wide = write_directions(
        tmp_path / "d.safetensors", Directions(rows(1, width=12).float(), "0" * 16)
    )
    with pytest.raises(
        DirectAlignError, match="directions of 12 numbers, and this reward's features have 8"
    ):
        load_reward(settings(clip_folder, wide))


@pytest.mark.parametrize(
    ("tensors", "facts", "words"),
    [
        ({"directions": torch.ones(1, WIDTH)}, {"fingerprint": "f"}, "not orthonormal"),
        ({"directions": torch.eye(WIDTH)[[0, 0]]}, {"fingerprint": "f"}, "not orthonormal"),
        ({"directions": torch.zeros(0, WIDTH)}, {"fingerprint": "f"}, "not orthonormal"),
        ({"directions": torch.eye(WIDTH)[0]}, {"fingerprint": "f"}, "holds no `directions`"),
        ({"tokens": torch.eye(WIDTH)}, {"fingerprint": "f"}, "holds no `directions`"),
        ({"directions": torch.eye(WIDTH)}, {}, "holds no `directions`"),
        (
            {"directions": torch.full((1, WIDTH), torch.nan)},
            {"fingerprint": "f"},
            "not orthonormal",
        ),
    ],
)
def test_a_file_of_other_content_is_refused(
    clip_folder: Path, tmp_path: Path, tensors: dict[str, Tensor], facts: dict[str, str], words: str
) -> None:
    save_file(tensors, tmp_path / "d.safetensors", metadata=facts)
    for act in (load_reward, check_reward):
        with pytest.raises(DirectAlignError, match=rf"reward\.project_out: .*{words}"):
            act(settings(clip_folder, tmp_path / "d.safetensors"))


def test_a_missing_or_truncated_file_is_refused_before_anything_is_loaded(
    clip_folder: Path, file: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        DirectAlignError, match="no such file; make it with directalign reward bias-directions"
    ):
        check_reward(
            settings(clip_folder, tmp_path / "none.safetensors"), "reward.members.1.reward"
        )
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DirectAlignError, match="not a complete safetensors file"):
        check_reward(settings(clip_folder, cut))
