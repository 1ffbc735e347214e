"""One injection against back-propagation through K steps of sampling: seconds, and what becomes of the gradient on its way.

Nothing is trained. The same absolute reward is differentiated at the same weights on the same batches by Direct-Align
(arXiv 2509.06942) and by the last K steps of the rollout (DRaFT-K, arXiv 2309.17400; K = all is AlignProp's full chain).
All of them take turns within one process, so that the ratio of their times holds on a machine that does other work too.
"""

from __future__ import annotations

from ..config import SRPOConfig as Settings
from ..config import DRaFTConfig as ChainSettings
from ..config import RunConfig
from ..config.load import load_run
from ..data.prompts import train_captions
from ..diffusion.sampling import start_rollout, sampling_step
from ..interfaces import Method
from ..methods.draft import DRaFT
from ..methods.objective import build_objective
from ..methods.srpo import SRPO
from ..models import load_model, trainable
from ..rewards import load_reward
from ..training.step import NFECounter
from ..types import Batch
from .comparing.statistics import SeedInterval, mean_interval, ratio_interval
from .running.pieces import piece
from .running.records import Row
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
import torch
from jaxtyping import Float
from torch import Tensor, nn


MODELS = {"flux": ("FLUX", "world_direct_align"), "sd": ("SD", "world_sd_direct_align")}
INJECTION = 0
"""The `grad_steps` of Direct-Align in the rows: its gradient goes through no step of sampling."""


@dataclass(frozen=True)
class Size:
    """What is measured: models, lengths of the rollout, and the batches at each."""

    models: tuple[str, ...]
    rollouts: tuple[int, ...]
    batches: int
    batch_size: int


FULL = Size(("flux", "sd"), (8, 25), 4, 8)
QUICK = Size(("flux",), (2,), 2, 2)


def measure(study: str, out: Path, quick: bool, recipes: Path) -> list[Row]:
    """Rows of kind "depth", one per model, rollout and K, and of kind "state", one per state of a rollout; pieces that are there are kept.

    depth: `seconds` of an update without its optimiser step, `ratio` to Direct-Align's, `grad_norm` of all weights, its `spread`
    (standard deviation over mean), `agreement` (mean cosine between the gradients of two batches), samples through the network.
    state: `norm` of the reward's gradient at the state that lies `depth` network calls before the image, and its `growth` over that
    at the image. Numbers with an interval over batches have `_low` and `_high` beside them.
    """
    size = QUICK if quick else FULL
    rows: list[Row] = []
    for model in size.models:
        for length in size.rollouts:
            overrides = [f"rollout.num_sampling_steps={length}", f"data.batch_size={size.batch_size}"]
            run = load_run(recipes / f"{MODELS[model][1]}.yaml", overrides)
            rows += piece(out, f"depth-{model}-{length}", run, lambda run=run, model=model: list(_rows(study, model, Bench(run), size.batches)))
    return rows


def depths(num_sampling_steps: int) -> list[int]:
    """The K that are tried: powers of two below the length of the rollout, and the whole of it."""
    return [*(2**power for power in range(num_sampling_steps.bit_length()) if 2**power < num_sampling_steps), num_sampling_steps]


class Bench:
    """A model and a reward, and every way to differentiate one through the other.

    `run` is a recipe of plain Direct-Align with one branch; the chains take its words.
    """

    def __init__(self, run: RunConfig) -> None:
        assert isinstance(run.method, Settings) and run.method.form == "absolute" and run.method.branches == "denoise", run.method
        self.run, self.family = run, load_model(run.model, "cpu", run.seed)
        self.weights = list(trainable(self.family).values())
        self.calls = NFECounter(self.family.denoiser)
        reward = load_reward(run.reward, "cpu")
        self.objective = build_objective(reward, run.method)
        self.ways: dict[int, Method] = {INJECTION: SRPO(self.family, reward, run.method, run.rollout)}
        for grad_steps in depths(run.rollout.num_sampling_steps):
            settings = ChainSettings(grad_steps=grad_steps, words=run.method.words, image_mapping=run.method.image_mapping)
            self.ways[grad_steps] = DRaFT(self.family, reward, settings, run.rollout)

    def batch(self, step: int) -> Batch:
        """The prompts of one update; `step` draws its noise too."""
        prompts, size = train_captions(), self.run.data.batch_size
        return Batch(sampling_step, tuple(prompts[(sampling_step * size + place) % len(prompts)] for place in range(size)), None, self.run.seed)

    def gradient(self, grad_steps: int, batch: Batch) -> tuple[float, Float[Tensor, " weights"]]:
        """Seconds of the losses and their backward passes, and the whole gradient."""
        self.family.denoiser.zero_grad(set_to_none=True)
        began = time.perf_counter()
        for loss in self.ways[grad_steps].losses(batch):
            loss.value.backward()
        seconds = time.perf_counter() - began
        return seconds, nn.utils.parameters_to_vector([torch.zeros_like(each) if each.grad is None else each.grad for each in self.weights])

    def at_states(self, batch: Batch) -> tuple[Float[Tensor, " levels"], Float[Tensor, " levels"]]:
        """Levels of a rollout's states, and the norm of each sample's reward gradient there, mean over the batch; [-1] is the image."""
        begun = start_rollout(self.family, self.run.rollout, batch)
        states = [begun.noise.requires_grad_()]
        for sigma_from, sigma_to in pairwise(begun.sigmas):
            states.append(sampling_step(self.family, begun.cond, states[-1], sigma_from.expand(len(begun.noise)), sigma_to.expand(len(begun.noise))))
        reward = self.objective(self.family.decode(states[-1]), batch).reward.sum()
        gradients = torch.autograd.grad(reward, states)
        return begun.sigmas, torch.stack([each.flatten(1).norm(dim=1).mean() for each in gradients]).double()


def _rows(study: str, model: str, bench: Bench, batches: int) -> Iterator[Row]:
    length, seed = bench.run.rollout.num_sampling_steps, bench.run.seed
    named = {"study": study, "seed": seed, "model": model, "num_sampling_steps": length, "batches": batches}
    for grad_steps, found in _gradients(bench, batches).items():
        way = "Direct-Align" if grad_steps == INJECTION else f"{grad_steps} of {length} steps"
        label = {"arm": f"{model}-{length}-{grad_steps}", "title": f"{MODELS[model][0]}, {way}"}
        yield {**named, **label, "kind": "depth", "grad_steps": grad_steps, **found}
    for place, found in enumerate(_states(bench, batches)):
        label = {"arm": f"{model}-{length}-state", "title": f"{MODELS[model][0]}, the states of {length} steps"}
        yield {**named, **label, "kind": "state", "depth": length - place, **found}


def _gradients(bench: Bench, batches: int) -> dict[int, Row]:
    """What `measure` says of every K, the ways in turn on each batch after a first batch that is not counted."""
    seconds, norms = defaultdict[int, list[float]](list), defaultdict[int, list[float]](list)
    directions = defaultdict[int, Tensor](lambda: torch.zeros(()))
    calls: dict[int, tuple[int, int]] = {}
    for count in range(batches + 1):
        for grad_steps in bench.ways:
            bench.calls.take()
            took, gradient = bench.gradient(grad_steps, bench.batch(count))
            calls[grad_steps] = bench.calls.take()
            if count > 0:
                norm = float(gradient.norm())
                seconds[grad_steps].append(took)
                norms[grad_steps].append(norm)
                directions[grad_steps] = directions[grad_steps] + gradient / norm
    return {
        grad_steps: {
            "seconds": sum(each) / batches,
            **flat("ratio", ratio_interval(each, seconds[INJECTION])),
            **flat("grad_norm", mean_interval(norms[grad_steps])),
            "spread": spread(norms[grad_steps]),
            "agreement": agreement(directions[grad_steps], batches),
            "forward_calls": calls[grad_steps][0],
            "backward_calls": calls[grad_steps][1],
        }
        for grad_steps, each in seconds.items()
    }


def _states(bench: Bench, batches: int) -> list[Row]:
    """The rows of a rollout's states, from pure noise to the image."""
    found = [bench.at_states(bench.batch(count)) for count in range(1, batches + 1)]
    sigmas, norms = found[0][0].tolist(), torch.stack([norms for _, norms in found], 1).tolist()
    growths = [ratio_interval(each, norms[-1]) for each in norms]
    return [{"sigma": sigma, **flat("norm", mean_interval(each)), **flat("growth", growth)} for sigma, each, growth in zip(sigmas, norms, growths, strict=True)]


def spread(norms: list[float]) -> float:
    """Standard deviation over mean."""
    mean = math.fsum(norms) / len(norms)
    return math.sqrt(math.fsum((norm - mean) ** 2 for norm in norms) / max(1, len(norms) - 1)) / mean


def agreement(directions: Float[Tensor, " weights"], count: int) -> float:
    """Mean cosine between two of `count` > 1 vectors, from the sum of their directions: (|sum|² − n) / (n·(n − 1))."""
    return float((directions.double().square().sum() - count) / (count * (count - 1)))


# --- intervals in rows ------------------------------------------------------------------------------------------------


def flat(name: str, interval: SeedInterval) -> Row:
    """An interval as three numbers of a row."""
    return {name: interval["value"], f"{name}_low": interval["low"], f"{name}_high": interval["high"]}


def interval(row: Mapping[str, object], name: str) -> dict[str, object]:
    """The interval that `flat` put into a row; n counts batches."""
    return {"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"], "n": row["batches"]}
