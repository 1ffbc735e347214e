"""Replay recorded steps of the official FLUX trainer from our own formulas, and say how far apart
the two are.

    python benchmarks/replay_reference.py tests/fixtures/reference/hps_mid [CASE ...]

A case is CASE.json (settings) and CASE.safetensors (weights, inputs, recorded images and gradient);
the README beside the cases in tests/fixtures/reference lists what is in them. The moves are derived
from the landing point alone. Everything runs in float32 on the CPU; ends with 1 when an error is
past its bound, with 2 when a case cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from directalign.diffusion.noise_levels import GridSampler, NoiseStep, Ramp
from directalign.diffusion.path import truncate_sigmas
from directalign.diffusion.recovery import direction, inject, recover
from directalign.methods.objective_math import hinge, relative_reward
from directalign.models.common import image_ids, pack, text_ids, unpack
from directalign.types import DirectAlignError, Images, Latents

BOUNDS = {"image": 1e-5, "loss": 1e-6, "gradient": 1e-5}
VAE_SCALING, VAE_SHIFT = 0.3611, 0.1159
MARGIN = 0.7
TIMESTEPS = 1000

Result = TypeVar("Result")


@dataclass(frozen=True)
class Case:
    """A recorded step: settings, tensors, and the two models they make."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    transformer: FluxTransformer2DModel
    vae: AutoencoderKL

    @property
    def grid(self) -> GridSampler:
        """The window that the landing point belongs to."""
        s = self.settings
        first, last = s["window"]
        return GridSampler(
            s["window_schedule_steps"],
            s["shift"],
            first,
            last,
            s["timestep_length"],
            s["groundtruth_ratio"],
        )

    @property
    def latent_size(self) -> tuple[int, int]:
        """(h, w) of the latents."""
        pixels = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        return self.settings["height"] // pixels, self.settings["width"] // pixels

    def latents(self, name: str) -> Latents:
        """A recorded tensor of tokens, unpacked."""
        h, w = self.latent_size
        tokens = self.tensors[name].shape[1]
        if tokens != (h // 2) * (w // 2):
            raise DirectAlignError(
                f"{name} has {tokens} tokens, height and width make {(h // 2) * (w // 2)}: record "
                "the size of the image"
            )
        return unpack(self.tensors[name], h, w)


@dataclass(frozen=True)
class Errors:
    """Largest deviations of a replay; `tensor` names the parameter whose own gradient is farthest
    off, by `tensor_gradient`."""

    image: float
    loss: float
    gradient: float
    tensor_gradient: float
    tensor: str

    def within_bounds(self) -> bool:
        """False for a deviation that is not a number, too."""
        return all(getattr(self, name) <= bound for name, bound in BOUNDS.items())


def load_case(path: Path) -> Case:
    """Read CASE.json and CASE.safetensors; one line says what is missing or wrong."""
    settings = _attempt(
        f"{path}.json", lambda: json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))
    )
    tensors = _attempt(f"{path}.safetensors", lambda: load_file(f"{path}.safetensors"))
    transformer = _attempt(
        f"{path}: transformer",
        lambda: _build(
            FluxTransformer2DModel, settings["transformer_config"], tensors, "transformer."
        ),
    )
    vae = _attempt(
        f"{path}: vae", lambda: _build(AutoencoderKL, settings["vae_config"], tensors, "vae.")
    )
    vae.requires_grad_(False)
    return Case(settings, tensors, transformer, vae)


def replay(path: Path) -> Errors:
    """Repeat the step of a case and compare images, losses and the summed gradient."""
    case = load_case(path)
    return _attempt(str(path), lambda: _replay(case))


def _replay(case: Case) -> Errors:
    deviations = [_replay_branch(case, index) for index in range(len(case.settings["branches"]))]
    if not deviations:
        raise DirectAlignError("branches is empty: record at least one branch")
    images, losses = zip(*deviations, strict=True)
    return Errors(max(images), max(losses), *_gradient_errors(case))


def _replay_branch(case: Case, index: int) -> tuple[float, float]:
    """Back up one branch's loss; (image error, loss error)."""
    recorded = case.settings["branches"][index]
    move, k = _move_and_k(case, recorded["kind"])
    noised = inject(
        "flow", case.latents("clean_packed"), case.latents("noise_packed"), move.sigma_from
    )
    shown = truncate_sigmas(move.sigma_from, TIMESTEPS).float()
    if abs(shown.item() - recorded["timestep_passed"]) > 1e-6:
        raise DirectAlignError(
            f"branch {index} shows the network timestep {shown.item():.6f}, recorded is "
            f"{recorded['timestep_passed']:.6f}"
        )

    recovered = recover(
        "flow", "velocity", noised, _predict(case, noised.x_t, shown), move.sigma_to
    )
    image = _decode(case, recovered.x0)
    pos, neg = (
        _features(case, image) @ case.tensors[f"reward.text_{side}"] for side in ("pos", "neg")
    )
    reward = relative_reward(
        pos, neg, k if move.is_denoise else 0.0, k if move.is_inversion else 0.0
    )
    loss = hinge(reward, direction(recovered.gain), MARGIN).mean() / case.settings["accumulation"]
    loss.backward()
    return _worst(image, case.tensors[f"branch{index}.image"]), abs(loss.item() - recorded["loss"])


def _move_and_k(case: Case, kind: str) -> tuple[NoiseStep, Tensor]:
    landing = torch.tensor([case.settings["mid_timestep"]])
    if not 0 < landing.item() < case.grid.points:
        raise DirectAlignError(
            f"mid_timestep {landing.item()} is not a landing point: choose one between 1 and "
            f"{case.grid.points - 1}"
        )
    branches = {
        "denoise": (case.grid.denoise, "discount_denoise"),
        "inversion": (case.grid.inversion, "discount_inversion"),
    }
    if kind not in branches:
        raise DirectAlignError(f"branch kind {kind!r} is unknown: choose denoise or inversion")
    draw_move, ramp = branches[kind]
    move = draw_move(landing)
    return move, Ramp(*case.settings[ramp]).at(move.position)


def _predict(case: Case, x_t: Latents, timestep: Tensor) -> Latents:
    """The velocity at a timestep in [0, 1]."""
    prompt_embeds = case.tensors["prompt_embeds"]
    guidance = (
        torch.tensor([float(case.settings["train_guidance"])])
        if case.transformer.config["guidance_embeds"]
        else None
    )
    tokens = case.transformer(
        hidden_states=pack(x_t),
        encoder_hidden_states=prompt_embeds,
        pooled_projections=case.tensors["pooled_prompt_embeds"],
        timestep=timestep,
        img_ids=image_ids(*case.latent_size, x_t.device),
        txt_ids=text_ids(prompt_embeds.shape[1], x_t.device),
        guidance=guidance,
        return_dict=False,
    )[0]
    return unpack(tokens, *case.latent_size)


def _decode(case: Case, x0: Latents) -> Images:
    image = case.vae.decode(x0 / VAE_SCALING + VAE_SHIFT, return_dict=False)[0]
    return (image / 2 + 0.5).clamp(0, 1)


def _features(case: Case, image: Images) -> Tensor:
    return F.normalize(
        F.adaptive_avg_pool2d(image, 8).flatten(1) @ case.tensors["reward.proj"], dim=-1
    )


def _gradient_errors(case: Case) -> tuple[float, float, str]:
    """(relative error of the whole gradient, worst relative error of one tensor, its name)."""
    ours = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in case.transformer.named_parameters()
    }
    theirs = {
        name: case.tensors.get(f"grad.{name}", torch.zeros_like(grad))
        for name, grad in ours.items()
    }
    _same_shapes(ours, theirs)
    difference = {name: (ours[name] - theirs[name]).double().norm() for name in ours}
    size = {name: theirs[name].double().norm() for name in ours}
    whole = torch.stack([*difference.values()]).norm() / torch.stack([*size.values()]).norm()
    own = {name: (difference[name] / size[name]).item() for name in ours if size[name] > 0}
    worst = max(own, key=lambda name: own[name])
    return whole.item(), own[worst], worst


def _same_shapes(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name, grad in ours.items():
        if theirs[name].shape != grad.shape:
            raise DirectAlignError(
                f"grad.{name} has shape {tuple(theirs[name].shape)}, the parameter has "
                f"{tuple(grad.shape)}"
            )


def _worst(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        raise DirectAlignError(
            f"the recorded image has shape {tuple(theirs.shape)}, the replayed one "
            f"{tuple(ours.shape)}"
        )
    return (ours - theirs).abs().max().item()


def _build(
    model_class: Callable[..., nn.Module],
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    prefix: str,
) -> Any:
    """A diffusers model with the recorded weights; of a VAE only what decodes is recorded."""
    model = model_class(**config).eval()
    weights = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    missing, unexpected = model.load_state_dict(weights, strict=False)
    wrong = [
        name for name in missing if not name.startswith(("encoder.", "quant_conv."))
    ] + unexpected
    if wrong:
        raise DirectAlignError(f"weights do not fit the config, first {prefix}{wrong[0]}")
    return model


def _attempt(what: str, action: Callable[[], Result]) -> Result:
    """Run `action`; whatever a broken case makes it raise becomes one line that names `what`."""
    try:
        return action()
    except KeyError as error:
        raise DirectAlignError(f"{what}: {error.args[0]} is not recorded") from error
    except (OSError, ValueError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        raise DirectAlignError(
            f"{what}: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """Replay every case named on the command line; the exit code."""
    parser = argparse.ArgumentParser(
        description="Replay recorded reference steps and print the largest errors."
    )
    parser.add_argument("case", nargs="+", type=Path, help="path of a case without its ending")
    exit_code = 0
    for path in parser.parse_args(arguments).case:
        try:
            errors = replay(path)
        except DirectAlignError as error:
            print(f"error: {error}", file=sys.stderr)
            exit_code = 2
            continue
        verdict = "ok" if errors.within_bounds() else "PAST BOUNDS"
        figures = (
            f"image {errors.image:.1e}  loss {errors.loss:.1e}  gradient {errors.gradient:.1e}"
        )
        print(
            f"{path.name:<24} {figures}  (worst tensor {errors.tensor_gradient:.1e} "
            f"{errors.tensor})  {verdict}"
        )
        exit_code = max(exit_code, int(not errors.within_bounds()))
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
