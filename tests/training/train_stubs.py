"""A family, method and measurer of a few numbers each, so that a whole run takes a fraction of a second.

The method draws from every kind of random state, keeps a memory of its own and reads its batch, so a resume that gets any of
them wrong ends in other weights.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from directalign import config
from directalign.diffusion.rng import draw_rows, generator_for
from directalign.training.data import open_data
from directalign.training.distributed import TorchProcessGroup
from directalign.training import run_folder
from directalign.training.run import Loaded, train_loaded

from directalign.types import Batch, Conditioning, Images, Latents, LossTerm, PerSample

PROMPTS = [f"a thing of kind {index}" for index in range(11)]
SIZE = 4


class LowRank(nn.Module):
    """A frozen map with a trained update of rank 1, or a map trained whole."""

    def __init__(self, full: bool) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.eye(SIZE), requires_grad=full)
        if not full:
            self.down = nn.Parameter(torch.full((1, SIZE), 0.3))
            self.up = nn.Parameter(torch.zeros(SIZE, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.base + self.up @ self.down if hasattr(self, "up") else self.base)


class StubModel:
    """The image is the latent; `predict` maps its last axis."""

    path, prediction = "flow", "velocity"
    pipeline, part = "StubPipeline", "transformer"
    lora_targets: tuple[str, ...] = ("base",)
    default_size = (SIZE, SIZE)

    def __init__(self, full: bool = True) -> None:
        self.denoiser = LowRank(full)

    def encode_prompt(self, prompts: Any) -> Conditioning:
        return Conditioning(tuple(prompts), {})

    def encode_image(self, images: Images) -> Latents:
        return images

    def decode(self, x0: Latents) -> Images:
        return x0

    def predict(self, x_t: Latents, sigma: PerSample, cond: Conditioning) -> Latents:
        return self.denoiser(x_t)

    def sigmas(self, num_inference_steps: int, height: int, width: int) -> Tensor:
        return torch.linspace(1, 0, num_inference_steps + 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return 3, height, width

    def call_arguments(self, rollout: config.RolloutConfig) -> dict[str, object]:
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        trained = {
            name: p.detach().clone()
            for name, p in self.denoiser.named_parameters()
            if p.requires_grad
        }
        save_file(trained, folder / "lora.safetensors")


class StubMethod:
    """Two branches of a noisy regression; `spoil(step, branch)` may change a loss, `on_step` watches the start of each update."""

    def __init__(
        self,
        family: StubModel,
        spoil: Callable[[Tensor, int, str], Tensor] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self.model, self.spoil, self.on_step = family, spoil, on_step
        self.reference = torch.zeros(())

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        if self.on_step is not None:
            self.on_step(batch.step)
        known = draw_rows(
            batch,
            lambda total: torch.randn(total, SIZE, generator=generator_for(batch.seed, batch.step)),
        )
        jitter = torch.randn(SIZE) + float(
            np.random.rand()
        )  # not Python's own: the checks of annotations draw from that while tests run
        wanted = torch.tensor([[float(sum(map(ord, prompt)) % 7)] for prompt in batch.prompts])
        for branch in ("denoise", "inversion"):
            score = -(self.model.denoiser(known) - wanted - 0.1 * jitter).square().mean(1)
            self.reference = 0.9 * self.reference + 0.1 * score.detach().mean()
            value = (score - self.reference).square().mean()
            value = self.spoil(value, batch.step, branch) if self.spoil else value
            sigma = known[:, 0].sigmoid().double()
            levels = {
                "sigma": sigma,
                "gain": sigma / 3,
                "reward": score.detach(),
                "recovery_error": sigma / 5,
            }
            yield LossTerm(
                value,
                branch,
                {"reward": float(score.detach().mean())},
                {name: v.tolist() for name, v in levels.items()},
            )

    def state_dict(self) -> Mapping[str, Any]:
        return {"reference": self.reference}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reference = state["reference"]


class StubMeasurer:
    """Measures the sum of the weights, and disturbs every random state while at it."""

    def __init__(self, family: StubModel) -> None:
        self.model = family

    def prepare(self) -> None:
        torch.randn(3)

    def measure(self, num_samples: int) -> dict[str, Any]:
        torch.randn(3), random.random(), np.random.rand()
        total = sum(float(p.detach().sum()) for p in self.model.denoiser.parameters())
        return {
            "photo_rate": {"value": 0.5, "low": 0.1, "high": 0.9, "n": num_samples},
            "color_drift": total,
            "seconds": 0.01,
        }


def make_run(prompts: Path, **train: Any) -> config.RunConfig:
    """A recipe for the stubs: 6 updates unless told otherwise; `batch_size` and `tune` belong to their own sections."""
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    batch_size, tune = train.pop("batch_size", 2), train.pop("tune", "full")
    settings = {
        "num_steps": 6,
        "learning_rate": 0.05,
        "max_grad_norm": 1.0,
        "save_every": 2,
        "sample_every": 3,
        **train,
    }
    given = {
        "name": "stub",
        "model": {"architecture": "flux", "path": "nowhere", "tune": tune},
        "reward": {"name": "pixels", "statistic": "brightness"},
        "method": {"form": "absolute"},
        "rollout": {"num_inference_steps": 2},
        "data": {"prompts": str(prompts), "batch_size": batch_size},
        "train": settings,
        "evaluate": {"every": 2, "num_samples": 4, "num_samples_during": 3},
    }
    return config.RunConfig.model_validate(given)


def load(
    run: config.RunConfig, family: StubModel, ranks: TorchProcessGroup, **method: Any
) -> Loaded:
    """The stubs of a run, with its data."""
    return Loaded(
        family, StubMethod(family, **method), StubMeasurer(family), open_data(run, family, ranks)
    )


def start(
    run: config.RunConfig,
    out: Path,
    resume: bool = False,
    ranks: TorchProcessGroup | None = None,
    **method: Any,
) -> StubModel:
    """A whole stub run; the family it trained."""
    run_folder.check(out, resume)
    run_folder.make(out)
    family = StubModel(full=run.model.tune == "full")
    train_loaded(
        run,
        out,
        resume,
        ranks or TorchProcessGroup(),
        load(run, family, ranks or TorchProcessGroup(), **method),
    )
    return family
