"""Record a case by hand: Euler step, known noise subtracted, phrases swapped on inversion.

Written from the released recipe's description without the package, so that a replay checks
`directalign.diffusion` on settings that the official recordings do not have.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import save_file

SIDE = {"denoise": ("pos", "neg"), "inversion": ("neg", "pos")}


@dataclass(frozen=True)
class Recipe:
    """Settings of a recording; two stages of VAE, so pixels are 4 per token."""

    height: int = 16
    width: int = 24
    m: int = 97
    points: int = 100
    window: tuple[int, int] = (15, 45)
    ratio: float = 0.6
    ramps: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 0.4), (0.5, 0.1))
    guidance: float | None = 2.5
    kinds: tuple[str, ...] = ("denoise", "inversion")
    seed: int = 3


def record(folder: Path, recipe: Recipe) -> Path:
    """Write a case into `folder`; its path without ending."""
    torch.manual_seed(recipe.seed)
    transformer_config, vae_config = configs(recipe)
    transformer, vae = FluxTransformer2DModel(**transformer_config), AutoencoderKL(**vae_config)
    tokens = (recipe.height // 4) * (recipe.width // 4)
    tensors = {
        "clean_packed": torch.randn(1, tokens, 16),
        "noise_packed": torch.randn(1, tokens, 16),
        "prompt_embeds": torch.randn(1, 5, 12),
        "pooled_prompt_embeds": torch.randn(1, 10),
        "reward.proj": torch.randn(192, 6),
        "reward.text_pos": F.normalize(torch.randn(6), dim=0),
        "reward.text_neg": F.normalize(torch.randn(6), dim=0),
    }
    branches = [
        record_branch(index, kind, recipe, tensors, transformer, vae)
        for index, kind in enumerate(recipe.kinds)
    ]
    tensors |= {
        f"grad.{name}": p.grad for name, p in transformer.named_parameters() if p.grad is not None
    }
    tensors |= {f"transformer.{name}": each for name, each in transformer.state_dict().items()}
    decoder = ((k, v) for k, v in vae.state_dict().items() if k.startswith("decoder."))
    tensors |= {f"vae.{name}": tensor for name, tensor in decoder}
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "case.safetensors")
    configs_of = {"transformer_config": transformer_config, "vae_config": vae_config}
    norms = [p.grad.norm() for p in transformer.parameters() if p.grad is not None]
    recorded = {"branches": branches, "grad_norm": torch.stack(norms).norm().item()}
    settings = as_settings(recipe) | configs_of | recorded
    (folder / "case.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder / "case"


def record_branch(index, kind, recipe, tensors, transformer, vae) -> dict[str, object]:
    """One branch's backward pass; adds its image to `tensors`."""
    start, end, read_at = points_of(kind, recipe)
    sigma_from, sigma_to = level(start, recipe), level(end, recipe)
    shown = int(1000 * sigma_from) / 1000
    x_from = (1 - sigma_from) * tensors["clean_packed"] + sigma_from * tensors["noise_packed"]
    rows, columns = recipe.height // 4, recipe.width // 4
    place = torch.tensor([[0.0, row, column] for row in range(rows) for column in range(columns)])
    guidance = None if recipe.guidance is None else torch.tensor([recipe.guidance])
    text = tensors["prompt_embeds"]
    pooled, shown_at = tensors["pooled_prompt_embeds"], torch.tensor([shown])
    velocity = transformer(
        x_from, text, pooled, shown_at, place, torch.zeros(5, 3), guidance
    ).sample
    x_to = x_from + (sigma_to - sigma_from) * velocity
    packed = (x_to - sigma_to * tensors["noise_packed"]) / (1 - sigma_to)
    latents = (
        packed.view(1, rows, columns, 4, 2, 2)
        .permute(0, 3, 1, 4, 2, 5)
        .reshape(1, 4, 2 * rows, 2 * columns)
    )
    image = (vae.decode(latents / 0.3611 + 0.1159).sample * 0.5 + 0.5).clamp(0, 1)

    low, high = recipe.ramps[kind == "inversion"]
    k = low + (high - low) * read_at / (recipe.points - 1)
    features = F.normalize(
        F.adaptive_avg_pool2d(image, 8).flatten(1) @ tensors["reward.proj"], dim=-1
    )
    own, other = (tensors[f"reward.text_{side}"] for side in SIDE[kind])
    loss = torch.relu(0.7 - features @ ((1 + k) * own - other)).sum() / len(recipe.kinds)
    loss.backward()
    tensors[f"branch{index}.image"] = image
    return {"kind": kind, "timestep_passed": shown, "loss": loss.item()}


def points_of(kind: str, recipe: Recipe) -> tuple[int, int, int]:
    """(start, end, where the ramp is read), points counted from 1 at the low-noise end."""
    span = min(recipe.points - recipe.m, recipe.m, int((1 - recipe.ratio) * recipe.points) + 1)
    if kind == "denoise":
        return recipe.m + span, recipe.m, recipe.m
    start = max(recipe.m - span, 1)
    return start, start + span, start


def level(point: int, recipe: Recipe) -> float:
    """Noise level of a point of the window, from float32 grids as a float32 trainer has them."""
    grid = torch.linspace(1, 0, 51)
    grid = 3 * grid / (1 + 2 * grid)
    first, last = recipe.window
    return torch.linspace(grid[first].item(), grid[last].item(), recipe.points)[
        recipe.points - point
    ].item()


def configs(recipe: Recipe) -> tuple[dict[str, object], dict[str, object]]:
    """(transformer, VAE): the smallest that diffusers builds."""
    transformer = {"in_channels": 16, "num_layers": 1, "num_single_layers": 1}
    transformer |= {"attention_head_dim": 8, "num_attention_heads": 2, "axes_dims_rope": [2, 2, 4]}
    transformer |= {"joint_attention_dim": 12, "pooled_projection_dim": 10}
    transformer["guidance_embeds"] = recipe.guidance is not None
    vae = {"block_out_channels": [4, 4], "latent_channels": 4, "norm_num_groups": 2}
    vae |= {"down_block_types": ["DownEncoderBlock2D"] * 2, "layers_per_block": 1}
    vae |= {"up_block_types": ["UpDecoderBlock2D"] * 2}
    vae |= {"use_quant_conv": False, "use_post_quant_conv": False}
    return transformer, vae


def as_settings(recipe: Recipe) -> dict[str, object]:
    """The settings under the names of the recorded format."""
    return {
        "height": recipe.height,
        "width": recipe.width,
        "mid_timestep": recipe.m,
        "timestep_length": recipe.points,
        "window": list(recipe.window),
        "window_schedule_steps": 50,
        "shift": 3.0,
        "groundtruth_ratio": recipe.ratio,
        "discount_denoise": list(recipe.ramps[0]),
        "discount_inversion": list(recipe.ramps[1]),
        "accumulation": len(recipe.kinds),
        "base_prompt": "a fox",
        "pos_prompt": "Real. a fox",
        "neg_prompt": "Flat. a fox",
        "train_guidance": recipe.guidance or 1.0,
    }
