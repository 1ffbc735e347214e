"""Replay recorded steps of the official FLUX trainer through `SRPO.losses` and compare.

    python benchmarks/replay_reference.py tests/fixtures/reference/hps_mid [CASE ...]

A case is CASE.json (settings) and CASE.safetensors (weights, inputs, recorded images, gradient);
its content is listed in tests/fixtures/reference/README.md. The recorded clean latents, noise and
target point take the place of the rollout and the random draws; everything else is the code that
trains. float32 on the CPU. Exit code 1: an error is past its bound; 2: a case cannot be read.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from directalign.config import RolloutConfig, SRPOConfig
from directalign.config.presets import PRESETS, merged
from directalign.diffusion.noise_levels import GridSampler
from directalign.interfaces import Model, Reward
from directalign.methods.srpo import SRPO
from directalign.models.common import image_places, pack, text_places, unpack
from directalign.types import Batch, Conditioning, DirectAlignError, Images, Latents, PerSample

BOUNDS = {"image": 1e-5, "loss": 1e-6, "gradient": 1e-5, "norm": 1e-5}
VAE_SCALING, VAE_SHIFT = 0.3611, 0.1159

Result = TypeVar("Result")


@dataclass
class Case(Model):
    """A recorded step: its settings and tensors, and the models that they make, as `SRPO` expects
    a model. `images` and `timesteps` collect what each branch decodes and is called with."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    denoiser: Any
    vae: AutoencoderKL
    images: list[Images] = field(default_factory=list)
    timesteps: list[float] = field(default_factory=list)

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
            need = f"height and width make {(h // 2) * (w // 2)}: record the size of the image"
            raise DirectAlignError(f"{name} has {tokens} tokens, {need}")
        return unpack(self.tensors[name], h, w)

    def predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Latents:
        """The network's velocity; the sigma that it gets is its timestep."""
        self.timesteps.append(sigma.item())
        h, w = self.latent_size
        prompt_embeds = self.tensors["prompt_embeds"]
        has_guidance = self.denoiser.config["guidance_embeds"]
        tokens = self.denoiser(
            hidden_states=pack(x_t),
            encoder_hidden_states=prompt_embeds,
            pooled_projections=self.tensors["pooled_prompt_embeds"],
            timestep=sigma.float(),
            img_ids=image_places(h // 2, w // 2, x_t.device)[:, :3].float(),
            txt_ids=text_places(prompt_embeds.shape[1], x_t.device)[:, :3].float(),
            guidance=torch.tensor([cond.embedded_guidance]) if has_guidance else None,
            return_dict=False,
        )[0]
        return unpack(tokens, *self.latent_size)

    def decode(self, x0: Latents) -> Images:
        vae: Any = self.vae
        image = vae.decode(x0 / VAE_SCALING + VAE_SHIFT, return_dict=False)[0] / 2 + 0.5
        self.images.append(image.detach().clamp(0, 1))
        return image


class RecordedReward(Reward):
    """Cosine of 8x8 means, projected, and the recorded features of the two texts."""

    name, sees, reads_prompt, differentiable = "recorded", "pixels", True, True

    def __init__(self, case: Case) -> None:
        self.case = case

    def encode(self, images: Images) -> Tensor:
        means = F.adaptive_avg_pool2d(images, 8).flatten(1)
        return F.normalize(means @ self.case.tensors["reward.proj"], dim=-1)

    def score(self, features: Tensor, prompts: Sequence[str]) -> PerSample:
        texts = {self.case.settings[f"{side}_prompt"]: side for side in ("pos", "neg")}
        text = self.case.tensors[f"reward.text_{texts[prompts[0]]}"]
        return features @ text.flatten()


class RecordedStep(SRPO):
    """SRPO with the recorded clean latents, noise and target point."""

    def __init__(self, case: Case) -> None:
        settings = SRPOConfig.model_validate(method_settings(case))
        super().__init__(case, RecordedReward(case), settings, RolloutConfig())
        self.case, point = case, case.settings["mid_timestep"]
        points = self.sampler.points
        if not 0 < point < points:
            raise DirectAlignError(
                f"mid_timestep {point} is not a target point: choose one between 1 and {points - 1}"
            )
        self.sampler = FixedTarget(**{**vars(self.sampler), "target": point})

    def clean_latents(self, batch: Batch) -> tuple[Latents, Latents | None, Conditioning]:
        settings = self.settings
        call = settings.embedded_guidance, settings.cfg_scale, settings.truncate_timestep
        cond = Conditioning(batch.prompts, {}).guided(*call)
        return self.case.latents("clean_packed"), self.case.latents("noise_packed"), cond


@dataclass(frozen=True)
class FixedTarget(GridSampler):
    """The official grid with one target point."""

    target: int = 0

    def draw(self, b: int, generator: torch.Generator) -> Tensor:
        return torch.full((b,), self.target)


def method_settings(case: Case) -> dict[str, Any]:
    """The official method under the settings of the case."""
    s = case.settings
    kinds = [branch["kind"] for branch in s["branches"]]
    if not kinds:
        raise DirectAlignError("branches is empty: record at least one branch")
    unknown = sorted({*kinds} - {"denoise", "inversion"})
    if unknown:
        raise DirectAlignError(f"branch kind {unknown[0]!r} is unknown: give denoise or inversion")
    if len({*kinds}) < len(kinds) or s["accumulation"] != len(kinds):
        raise DirectAlignError(f"accumulation {s['accumulation']}: the step averages its branches")
    ramps = {
        "denoise": {"k_pos": dict(zip(RAMP, s["discount_denoise"], strict=True))},
        "inversion": {"k_neg": dict(zip(RAMP, s["discount_inversion"], strict=True))},
    }
    phrases = {
        side: [s[prompt].removesuffix(f". {s['base_prompt']}")]
        for side, prompt in (("positive", "pos_prompt"), ("negative", "neg_prompt"))
    }
    levels = {
        "schedule_steps": s["window_schedule_steps"],
        "schedule_shift": s["shift"],
        "first": s["window"][0],
        "last": s["window"][1],
        "points": s["timestep_length"],
        "groundtruth_ratio": s["groundtruth_ratio"],
    }
    own = {
        **ramps,
        "control_phrases": phrases,
        "noise_levels": levels,
        "branches": "both" if len(kinds) == 2 else kinds[0],
        "embedded_guidance": s["train_guidance"],
    }
    return merged(PRESETS["official_flux"]["method"], own)


RAMP = ("low_noise", "high_noise")


@dataclass(frozen=True)
class Errors:
    """Largest deviations of a replay; `norm`: of the gradient's norm, which clipping reads;
    `tensor`: the parameter with the largest gradient error."""

    image: float
    loss: float
    gradient: float
    norm: float
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
    kinds = {"transformer": FluxTransformer2DModel, "vae": AutoencoderKL}
    transformer, vae = (
        _attempt(
            f"{path}: {part}",
            lambda part=part, kind=kind: _build(
                kind, settings[f"{part}_config"], tensors, f"{part}."
            ),
        )
        for part, kind in kinds.items()
    )
    vae.requires_grad_(False)
    make: Any = Case  # the parts of a model that the step does not use are left out
    case = make(settings, tensors, transformer, vae)
    case.path, case.prediction = "flow", "velocity"
    return case


def replay(path: Path) -> Errors:
    """Repeat the step of a case and compare images, losses and the summed gradient."""
    case = load_case(path)
    return _attempt(str(path), lambda: _replay(case))


def _replay(case: Case) -> Errors:
    recorded = {each["kind"]: (n, each) for n, each in enumerate(case.settings["branches"])}
    images, losses = [], []
    step = RecordedStep(case)
    for term in step.losses(Batch(0, (case.settings["base_prompt"],))):
        index, branch = recorded[term.branch]
        timestep = case.timesteps[-1]
        if abs(timestep - branch["timestep_passed"]) > 1e-6:
            raise DirectAlignError(
                f"branch {index}: the network gets timestep {timestep:.6f}, recorded is "
                f"{branch['timestep_passed']:.6f}"
            )
        term.value.backward()
        images.append(_worst(case.images[-1], case.tensors[f"branch{index}.image"]))
        losses.append(abs(term.value.item() - branch["loss"]))
    return Errors(max(images), max(losses), *_gradient_errors(case))


def _gradient_errors(case: Case) -> tuple[float, float, float, str]:
    """Relative errors of the whole gradient and of its norm, worst relative error of one tensor and
    its name."""
    ours = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in case.denoiser.named_parameters()
    }
    theirs = {
        name: case.tensors.get(f"grad.{name}", torch.zeros_like(grad))
        for name, grad in ours.items()
    }
    for name, grad in ours.items():
        if theirs[name].shape != grad.shape:
            shapes = f"{tuple(theirs[name].shape)}, the parameter has {tuple(grad.shape)}"
            raise DirectAlignError(f"grad.{name} has shape {shapes}")
    difference = {name: (ours[name] - theirs[name]).double().norm() for name in ours}
    size = {name: theirs[name].double().norm() for name in ours}
    whole = torch.stack([*difference.values()]).norm() / torch.stack([*size.values()]).norm()
    norm = nn.utils.get_total_norm([*ours.values()]).item() / case.settings["grad_norm"] - 1
    own = {name: (difference[name] / size[name]).item() for name in ours if size[name] > 0}
    worst = max(own, key=lambda name: own[name])
    return whole.item(), abs(norm), own[worst], worst


def _worst(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        shapes = f"{tuple(theirs.shape)}, the replayed one {tuple(ours.shape)}"
        raise DirectAlignError(f"the recorded image has shape {shapes}")
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
    encoder = ("encoder.", "quant_conv.")
    wrong = [name for name in missing if not name.startswith(encoder)] + unexpected
    if wrong:
        raise DirectAlignError(f"weights do not fit the config, first {prefix}{wrong[0]}")
    return model


def _attempt(what: str, action: Callable[[], Result]) -> Result:
    """Run `action`; whatever a broken case makes it raise becomes one line that names `what`."""
    try:
        return action()
    except KeyError as error:
        raise DirectAlignError(f"{what}: {error.args[0]} is not recorded") from error
    except DirectAlignError as error:
        raise DirectAlignError(f"{what}: {error}") from error
    except (OSError, ValueError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DirectAlignError(f"{what}: {reason}") from error


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
        figures = "  ".join(f"{name} {getattr(errors, name):.1e}" for name in BOUNDS)
        worst = f"(worst tensor {errors.tensor_gradient:.1e} {errors.tensor})"
        print(f"{path.name:<24} {figures}  {worst}  {verdict}")
        exit_code = max(exit_code, int(not errors.within_bounds()))
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
