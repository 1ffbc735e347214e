"""A model, method and evaluator of a few numbers each: a whole run takes a fraction of a second.

The method draws from every kind of random state, has a state of its own and reads its batch, so a
resume that restores any of them wrongly ends with other weights.
"""

import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from directalign import config
from directalign.diffusion.rng import draw_rows, generator_for
from directalign.io import atomic
from directalign.training import run_folder, run_log
from directalign.training.data import open_data
from directalign.training.distributed import TorchProcessGroup
from directalign.training.live_page import LivePage
from directalign.training.run import InMemory, Loaded, train_loaded
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
        named = self.denoiser.named_parameters()
        trained = {name: p.detach().clone() for name, p in named if p.requires_grad}
        save_file(trained, folder / "lora.safetensors")


class StubMethod:
    """Noisy regression in two branches.

    `spoil(loss, step, branch)` may change a loss; `on_step(step)` is called for each batch.
    """

    def __init__(
        self,
        model: StubModel,
        spoil: Callable[[Tensor, int, str], Tensor] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        self.model, self.spoil, self.on_step = model, spoil, on_step
        self.reference = torch.zeros(())

    def losses(self, batch: Batch) -> Iterator[LossTerm]:
        if self.on_step is not None:
            self.on_step(batch.step)
        generator = generator_for(batch.seed, batch.step)
        known = draw_rows(batch, lambda total: torch.randn(total, SIZE, generator=generator))
        # not Python's own generator: beartype draws from it while tests run
        jitter = torch.randn(SIZE) + float(np.random.rand())
        wanted = torch.tensor([[float(sum(map(ord, prompt)) % 7)] for prompt in batch.prompts])
        for branch in ("denoise", "inversion"):
            score = -(self.model.denoiser(known) - wanted - 0.1 * jitter).square().mean(1)
            self.reference = 0.9 * self.reference + 0.1 * score.detach().mean()
            value = (score - self.reference).square().mean()
            value = self.spoil(value, batch.step, branch) if self.spoil else value
            sigma = known[:, 0].sigmoid().double()
            levels = {"sigma": sigma, "gain": sigma / 3, "reward": score.detach()}
            metrics = {"reward": float(score.detach().mean())}
            yield LossTerm(value, branch, metrics, {k: v.tolist() for k, v in levels.items()})

    def state_dict(self) -> Mapping[str, Any]:
        return {"reference": self.reference}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reference = state["reference"]


class StubEvaluator:
    """Measures the sum of the weights, and changes every random state."""

    def __init__(self, model: StubModel) -> None:
        self.model = model

    def prepare(self) -> None:
        torch.randn(3)

    def measure(self, num_samples: int) -> dict[str, Any]:
        torch.randn(3), random.random(), np.random.rand()
        total = sum(float(p.detach().sum()) for p in self.model.denoiser.parameters())
        rate = {"value": 0.5, "low": 0.1, "high": 0.9, "n": num_samples}
        return {"photo_rate": rate, "color_drift": total, "seconds": 0.01}


def make_run(prompts: Path, **train: Any) -> config.RunConfig:
    """A recipe for the stubs, 6 steps by default; `batch_size` and `tune` go to their sections."""
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    batch_size, tune = train.pop("batch_size", 2), train.pop("tune", "full")
    settings = {"num_steps": 6, "learning_rate": 0.05, "max_grad_norm": 1.0, "save_every": 2}
    given = {
        "name": "stub",
        "model": {"architecture": "flux", "path": "nowhere", "tune": tune},
        "reward": {"name": "pixels", "statistic": "brightness"},
        "method": {"form": "absolute"},
        "rollout": {"num_inference_steps": 2},
        "data": {"prompts": str(prompts), "batch_size": batch_size},
        "train": {**settings, "sample_every": 3, **train},
        "evaluate": {"every": 2, "num_samples": 4, "num_samples_during": 3},
    }
    return config.RunConfig.model_validate(given)


def start(
    run: config.RunConfig,
    out: Path,
    resume: bool = False,
    evaluator: Callable[[StubModel], Any] = StubEvaluator,
    page: LivePage | None = None,
    **method: Any,
) -> StubModel:
    """A whole stub run; returns the trained model. `method`: arguments of `StubMethod`."""
    run_folder.check(out, resume)
    atomic.make_folder(out)
    model, group = StubModel(full=run.model.tune == "full"), TorchProcessGroup()
    data = open_data(run, model, group)
    loaded = Loaded(model, StubMethod(model, **method), evaluator(model), data)
    given = InMemory(update_flops=1e9)
    train_loaded(run, out, resume, group, loaded, given=given, page=page)
    return model


def nan_at(step: int, branch: str = "denoise") -> Callable[[Tensor, int, str], Tensor]:
    """`spoil` that makes one loss nan."""
    return lambda value, now, at: value * float("nan") if (now, at) == (step, branch) else value


def stop_at(step: int) -> Callable[[int], None]:
    """`on_step` that sends SIGTERM once, at the first batch of a step."""
    seen: list[int] = []

    def watch(current: int) -> None:
        seen.append(current)
        if current == step and seen.count(step) == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    return watch


def steps(out: Path, event: str) -> list[int]:
    return [record["step"] for record in run_log.read(out) if record["event"] == event]
