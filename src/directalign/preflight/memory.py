"""How much memory a run takes on its device, phase by phase, estimated without weights, network or GPU.

encode   prompts through the text encoders          rollout  sampling without gradient, real images through the VAE encoder
train    the losses with their backward passes      update   the optimizer's step
measure  sample grids and measurements, held-out rewards too, `evaluate.batch_size` images at once

Weights, gradients and optimizer states are counted. Activations are traced: the real model, reward and
method classes, built on fake tensors (`meta_models`), run one whole update and one measurement under a
memory tracker (`activation_memory`). What a GPU and its allocator add is an allowance. A part that
cannot be traced is named in `warnings` as not estimated; a run may start all the same.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal, get_args

import torch
from torch import nn

from .. import config
from ..diffusion.sampling import sample, start_rollout
from ..interfaces import Reward
from ..methods import load_method
from ..models import model_class
from ..rewards import reward_class
from ..rewards.mixture import Member, MixReward, key_of
from ..training.data import accumulation
from ..types import Batch, DirectAlignError, Images, PerSample
from .activation_memory import MemoryTracker, fake, make_fake, replay_repeated
from .meta_models import MetaModel, RewardConfigs, meta_model, on_meta

Phase = Literal["encode", "rollout", "train", "update", "measure"]
PHASES: tuple[Phase, ...] = get_args(Phase)
GIB = 2**30
CUDA_CONTEXT = GIB
"""CUDA's context, its kernels and the workspaces of cuBLAS and cuDNN: .5 to 1.2 GiB by GPU and driver."""
FRAGMENTATION = 0.08
"""Share of the activations that the allocator holds in pieces too small to use."""
BYTES = {"float32": 4, "bfloat16": 2}
OPTIMIZER_STATE = {"adamw": 8.0, "adamw8bit": 2 * (1 + 4 / 256)}
"""Bytes of the two moments of each trained number; in 8 bits with a float32 scale for every 256."""
UPDATE_8BIT = 45
"""Bytes for each number of the weight whose 8-bit moments are being updated."""
SAMPLE_GRID = 8
"""Images of a sample grid, where the recipe names no prompts of its own."""
PROMPT = "a photograph of a harbour town at dusk, " * 6


@dataclass(frozen=True)
class Place:
    """A device of `capacity` bytes, and how many ranks share the run; `is_here` where it is this machine's."""

    name: str
    capacity: int
    is_gpu: bool
    ranks: int = 1
    is_here: bool = True


def this_machine(ranks: int | None = None) -> Place:
    """The first GPU, else the CPU; ranks as torchrun announces them, unless given."""
    ranks = ranks or int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Place(properties.name, properties.total_memory, True, ranks)
    return Place("the CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), False, ranks)


def a_gpu(gibibytes: float | int, ranks: int | None = None) -> Place:
    """A GPU of that many GiB, as cards are named: 24 for a 24 GB card."""
    ranks = ranks or int(os.environ.get("WORLD_SIZE", "1"))
    return Place(f"a GPU of {gibibytes:g} GB", int(gibibytes * GIB), True, ranks, is_here=False)


def binary(size: float | int) -> str:
    """Bytes in the units that GPUs are counted in: 5.4 GiB, 310 MiB, 12 KiB."""
    for factor, unit, digits in ((GIB, "GiB", 1), (2**20, "MiB", 0)):
        if size >= factor:
            return f"{size / factor:,.{digits}f} {unit}"
    return f"{size / 1024:,.0f} KiB"


@dataclass(frozen=True)
class Row:
    """One line: bytes by phase, none where the part is absent. `kind` says how sure it is."""

    part: str
    note: str
    sizes: Mapping[str, int]
    kind: Literal["counted", "traced", "allowance"] = "counted"


@dataclass(frozen=True)
class Estimate:
    """What a run needs on its device. `trained` counts the trained numbers of the whole network, over all ranks."""

    rows: tuple[Row, ...]
    trained: int
    place: Place
    state: str
    warnings: tuple[str, ...]

    def at(self, phase: str, kinds: tuple[str, ...] = ("counted", "traced", "allowance")) -> int:
        """Bytes in one phase, of these kinds."""
        return sum(row.sizes.get(phase, 0) for row in self.rows if row.kind in kinds)

    @property
    def busiest(self) -> str:
        """The phase with the peak."""
        return max(PHASES, key=self.at)

    @property
    def peak(self) -> int:
        """Bytes, allowances included: what the device must have."""
        return self.at(self.busiest)

    @property
    def allocated(self) -> int:
        """Bytes of tensors at the peak: what torch.cuda.max_memory_allocated will say."""
        return max(self.at(phase, ("counted", "traced")) for phase in PHASES)

    @property
    def counted(self) -> int:
        """Bytes that are certain at the peak of what is certain: weights, gradients, optimizer states."""
        return max(self.at(phase, ("counted",)) for phase in PHASES)

    @property
    def fits(self) -> bool:
        return self.peak <= self.place.capacity


def estimate(run: config.RunConfig, place: Place) -> Estimate:
    """Memory of one rank at `place`.

    Raises DirectAlignError for a model or reward whose files are missing or of another architecture.
    """
    model = run.model
    if (
        is_sharded(run, place) and model.tune == "full"
    ):  # gathered weights have the dtype of the forward pass
        model = model.model_copy(update={"trained_dtype": model.dtype})
    found = meta_model(model, place.is_gpu)
    judges = MetaRewards(run)
    traced = trace(run, found, judges)
    rows = [
        row
        for row in _held(run, place, found, judges, traced.held_by_method)
        if any(row.sizes.values())
    ]
    rows += judges.not_estimated
    if traced.peaks:
        rows.append(Row("activations", traced.note, traced.peaks, "traced"))
    if place.is_gpu:
        rows.append(
            Row(
                "CUDA",
                "context, kernels, workspaces",
                dict.fromkeys(PHASES, CUDA_CONTEXT),
                "allowance",
            )
        )
        fragments = {phase: int(FRAGMENTATION * size) for phase, size in traced.peaks.items()}
        rows.append(
            Row("fragments", f"{FRAGMENTATION:.0%} of the activations", fragments, "allowance")
        )
    trained = sum(parameter.numel() for parameter in found.trained.values())
    return Estimate(
        tuple(rows),
        trained,
        place,
        found.folder.state,
        (*found.folder.warnings, *judges.warnings, *traced.warnings),
    )


def is_sharded(run: config.RunConfig, place: Place) -> bool:
    """Whether the ranks split the network (FSDP2)."""
    asked = run.train.parallel
    return place.ranks > 1 and (
        asked == "sharded" or (asked == "auto" and run.model.tune == "full")
    )


# --- rewards ------------------------------------------------------------------------------------------


class UntracedReward:
    """In the place of a reward that cannot be built without its weights or the user's code: it takes no memory."""

    def __init__(self, settings: Any) -> None:
        self.name = settings.name
        self.reads_prompt = self.differentiable = True

    def encode(self, images: Images) -> Images:
        return images

    def score(self, features: Images, prompts: Sequence[str]) -> PerSample:
        del prompts
        return features.mean((1, 2, 3))


class MetaRewards:
    """The rewards of a recipe on fake tensors: `trained_on`, and the held-out ones by label."""

    def __init__(self, run: config.RunConfig) -> None:
        self.not_estimated: list[Row] = []
        self._configs, self.modules = RewardConfigs(), dict[str, tuple[str, list[nn.Module]]]()
        if isinstance(run.reward, config.MixtureConfig):
            made = [
                Member(each, self._build(each.reward, key_of(place), f"reward {each.label}"))
                for place, each in enumerate(run.reward.members)
            ]
            self.trained_on: Reward = MixReward(made, run.reward)
        else:
            self.trained_on = self._build(run.reward, "reward", "reward")
        self.held_out = {
            label: self._build(each, f"evaluate.rewards.{label}", f"held out {label}")
            for label, each in run.evaluate.rewards.items()
        }

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._configs.warnings))

    def _build(self, settings: config.SingleRewardConfig, key: str, label: str) -> Reward:
        kind = reward_class(settings.name)
        try:
            with on_meta():
                reward = kind.meta(settings, key, self._configs)
        except DirectAlignError:
            raise
        except Exception as error:  # whatever a library raises on a network without data
            return self._untraced(settings, key, label, first_line(error))
        if reward is None:
            return self._untraced(settings, key, label, "has no class method `meta`")
        modules = [each for each in vars(reward).values() if isinstance(each, nn.Module)]
        for module in modules:
            make_fake(module.requires_grad_(False).eval())
            replay_repeated(module)
        if modules:
            self.modules[label] = settings.name, modules
        return reward

    def _untraced(self, settings: Any, key: str, label: str, reason: str) -> Reward:
        self.not_estimated.append(Row(label, f"not estimated: {settings.name} {reason}", {}))
        kind = reward_class(settings.name)
        if getattr(settings, "differentiable", kind.differentiable):
            self._configs.warnings.append(f"{key}: memory not estimated: {settings.name} {reason}")
        return UntracedReward(settings)

    def rows(self, phases: Sequence[str]) -> Iterator[Row]:
        """The weights of every reward that has some."""
        for label, (name, modules) in self.modules.items():
            weights = [parameter for module in modules for parameter in module.parameters()]
            size, dtype = (
                sum(p.numel() * p.itemsize for p in weights),
                str(weights[0].dtype).removeprefix("torch."),
            )
            yield Row(
                label,
                f"{name}, {_count(sum(p.numel() for p in weights))}, {dtype}, frozen",
                dict.fromkeys(phases, size),
            )


# --- activations --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traced:
    """Peaks of activations by phase, bytes of tensors that the method holds throughout, and what a training step keeps."""

    peaks: Mapping[str, int]
    held_by_method: int
    note: str
    warnings: tuple[str, ...] = ()


def trace(run: config.RunConfig, model: MetaModel, judges: MetaRewards) -> Traced:
    """Run one update of each kind and one measurement on fake tensors.

    Where that fails, again without the rewards, then not at all; `warnings` say what is missing.
    """
    try:
        return _traced(run, model, judges.trained_on, list(judges.held_out.values()))
    except DirectAlignError:
        raise
    except (
        Exception
    ) as error:  # whatever a library's or a user's code raises on tensors without data
        reason = first_line(error)
    try:
        traced = _traced(run, model, UntracedReward(SimpleNamespace(name=run.reward.name)), [])
        return replace(traced, warnings=(f"reward: activations not estimated: {reason}",))
    except Exception as error:
        return Traced({}, 0, "", (f"memory: activations not estimated: {first_line(error)}",))


def first_line(error: Exception) -> str:
    """Kind and first line of an error, for a warning."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]


def _traced(
    run: config.RunConfig, model: MetaModel, reward: Reward, held_out: Sequence[Reward]
) -> Traced:
    tracker, kept = MemoryTracker(), 0
    with tracker:
        tracker.phase = "method"
        method = load_method(run, model.model, reward)
        held = tracker.now
        for batch in _batches(run, model):
            with _encoding_apart(run, model, tracker):
                kept = max(kept, _update(method, batch, model, tracker) - held)
        tracker.phase = "measure"
        with torch.no_grad(), _encoding_apart(run, model, tracker):
            _measurement(run, model, [reward, *held_out])
    peaks = {phase: max(0, tracker.peaks[phase] - held) for phase in PHASES if phase != "update"}
    note = f"train: {binary(kept)} kept for the backward pass"
    return Traced({**peaks, "update": 0}, held, note)


def _batches(run: config.RunConfig, model: MetaModel) -> Iterator[Batch]:
    """A batch of rollouts and a batch of real images, as far as the recipe has them, in the largest size."""
    prompts, size = (PROMPT,) * run.data.batch_size, image_size(run, model)
    if run.data.prompts is not None:
        yield Batch(0, prompts, image_size=max(run.rollout.sizes or [size], key=math.prod))
    if run.data.images is not None:
        size = max(run.data.buckets or [size], key=math.prod)
        yield Batch(0, prompts, fake((len(prompts), 3, *size), torch.float32), image_size=size)


def image_size(run: config.RunConfig, model: MetaModel) -> tuple[int, int]:
    """(height, width) in pixels: the recipe's, else the size the checkpoint was made for."""
    default = model.model.default_size
    return run.rollout.height or default[0], run.rollout.width or default[1]


class _encoding_apart:
    """Inside, encoding prompts is a phase of its own, whenever the method asks for it."""

    def __init__(self, run: config.RunConfig, model: MetaModel, tracker: MemoryTracker) -> None:
        self.model, self.tracker = model.model, tracker
        self.one_by_one = run.model.text_encoders == "free"

    def __enter__(self) -> None:
        encode = self.model.encode_prompt

        def apart(prompts: Sequence[str]) -> Any:
            before, self.tracker.phase = self.tracker.phase, "encode"
            if self.one_by_one:  # stored on disk in advance
                encode(prompts[:1])
                self.tracker.phase = "cache"
            try:
                return encode(prompts)
            finally:
                self.tracker.phase = before

        vars(self.model)["encode_prompt"] = apart

    def __exit__(self, *_: Any) -> None:
        del vars(self.model)["encode_prompt"]


def _update(method: Any, batch: Batch, model: MetaModel, tracker: MemoryTracker) -> int:
    """All losses of a batch, each with its backward pass; the most bytes alive between the two."""
    kept = 0

    def training(*_: Any) -> None:
        if torch.is_grad_enabled():
            tracker.phase = "train"

    hook = model.model.denoiser.register_forward_pre_hook(training)
    tracker.phase = "rollout"
    try:
        for loss in method.losses(batch):
            tracker.phase, kept = "train", max(kept, tracker.now)
            loss.value.backward()
            del loss
    finally:
        hook.remove()
    return kept


def _measurement(run: config.RunConfig, model: MetaModel, asked: Sequence[Reward]) -> None:
    """Sample as many images as are measured at once, decode them and score them with every reward."""
    grid = len(run.train.sample_prompts) if run.train.sample_prompts is not None else SAMPLE_GRID
    count = min(run.evaluate.batch_size, max(grid, run.evaluate.num_samples))
    batch = Batch(0, (PROMPT,) * count, image_size=image_size(run, model))
    start = start_rollout(model.model, run.rollout, batch)
    images = model.model.decode(sample(model.model, start.cond, start.noise, start.sigmas)).clamp(
        0, 1
    )
    for reward in asked:
        reward.score(reward.encode(images), batch.prompts)


# --- weights and optimizer ----------------------------------------------------------------------------


def _held(
    run: config.RunConfig, place: Place, model: MetaModel, judges: MetaRewards, by_method: int
) -> Iterator[Row]:
    """Everything that stays for a phase or longer, as one rank holds it."""
    frees, part = run.model.text_encoders == "free", model.model.part
    settled = (
        PHASES[1:] if frees and place.is_gpu else PHASES
    )  # a GPU holds encoders that are freed before the rest
    split = place.ranks if is_sharded(run, place) else 1
    share = f", 1/{split} on this rank" if split > 1 else ""
    if run.model.tune == "lora":
        bits = f" in {run.model.quantization[0]} bits" if run.model.quantization else ""
        note = f"{_count(model.count(part))}{bits}, frozen{share}"
        yield Row(part, note, dict.fromkeys(settled, model.frozen_bytes // split))
    vae = sum(p.numel() * p.itemsize for p in model.parts["vae"].parameters())
    yield Row("vae", f"{_count(model.count('vae'))}, frozen", dict.fromkeys(PHASES, vae))
    yield from judges.rows(settled)
    yield from _trained(run, place, model, by_method, settled, split)
    where = {
        "keep": "kept on the device",
        "offload": "on the device while they encode",
        "free": "dropped after the first prompts",
    }
    phases = PHASES if run.model.text_encoders == "keep" else PHASES[:1]
    for name in model_class(run.model.architecture).text_parts:
        if name in model.parts:
            count = model.count(name)
            note = f"{_count(count)}, {where[run.model.text_encoders]}"
            yield Row(name, note, dict.fromkeys(phases, count * BYTES[run.model.dtype]))
    if split > 1:
        width, full = BYTES[run.model.dtype], run.model.tune == "full"
        calls, train = (
            gathered_bytes(model.shapes, width, with_gradient) for with_gradient in (False, full)
        )
        yield Row(
            "gathered blocks",
            "weights of two blocks and what is around them",
            dict.fromkeys(("rollout", "measure"), calls),
        )
        yield Row(
            "gathered blocks, training", "with a block's gradient" if full else "", {"train": train}
        )


def _trained(
    run: config.RunConfig,
    place: Place,
    model: MetaModel,
    by_method: int,
    settled: Sequence[str],
    split: int,
) -> Iterator[Row]:
    """What is trained and what optimizer and method keep of it; with `free`, encoding comes before all of it."""
    counts = [parameter.numel() for parameter in model.trained.values()]
    full = run.model.tune == "full"
    dtype = run.model.trained_dtype if full else "float32"
    numbers, later = (
        sum(counts) // split,
        PHASES[1:] if run.model.text_encoders == "free" else PHASES,
    )
    size, share = numbers * BYTES[dtype], f", 1/{split} on this rank" if split > 1 else ""
    what = f"{model.model.part if full else 'adapters'}, trained"
    yield Row(what, f"{_count(sum(counts))}, {dtype}{share}", dict.fromkeys(settled, size))
    accumulates = accumulation(run, place.ranks) > 1  # then gradients outlive rollouts
    phases = (
        ("rollout", "train", "update", "measure") if accumulates else ("train", "update", "measure")
    )
    yield Row("gradients", dtype, dict.fromkeys(phases, size))
    yield Row(
        "moments",
        f"of {run.train.optimizer}",
        dict.fromkeys(later, int(numbers * OPTIMIZER_STATE[run.train.optimizer])),
    )
    if run.train.ema_decay is not None:
        yield Row("average of weights", dtype, dict.fromkeys(later, size))
    weights = sum(parameter.numel() * parameter.itemsize for parameter in model.trained.values())
    if by_method:  # in units of the weights, whose dtype a sharded trace changes
        note = f"held by method {run.method.name}"
        yield Row("frozen copy of weights", note, dict.fromkeys(later, by_method * size // weights))
    if run.train.optimizer == "adamw8bit":
        yield Row(
            "largest weight",
            "its moments unpacked and put back",
            {"update": UPDATE_8BIT * max(counts) // split},
        )
    elif place.is_gpu:
        yield Row("roots of moments", "made for all weights at once", {"update": size})


def gathered_bytes(shapes: Mapping[str, Sequence[int]], width: int, with_gradient: bool) -> int:
    """Bytes a rank holds of a sharded network at the busiest moment, in `width` bytes a number.

    What lies outside the blocks is whole throughout; of the blocks one is in use and the next on its way; a block's gradient
    is whole too, and once more in float32 while it is summed over the ranks.
    """
    blocks: dict[str, int] = {}
    for name, shape in shapes.items():
        pieces = name.split(".")
        number = next((place for place, piece in enumerate(pieces) if piece.isdigit()), None)
        block = ".".join(pieces[: number + 1]) if number is not None else ""
        blocks[block] = blocks.get(block, 0) + math.prod(shape)
    around, largest = blocks.pop("", 0), max(blocks.values(), default=0)
    return (around + 2 * largest) * width + (
        largest * (width + BYTES["float32"]) if with_gradient else 0
    )


def _count(numbers: int) -> str:
    return f"{numbers / 1e9:,.2f} B" if numbers >= 1e9 else f"{numbers / 1e6:,.2f} M"
