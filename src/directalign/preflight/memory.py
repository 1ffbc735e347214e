"""Estimate the memory of a run on its device, phase by phase, without weights, network or GPU.

encode   prompts through the text encoders
rollout  sampling without gradient, real images through the VAE encoder
train    the losses with their backward passes
update   the step of the optimizer
measure  sample grids and evaluation, held-out rewards included, `evaluate.batch_size` images a time

Weights, gradients and optimizer states are counted. Activations are traced: the real model, reward
and method classes, built on fake tensors (`meta_models`), run one whole update and one evaluation
under a memory tracker (`activation_memory`). What a GPU and its allocator add is an allowance. A
part that cannot be traced is "not estimated" and named in `warnings`; the run may start.
"""

import math
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import psutil
import torch
from torch import nn

from .. import config
from ..diffusion.sampling import sample, start_rollout
from ..interfaces import Reward
from ..methods import load_method
from ..methods.ceiling import unmeasured
from ..models import model_class
from ..models.lora import lora_file
from ..rewards import reward_class
from ..rewards.common import image_features
from ..rewards.mixture import Member, MixReward, key_of
from ..training.data import accumulation, updates_per_rollout
from ..training.distributed import TorchProcessGroup, is_sharded_run, shards_of
from ..types import Batch, DirectAlignError, Images, Latents, PerSample, Sources
from .activation_memory import MemoryTracker, pass_repeated
from .cost import BYTES, PARTS, Work
from .fake_tensors import fake, make_fake
from .meta_models import MetaModel, RewardConfigs, meta_model, on_meta

Phase = Literal["encode", "rollout", "train", "update", "measure"]
PHASES: tuple[Phase, ...] = get_args(Phase)
Kind = Literal["counted", "traced", "allowance"]
GIB, NODE = 2**30, 8
CUDA_CONTEXT = GIB
"""CUDA's context, kernels, and workspaces of cuBLAS and cuDNN: .5 to 1.2 GiB by GPU and driver."""
FRAGMENTATION = 0.08
"""Share of the activations that the allocator holds in pieces too small to use."""
OPTIMIZER_STATE = {"adamw": 8.0, "adamw8bit": 2 * (1 + 4 / 256)}
"""Bytes of the moments per trained number; in 8 bits with a float32 scale for every 256."""
UPDATE_8BIT = 45
"""Bytes per number of the weight whose 8-bit moments are being updated."""
SAMPLE_GRID = 8
"""Images of a sample grid if `train.sample_prompts` is not set."""
PROMPT = "a photograph of a harbour town at dusk, " * 6


@dataclass(frozen=True)
class Place:
    """A device of `capacity` bytes and the number of ranks; `is_here`: it is this machine's."""

    name: str
    capacity: int
    is_gpu: bool
    ranks: int = 1
    is_here: bool = True
    per_node: int = 0

    @property
    def group(self) -> TorchProcessGroup:
        """The processes, of which each node has `per_node`: by default torchrun's, else 8."""
        per_node = self.per_node or int(os.environ.get("LOCAL_WORLD_SIZE", min(self.ranks, NODE)))
        return TorchProcessGroup(size=self.ranks, per_node=per_node)


def this_machine(ranks: int | None = None) -> Place:
    """The first GPU, else the CPU; ranks from torchrun's WORLD_SIZE by default.

    Apple's GPU shares the memory of the CPU, and none of CUDA's allowances applies to it.
    """
    ranks = ranks or int(os.environ.get("WORLD_SIZE", "1"))
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Place(properties.name, properties.total_memory, True, ranks)
    if torch.backends.mps.is_available():
        return Place("Apple's GPU", torch.mps.recommended_max_memory(), False, ranks)
    return Place("the CPU", psutil.virtual_memory().total, False, ranks)


def a_gpu(gibibytes: float | int, ranks: int | None = None) -> Place:
    """A GPU by its nominal size in GiB: 24 for a 24 GB card."""
    ranks = ranks or int(os.environ.get("WORLD_SIZE", "1"))
    return Place(f"a GPU of {gibibytes:g} GB", int(gibibytes * GIB), True, ranks, is_here=False)


def binary(size: float | int) -> str:
    """Bytes in binary units: 5.4 GiB, 310 MiB, 12 KiB."""
    for factor, unit, digits in ((GIB, "GiB", 1), (2**20, "MiB", 0)):
        if size >= factor:
            return f"{size / factor:,.{digits}f} {unit}"
    return f"{size / 1024:,.0f} KiB"


@dataclass(frozen=True)
class Row:
    """One part: bytes by phase, nothing in phases without it."""

    part: str
    note: str
    sizes: Mapping[Any, int]
    kind: Kind = "counted"


@dataclass(frozen=True)
class Estimate:
    """Memory of one rank. `trained` counts the trained parameters of the whole network."""

    rows: tuple[Row, ...]
    trained: int
    place: Place
    warnings: tuple[str, ...]
    work: Work | None = None
    """Calls of the denoiser for one batch; None if they could not be traced."""

    def at(self, phase: str, kinds: Sequence[Kind] = get_args(Kind)) -> int:
        """Bytes in one phase, of these kinds."""
        return sum(row.sizes.get(phase, 0) for row in self.rows if row.kind in kinds)

    @property
    def busiest(self) -> str:
        """The phase with the peak."""
        return max(PHASES, key=self.at)

    @property
    def peak(self) -> int:
        """Bytes that the device must have, allowances included."""
        return self.at(self.busiest)

    @property
    def allocated(self) -> int:
        """Bytes of tensors at the peak, as torch.cuda.max_memory_allocated reports them."""
        return max(self.at(phase, ("counted", "traced")) for phase in PHASES)

    @property
    def counted(self) -> int:
        """Peak bytes of weights, gradients and optimizer states."""
        return max(self.at(phase, ("counted",)) for phase in PHASES)

    @property
    def fits(self) -> bool:
        return self.peak <= self.place.capacity


def estimate(run: config.RunConfig, place: Place) -> Estimate:
    """Memory of one rank at `place`.

    Raises DirectAlignError for a model or reward with missing files or of another architecture.
    """
    model = run.model
    if is_sharded_run(run, place.group) and model.tune == "full":
        # gathered weights have the dtype of the forward pass
        model = model.model_copy(update={"trained_dtype": model.dtype})
    try:
        found = meta_model(model, place.is_gpu)
    except DirectAlignError:
        raise
    except Exception as error:  # any error of a user's class without data
        return Estimate((), 0, place, (f"model: memory not estimated: {first_line(error)}",))
    rewards = MetaRewards(run)
    traced = trace(run, found, rewards)
    rows = list(_static(run, place, found, rewards, traced.held_by_method))
    rows = [row for row in rows if any(row.sizes.values())] + rewards.not_estimated
    if traced.peaks:
        rows.append(Row("activations", traced.note, traced.peaks, "traced"))
    if place.is_gpu:
        context = dict.fromkeys(PHASES, CUDA_CONTEXT)
        rows.append(Row("CUDA", "context, kernels, workspaces", context, "allowance"))
        pieces = {phase: int(FRAGMENTATION * size) for phase, size in traced.peaks.items()}
        note = f"{FRAGMENTATION:.0%} of the activations"
        rows.append(Row("fragments", note, pieces, "allowance"))
    trained = sum(parameter.numel() for parameter in found.trained.values())
    warnings = *found.folder.warnings, *rewards.warnings, *traced.warnings
    return Estimate(tuple(rows), trained, place, warnings, traced.work)


# Rewards


class UntracedReward:
    """Replaces a reward that cannot be built on fake tensors; it uses no memory."""

    name, reads_prompt, differentiable = "untraced", True, True

    def __init__(self, sees: str = "pixels") -> None:
        self.sees = sees

    def encode(self, images: Images | Latents) -> Latents:
        return images

    def score(self, features: Latents, prompts: Sequence[str]) -> PerSample:
        del prompts
        return features.mean((1, 2, 3))


class MetaRewards:
    """The rewards of a recipe on fake tensors: `trained_on`, and `held_out` by label."""

    def __init__(self, run: config.RunConfig) -> None:
        self.not_estimated: list[Row] = []
        self.modules: dict[str, tuple[str, list[nn.Module]]] = {}
        """By label: name of the reward and its networks."""
        self._configs = RewardConfigs()
        if isinstance(run.reward, config.MixtureConfig):
            built = [
                Member(each, self._build(each.reward, key_of(index), f"reward {each.label}"))
                for index, each in enumerate(run.reward.members)
            ]
            self.trained_on: Reward = MixReward(built, run.reward)
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
        kind, reason = reward_class(settings.name), "its class defines no `meta`"
        try:
            with on_meta():
                reward = kind.meta(settings, key, self._configs)
        except DirectAlignError:
            raise
        except Exception as error:  # any error of a library on a network without data
            reward, reason = None, first_line(error)
        if reward is None:
            note = f"not estimated: {settings.name}, {reason}"
            self.not_estimated.append(Row(label, note, {}))
            if getattr(settings, "differentiable", kind.differentiable):
                self._configs.warnings.append(f"{key}: memory {note}")
            return UntracedReward(kind.sees)
        modules = [each for each in vars(reward).values() if isinstance(each, nn.Module)]
        for module in modules:
            make_fake(module.requires_grad_(False).eval())
            pass_repeated(module)
        if modules:
            self.modules[label] = settings.name, modules
        return reward

    def rows(self, phases: Sequence[str]) -> Iterator[Row]:
        """The weights of every reward that has some."""
        for label, (name, modules) in self.modules.items():
            weights = [parameter for module in modules for parameter in module.parameters()]
            count, size = sum(p.numel() for p in weights), sum(p.nbytes for p in weights)
            dtype = str(weights[0].dtype).removeprefix("torch.")
            note = f"{name}, {_count(count)}, {dtype}, frozen"
            yield Row(label, note, dict.fromkeys(phases, size))


# Activations


@dataclass(frozen=True)
class Traced:
    """Peaks of activations by phase, and bytes of tensors that the method holds throughout."""

    peaks: Mapping[str, int] = field(default_factory=dict)
    held_by_method: int = 0
    note: str = ""
    warnings: tuple[str, ...] = ()
    work: Work | None = None


def trace(run: config.RunConfig, model: MetaModel, rewards: MetaRewards) -> Traced:
    """Run one update of each kind and one evaluation on fake tensors.

    If that fails, run them without the rewards, then give up; `warnings` name what is missing.
    Rollouts are those without `rollout.lora` and `rollout.cache`, whose numbers are needed.
    """
    plain = run.rollout.model_copy(update={"lora": None, "cache": None})
    run = run.model_copy(update={"rollout": plain})
    try:
        return _traced(run, model, rewards.trained_on, list(rewards.held_out.values()))
    except DirectAlignError:
        raise
    except Exception as error:  # any error of a library or user code on tensors without data
        warning = f"reward: activations not estimated: {first_line(error)}"
    try:
        untraced = UntracedReward(rewards.trained_on.sees)
        return replace(_traced(run, model, untraced, []), warnings=(warning,))
    except Exception as error:
        warning = f"memory: activations not estimated: {first_line(error)}"
        return Traced(warnings=(warning,))


def first_line(error: Exception) -> str:
    """Type and first line of an error, for a warning."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:200]


def _traced(
    run: config.RunConfig, model: MetaModel, reward: Reward, held_out: Sequence[Reward]
) -> Traced:
    tracker, kept, updates = MemoryTracker(), 0, list[dict[str, float]]()
    passes = list[tuple[float, float]]()
    with tracker, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about types that only this trace has
        tracker.phase = "method"
        method = load_method(run, model.model, reward)
        for each in unmeasured(method):
            each.base_means = (0.0, 0.0)  # any number needs the same memory
        held = tracker.now
        for batch in _batches(run, model):
            every = updates_per_rollout(run) if batch.images is None else 1
            mean: dict[str, float] = dict.fromkeys(PARTS, 0.0)
            forward = backward = 0.0
            for step, times in ((0, 1), (1, every - 1))[: 1 + (every > 1)]:
                tracker.flops, tracker.forward, tracker.backward = Counter(), 0, 0
                with _phases(run, model, tracker):
                    later = replace(batch, step=step)
                    kept = max(kept, _update(method, later, model, tracker) - held)
                for part in PARTS:
                    mean[part] += times * tracker.flops[part] / every
                forward += times * tracker.forward / every
                backward += times * tracker.backward / every
            passes.append((forward, backward))
            updates.append(mean)
        tracker.phase, tracker.flops = "measure", Counter()
        with torch.no_grad(), _phases(run, model, tracker):
            count = _evaluation(run, model, [reward, *held_out])
    largest = max(updates, key=lambda each: sum(each.values()))
    forward, backward = max(passes, key=sum)
    full, trained = run.model.tune == "full", sum(each.numel() for each in model.trained.values())
    numbers = model.count(model.model.part) + (0 if full else trained)
    work = Work(
        largest,
        tracker.flops.total() / count,
        copied=(forward + backward) * sum(model.swapped(run.model.block_swap)),
        forward=forward,
        backward=backward,
        weights=numbers * BYTES[run.model.dtype],
        trained=trained,
    )
    peaks = {phase: max(0, tracker.peaks[phase] - held) for phase in PHASES if phase != "update"}
    note = f"train: {binary(kept)} kept for the backward pass"
    return Traced({**peaks, "update": 0}, held, note, work=work)


def _batches(run: config.RunConfig, model: MetaModel) -> Iterator[Batch]:
    """A batch of prompts and one of real images, if the recipe has them, of the largest size."""
    prompts, size = (PROMPT,) * run.data.batch_size, image_size(run, model)
    if run.data.prompts is not None:
        largest = max(run.rollout.sizes or [size], key=math.prod)
        yield Batch(0, prompts, image_size=largest, rollout=0)
    if run.data.images is not None:
        size = max(run.data.buckets or [size], key=math.prod)
        images = fake((len(prompts), 3, *size), torch.float32)
        yield Batch(0, prompts, images, image_size=size)
    if run.data.edits is not None:
        size = max(run.data.buckets or [size], key=math.prod)
        images = fake((len(prompts), 3, *size), torch.float32) if run.data.edit_targets else None
        sources = _sources(len(prompts), size)
        if images is None or run.data.offline_steps is not None:
            yield Batch(0, prompts, image_size=size, rollout=0, sources=sources)
        if images is not None:
            yield Batch(0, prompts, images, image_size=size, sources=sources)
    if run.data.pairs is not None:
        size = max(run.data.buckets or [size], key=math.prod)
        chosen, rejected = (fake((len(prompts), 3, *size), torch.float32) for _ in range(2))
        yield Batch(0, prompts, chosen, image_size=size, rejected=rejected)


def _sources(count: int, size: tuple[int, int]) -> Sources:
    return Sources(*(fake((count, channels, *size), torch.float32) for channels in (3, 1)))


def image_size(run: config.RunConfig, model: MetaModel) -> tuple[int, int]:
    """(height, width) in pixels: the recipe's, else the checkpoint's default."""
    height, width = model.model.default_size
    return run.rollout.height or height, run.rollout.width or width


@contextmanager
def _phases(run: config.RunConfig, model: MetaModel, tracker: MemoryTracker) -> Iterator[None]:
    """Inside, `encode_prompt` is tracked as phase "encode", wherever it is called, and operations
    of the text encoders, the decoder and the rewards, forward and backward, are told apart."""
    encode, instance = model.model.encode_prompt, vars(model.model)
    decode = model.model.decode

    def encoded(prompts: Sequence[str], *sources: Images) -> Any:
        with tracker.having(phase="encode", part="encode"):
            if run.model.text_encoders == "free":  # prompts are encoded one by one in advance
                with tracker.having(flops=Counter()):
                    encode(prompts[:1])
                tracker.phase = "cache"
            return encode(prompts, *sources)

    def becomes(part: str) -> Any:
        return lambda _: setattr(tracker, "part", part)

    def decoded(x0: Latents) -> Images:
        if x0.requires_grad:
            x0.register_hook(becomes("train"))
        with tracker.having(part="decode"):
            images = decode(x0)
        if images.requires_grad:
            images.register_hook(becomes("decode"))
            tracker.backward_part = "reward"
        tracker.part = "reward"
        return images

    instance |= {"encode_prompt": encoded, "decode": decoded}
    try:
        yield
    finally:
        del instance["encode_prompt"], instance["decode"]


def _update(method: Any, batch: Batch, model: MetaModel, tracker: MemoryTracker) -> int:
    """All losses of a batch, each with its backward pass; the most bytes live between the two."""
    kept = 0

    def set_phase(*_: Any) -> None:
        tracker.part = "rollout"
        tracker.forward += 1
        tracker.backward += torch.is_grad_enabled()
        if torch.is_grad_enabled():
            tracker.phase = tracker.part = tracker.backward_part = "train"

    denoiser = model.model.denoiser
    hook = denoiser.register_forward_pre_hook(set_phase)
    tracker.phase = tracker.part = "rollout"
    try:
        for loss in method.losses(batch):
            tracker.phase, kept = "train", max(kept, tracker.now)
            tracker.part = tracker.backward_part
            loss.value.backward()
            del loss
    finally:
        hook.remove()
    return kept


def _evaluation(run: config.RunConfig, model: MetaModel, rewards: Sequence[Reward]) -> int:
    """Sample one batch of an evaluation, decode it and score it with every reward; its size."""
    grid = len(run.train.sample_prompts) if run.train.sample_prompts is not None else SAMPLE_GRID
    count = min(run.evaluate.batch_size, max(grid, run.evaluate.num_samples))
    size = image_size(run, model)
    sources = _sources(count, size) if run.data.edits is not None else None
    batch = Batch(0, (PROMPT,) * count, image_size=size, sources=sources)
    start = start_rollout(model.model, run.rollout, batch)
    x0 = sample(model.model, start.cond, start.noise, start.sigmas)
    images = model.model.decode(x0).clamp(0, 1)
    for reward in rewards:
        seen = model.model.encode_image(images) if reward.sees == "latents" else images
        reward.score(image_features(reward, seen, sources), batch.prompts)
    return count


# Weights and optimizer


def _static(
    run: config.RunConfig, place: Place, model: MetaModel, rewards: MetaRewards, by_method: int
) -> Iterator[Row]:
    """Everything that is allocated for a phase or longer, on one rank."""
    settings = run.model
    # a GPU holds text encoders that are freed before the other networks
    late = PHASES[1:] if settings.text_encoders == "free" and place.is_gpu else PHASES
    split = shards_of(run, place.group)
    share = f", 1/{split} on this rank" if split > 1 else ""
    if settings.tune == "lora":
        bits = f" in {settings.quantization[0]} bits" if settings.quantization else ""
        note = f"{_count(model.count(model.model.part))}{bits}, frozen{share}"
        swapped = model.swapped(settings.block_swap)
        size = (model.frozen_bytes - sum(swapped)) // split
        yield Row(model.model.part, note, dict.fromkeys(late, size))
        if swapped:
            count, stored = f"{len(swapped)} of {len(model.blocks)}", binary(sum(swapped))
            note = f"of {count} blocks, {stored}, in main memory"
            sizes = dict.fromkeys(("rollout", "train", "measure"), 2 * max(swapped))
            yield Row("two swapped blocks", note, sizes)
    if run.rollout.lora is not None:
        size = lora_file(run.rollout.lora, "rollout.lora").stat().st_size
        yield Row("rollout.lora", "active in rollouts", dict.fromkeys(late, size))
    vae = sum(parameter.nbytes for parameter in model.parts["vae"].parameters())
    yield Row("vae", f"{_count(model.count('vae'))}, frozen", dict.fromkeys(PHASES, vae))
    yield from rewards.rows(late)
    yield from _trained(run, place, model, by_method, late, split)
    where = {
        "keep": "kept on the device",
        "offload": "on the device while they encode",
        "free": "freed after the first prompts",
    }[settings.text_encoders]
    phases = PHASES if settings.text_encoders == "keep" else PHASES[:1]
    for name in model_class(settings.architecture).text_parts:
        if name in model.parts:
            count = model.count(name)
            sizes = dict.fromkeys(phases, count * BYTES[settings.dtype])
            yield Row(name, f"{_count(count)}, {where}", sizes)
    if split > 1:
        width, full = BYTES[settings.dtype], settings.tune == "full"
        calls, train = (gathered_bytes(model.shapes, width, grad) for grad in (False, full))
        note = "weights of two blocks and what is outside the blocks"
        yield Row("gathered blocks", note, dict.fromkeys(("rollout", "measure"), calls))
        note = "with a block's gradient" if full else ""
        yield Row("gathered blocks, training", note, {"train": train})


def _trained(
    run: config.RunConfig,
    place: Place,
    model: MetaModel,
    by_method: int,
    late: Sequence[str],
    split: int,
) -> Iterator[Row]:
    """Trained weights, and what optimizer and method keep of them."""
    counts, full = [p.numel() for p in model.trained.values()], run.model.tune == "full"
    dtype, optimizer = run.model.trained_dtype if full else "float32", run.train.optimizer
    numbers = sum(counts) // split
    size, share = numbers * BYTES[dtype], f", 1/{split} on this rank" if split > 1 else ""
    name = model.model.part if full else "adapters"
    note = f"{_count(sum(counts))}, {dtype}{share}"
    yield Row(f"{name}, trained", note, dict.fromkeys(late, size))
    # with accumulation, gradients outlive a rollout
    phases = PHASES[1:] if accumulation(run, place.ranks) > 1 else PHASES[2:]
    yield Row("gradients", dtype, dict.fromkeys(phases, size))
    after = PHASES[1:] if run.model.text_encoders == "free" else PHASES
    moments = int(numbers * OPTIMIZER_STATE[optimizer])
    yield Row("moments", f"of {optimizer}", dict.fromkeys(after, moments))
    if run.train.ema_decay is not None:
        yield Row("average of weights", dtype, dict.fromkeys(after, size))
    if by_method:  # in units of the weights, whose dtype differs in a sharded trace
        copies = by_method * size // sum(p.nbytes for p in model.trained.values())
        note = f"held by method {run.method.name}"
        yield Row("frozen copy of weights", note, dict.fromkeys(after, copies))
    if optimizer == "adamw8bit":
        largest = UPDATE_8BIT * max(counts) // split
        yield Row("largest weight", "its moments unpacked and packed again", {"update": largest})
    elif place.is_gpu:
        yield Row("roots of moments", "computed for all weights at once", {"update": size})


def gathered_bytes(shapes: Mapping[str, Sequence[int]], width: int, with_gradient: bool) -> int:
    """Peak bytes that a rank gathers of a sharded network, `width` bytes a number.

    Everything outside the blocks stays gathered; of the blocks, one is in use and the next is being
    gathered. A block's gradient is whole too, and again in float32 during the sum over ranks.
    """
    blocks: dict[str, int] = {}
    for name, shape in shapes.items():
        pieces = name.split(".")
        number = next((place for place, piece in enumerate(pieces) if piece.isdigit()), None)
        block = ".".join(pieces[: number + 1]) if number is not None else ""
        blocks[block] = blocks.get(block, 0) + math.prod(shape)
    around, largest = blocks.pop("", 0), max(blocks.values(), default=0)
    gradient = largest * (width + BYTES["float32"]) if with_gradient else 0
    return (around + 2 * largest) * width + gradient


def _count(numbers: int) -> str:
    return f"{numbers / 1e9:,.2f} B" if numbers >= 1e9 else f"{numbers / 1e6:,.2f} M"
