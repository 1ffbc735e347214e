"""MPS: the original's scores to 1e-5, a gradient that is right, and files that are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel

from directalign import config
from directalign.interfaces import Reward
from directalign.rewards import check_reward, load_reward, mps
from directalign.rewards.common import Preprocessing
from directalign.rewards.mps import CrossModel, MpsModel, MpsReward, rotated, sizes_of
from directalign.types import DirectAlignError

FIXTURES = Path(__file__).parents[1] / "fixtures" / "mps"
PROMPTS = ["a red star", "a blue ring on an olive background"]


def images(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.fixture
def mps_file(clip_folder: Path, tmp_path: Path) -> Path:
    """The tiny CLIP with a random cross model, as the published layout has them."""
    torch.manual_seed(1)
    model = MpsModel(CLIPModel.from_pretrained(clip_folder), CrossModel(dim=8, layers=2, dim_head=4, heads=2, ff_mult=4))
    extra = {"model.text_model.embeddings.position_ids": torch.arange(16)[None], "cross_model.layers.0.1.fn.rotary_emb.inv_freq": torch.ones(2)}
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()} | extra, tmp_path / "mps.safetensors")
    return tmp_path / "mps.safetensors"


@pytest.fixture
def reward(clip_folder: Path, mps_file: Path) -> MpsReward:
    return load_reward(config.MpsConfig(path=str(mps_file), processor=str(clip_folder)))


class Spelled:
    """A tokenizer of texts that are their own token ids."""

    def __call__(self, texts: list[str], **_: object) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([[int(token) for token in text.split()] for text in texts])}


def spelled(ids: torch.Tensor) -> str:
    return " ".join(str(int(token)) for token in ids)


def test_scores_are_those_of_the_original(reward: MpsReward) -> None:
    told, weights = load_file(FIXTURES / "answers.safetensors"), load_file(FIXTURES / "mps.safetensors")
    used = mps._used(weights)
    described = mps._described({name: tuple(tensor.shape) for name, tensor in used.items()}, FIXTURES / "mps.safetensors", FIXTURES, "reward")
    as_is = Preprocessing(size=12, crop=(12, 12), mean=(0.0,) * 3, std=(1.0,) * 3)
    ours = MpsReward(mps._filled(*described, used), reward.tokenizer, as_is, condition=spelled(told["condition"]))
    ours.tokenizer = Spelled()  # pyright: ignore[reportAttributeAccessIssue]
    prompts = [spelled(prompt) for prompt in told["prompts"]]
    selected = torch.stack([each.selected for each in ours._prompts.read(prompts)])
    assert selected.any(1).all() and not selected.all(1).all()  # the mask of the condition has something to do
    scale = weights["model.logit_scale"].exp()
    with torch.no_grad():
        assert (scale * ours.score(ours.encode(told["pixels"]), prompts) - told["scores"]).abs().max() < 1e-5
        assert (scale * ours.score(ours.encode(told["pixels"][2:]), prompts[2:]) - told["scores"][2:]).abs().max() < 1e-5


def test_is_a_reward_that_hears_its_condition(reward: MpsReward, clip_folder: Path, mps_file: Path) -> None:
    assert isinstance(reward, Reward) and reward.name == "mps"
    assert reward.condition.startswith("light, color, clarity") and reward.condition.endswith("word, things.")
    features = reward.encode(images())
    score = reward.score(features, PROMPTS)
    assert score.abs().max() <= 1 and not torch.equal(score, reward.score(features, PROMPTS[::-1]))
    other = load_reward(config.MpsConfig(path=str(mps_file), processor=str(clip_folder), condition="ring", scale=100.0))
    selected = [torch.stack([each.selected for each in asked._prompts.read(PROMPTS)]) for asked in (reward, other)]
    assert not torch.equal(*selected)
    assert other.score(features, PROMPTS).abs().max() > 1


def test_the_size_of_the_cross_model_is_read_from_its_weights() -> None:
    sizes = {"dim": 12, "layers": 3, "dim_head": 4, "heads": 5, "ff_mult": 2}
    shapes = {f"cross_model.{name}": tuple(tensor.shape) for name, tensor in CrossModel(**sizes).state_dict().items()}
    assert sizes_of(shapes, "cross_model.") == sizes


def test_rotary_positions_know_distance_alone() -> None:
    queries, keys = torch.randn(2, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).expand(2, 6, 8)
    products = rotated(queries) @ rotated(keys).T
    for shift in range(-5, 6):
        along = products.diagonal(shift)
        assert torch.allclose(along, along[:1].expand_as(along), atol=1e-6)
    assert not torch.allclose(products[0, 0], products[0, 3])


def test_gradient_to_the_pixels_equals_finite_differences(reward: MpsReward) -> None:
    before = {name: tensor.clone() for name, tensor in reward.model.state_dict().items()}
    reward.model.double()
    x = images(torch.float64).requires_grad_()
    reward.score(reward.encode(x), PROMPTS).sum().backward()
    assert x.grad is not None
    for seed in range(3):
        way = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        ends = [reward.score(reward.encode(x.detach() + sign * 1e-5 * way), PROMPTS).sum() for sign in (1, -1)]
        assert torch.allclose((ends[0] - ends[1]) / 2e-5, (x.grad * way).sum(), rtol=1e-6, atol=1e-9)
    reward.model.float()
    assert all(torch.equal(tensor, before[name]) for name, tensor in reward.model.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in reward.model.parameters())


@pytest.mark.parametrize("name", ["mps.pt", "mps.pth"])
def test_a_state_dict_of_half_precision_in_a_torch_file(reward: MpsReward, clip_folder: Path, mps_file: Path, name: str) -> None:
    halves = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in load_file(mps_file).items()}
    torch.save(halves, mps_file.parent / name)
    settings = config.MpsConfig(path=str(mps_file.parent / name), processor=str(clip_folder), gradient_checkpointing=True)
    check_reward(settings)
    other = load_reward(settings)
    assert torch.allclose(other.score(other.encode(images()), PROMPTS), reward.score(reward.encode(images()), PROMPTS), atol=2e-2)


def test_the_published_file_of_whole_objects_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "MPS_overall_checkpoint.pth")
    settings = config.MpsConfig(path=str(tmp_path / "MPS_overall_checkpoint.pth"), processor=str(clip_folder))
    for ask in (check_reward, load_reward):
        with pytest.raises(DirectAlignError, match=r"reward\.path: .*MPS_overall_checkpoint\.pth: holds pickled objects, .*; save its state_dict"):
            ask(settings)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda w: w.pop("cross_model.layers.1.0.fn.to_out.weight"), r"lacks cross_model\.layers\.1\.0\.fn\.to_out\.weight"),
        (lambda w: w.pop("cross_model.layers.0.0.fn.to_q.weight"), "not the weights of an MPS"),
        (lambda w: w.pop("model.logit_scale"), r"lacks model\.logit_scale"),
        (lambda w: w.update({"cross_model.more": torch.ones(1)}), r"has the unknown cross_model\.more"),
        (lambda w: w.update({"model.visual_projection.weight": torch.ones(9, 16)}), r"has in another shape model\.visual_projection\.weight"),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("cross_model.")], "not the weights of an MPS"),
    ],
)
def test_other_weights_are_refused_by_name(clip_folder: Path, mps_file: Path, change, complaint: str) -> None:
    weights = load_file(mps_file)
    change(weights)
    save_file(weights, mps_file)
    for ask in (check_reward, load_reward):
        with pytest.raises(DirectAlignError, match=rf"^held\.path: .*mps\.safetensors: {complaint}") as refused:
            ask(config.MpsConfig(path=str(mps_file), processor=str(clip_folder)), key="held")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kept", [0, 50, -100])
def test_a_truncated_file_is_refused(clip_folder: Path, mps_file: Path, kept: int) -> None:
    mps_file.write_bytes(mps_file.read_bytes()[:kept])
    for ask in (check_reward, load_reward):
        with pytest.raises(DirectAlignError, match=r"mps\.safetensors: not a complete file of weights"):
            ask(config.MpsConfig(path=str(mps_file), processor=str(clip_folder)))


def test_what_is_not_given_is_asked_for(clip_folder: Path, mps_file: Path, tmp_path: Path) -> None:
    for ask in (check_reward, load_reward):
        with pytest.raises(DirectAlignError, match=r"reward\.path: .* MPS is a single file of weights"):
            ask(config.MpsConfig(path=str(clip_folder)))
        with pytest.raises(DirectAlignError, match=r"reward\.processor: missing, and .* beside the weights has no tokenizer\.json"):
            ask(config.MpsConfig(path=str(mps_file)))
    reader = tmp_path / "reader"
    reader.mkdir()
    for part in clip_folder.iterdir():
        if part.name not in ("config.json", "model.safetensors"):
            (reader / part.name).symlink_to(part)
    for ask in (check_reward, load_reward):
        with pytest.raises(DirectAlignError, match=r"reward\.processor: .*config\.json is missing; name the CLIP that MPS was made from"):
            ask(config.MpsConfig(path=str(mps_file), processor=str(reader)))


def test_the_published_architecture_has_these_sizes() -> None:
    """ViT-H-14 and a cross model of 4 layers, 16 heads of 64, on 1024 numbers: built without weights."""
    with torch.device("meta"):
        cross = CrossModel(dim=1024, layers=4, dim_head=64, heads=16, ff_mult=4)
    shapes = {name: tuple(tensor.shape) for name, tensor in cross.state_dict().items()}
    assert shapes["layers.3.0.fn.ff.0.weight"] == (8192, 1024)
    assert shapes["layers.3.1.fn.fused_attn_ff_proj.weight"] == (1024 + 128 + 8192, 1024)
    assert CLIPConfig.from_pretrained(FIXTURES).projection_dim == 12
