"""What a run holds on its device, and in which phases: weights, gradients, the optimiser's moments, averages and copies."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from .. import config
from ..models import model_class, sd3
from ..training.data import accumulation
from .adapters import BYTES, base_bytes, gathered_bytes, lora_parameters
from .architecture import Architecture
from .geometry import Geometry, geometry
from .judges import Panel
from .place import Place
from .traces import Denoiser
from .weightless import Part, shapes

ALWAYS = ("encode", "rollout", "train", "update", "measure")
MOMENTS = {"adamw": 8.0, "adamw8bit": 2 * (1 + 4 / 256)}
"""Bytes of an optimiser's two averages for each trained number; in 8 bits with a float32 scale for every 256."""
UNPACKED = 45
"""Bytes for each number of the weight whose 8-bit averages are brought up to date."""


@dataclass(frozen=True)
class Held:
    """Bytes that are there throughout some phases."""

    part: str
    size: int
    note: str
    phases: tuple[str, ...] = ALWAYS


@dataclass(frozen=True)
class Subject:
    """A run with the architecture of its model and its rewards, and where it would train."""

    run: config.RunConfig
    model: Architecture
    panel: Panel
    place: Place

    @property
    def part(self) -> str:
        """The denoiser's name in its pipeline."""
        return model_class(self.run.model.architecture).part

    @property
    def is_sharded(self) -> bool:
        """Whether the ranks split the network (FSDP2)."""
        asked = self.run.train.parallel
        return self.place.ranks > 1 and (
            asked == "sharded" or (asked == "auto" and self.run.model.tune == "full")
        )

    @property
    def settled(self) -> tuple[str, ...]:
        """Phases with denoiser and reward on the device: after text encoders that are freed, which a GPU holds before them."""
        return (
            ALWAYS[1:] if self.run.model.text_encoders == "free" and self.place.is_gpu else ALWAYS
        )

    @property
    def text_parts(self) -> tuple[str, ...]:
        """The text encoders that this checkpoint has."""
        return tuple(
            part
            for part in model_class(self.run.model.architecture).text_parts
            if part in self.model.parts
        )

    @cached_property
    def geometry(self) -> Geometry:
        return geometry(self.run, self.model)

    @cached_property
    def denoiser(self) -> Denoiser:
        """As one rank calls it: gathered weights have the dtype of the forward pass."""
        model = self.run.model
        if self.is_sharded and model.tune == "full":
            model = model.model_copy(update={"trained_dtype": model.dtype})
        part = self.model.parts[self.part]
        return Denoiser(
            model.architecture,
            part,
            model,
            _lora_targets(model.architecture, part),
            self.place.is_gpu,
        )

    @cached_property
    def trained(self) -> int:
        """Trained numbers of the whole network."""
        model = self.run.model
        return (
            self.model.count(self.part)
            if model.tune == "full"
            else lora_parameters(shapes(self.denoiser.part), model.lora, self.denoiser.targets)
        )

    @cached_property
    def largest_trained(self) -> int:
        """Numbers in the largest trained tensor."""
        network = shapes(self.denoiser.part)
        largest = max(math.prod(shape) for shape in network.values())
        if self.run.model.tune == "full":
            return largest
        sides = max(
            max(shape[0], math.prod(shape[1:])) for shape in network.values() if len(shape) >= 2
        )
        return self.run.model.lora.rank * sides


def _lora_targets(family: str, part: Part) -> tuple[str, ...]:
    """Layers that are adapted by default; SD3 has some in the checkpoints alone that have a second attention."""
    if family != "sd3":
        return model_class(family).lora_targets
    return sd3.ATTENTION + (
        sd3.SECOND_ATTENTION if part.config.get("dual_attention_layers") else ()
    )


def held(subject: Subject) -> Iterator[Held]:
    """Everything that stays for a phase or longer, as one rank holds it."""
    yield from _frozen(subject)
    yield from _trained(subject)
    yield from _text_encoders(subject)
    if subject.is_sharded:
        yield from _gathered(subject)


def _frozen(subject: Subject) -> Iterator[Held]:
    run, split = subject.run, subject.place.ranks if subject.is_sharded else 1
    if run.model.tune == "lora":
        size = base_bytes(shapes(subject.denoiser.part), run.model)
        bits = f" in {run.model.quantization[0]} bits" if run.model.quantization else ""
        yield Held(
            subject.part,
            size // split,
            f"{_count(subject.model.count(subject.part))}{bits}, frozen{_share(split)}",
            subject.settled,
        )
    vae = subject.model.count("vae")
    yield Held("vae", vae * vae_width(subject), f"{_count(vae)}, frozen")
    for judge in subject.panel.judges:
        yield Held(
            judge.label,
            judge.held,
            f"{judge.kind}, {_count(judge.count)}, {str(judge.dtype).removeprefix('torch.')}, frozen",
            subject.settled,
        )


def _trained(subject: Subject) -> Iterator[Held]:
    """What is trained and what the optimiser keeps of it; encoding prompts once, at the start, comes before all of it."""
    run, split = subject.run, subject.place.ranks if subject.is_sharded else 1
    numbers, full = subject.trained // split, run.model.tune == "full"
    width, dtype = (
        (BYTES[run.model.trained_dtype], run.model.trained_dtype)
        if full
        else (BYTES["float32"], "float32")
    )
    later = ALWAYS[1:] if run.model.text_encoders == "free" else ALWAYS
    what = f"{subject.part if full else 'adapters'}, trained"
    yield Held(
        what, numbers * width, f"{_count(subject.trained)}, {dtype}{_share(split)}", subject.settled
    )
    yield Held("gradients", numbers * width, dtype, _with_gradients(subject))
    yield Held(
        "moments", int(numbers * MOMENTS[run.train.optimizer]), f"of {run.train.optimizer}", later
    )
    if run.train.ema_decay is not None:
        yield Held("average of weights", numbers * width, dtype, later)
    if full and (asking := asks_base(run.method)) is not None:
        yield Held("frozen copy of weights", numbers * width, f"for {asking}", later)
    yield from _step(subject, numbers * width)


def asks_base(method: config.MethodConfig) -> str | None:
    """The setting for which a method asks the base model while it trains, None where it does not."""
    if isinstance(method, config.FlowGRPOConfig) and method.kl_beta > 0:
        return "method.kl_beta"
    return (
        "method.trust"
        if isinstance(method, config.SRPOConfig) and method.trust is not None
        else None
    )


def _step(subject: Subject, trained_bytes: int) -> Iterator[Held]:
    """What the optimiser makes for a moment: AdamW on a GPU the roots of all its averages, in 8 bits one tensor at a time unpacked."""
    if subject.run.train.optimizer == "adamw8bit":
        largest = subject.largest_trained // (subject.place.ranks if subject.is_sharded else 1)
        yield Held(
            "largest weight", UNPACKED * largest, "its moments unpacked and put back", ("update",)
        )
    elif subject.place.is_gpu:
        yield Held("roots of moments", trained_bytes, "made for all weights at once", ("update",))


def _with_gradients(subject: Subject) -> tuple[str, ...]:
    """They stay from the first loss of an update to the beginning of the next; where batches accumulate, they outlive rollouts."""
    accumulates = accumulation(subject.run, subject.place.ranks) > 1
    return (
        ("rollout", "train", "update", "measure") if accumulates else ("train", "update", "measure")
    )


def _text_encoders(subject: Subject) -> Iterator[Held]:
    phases = ALWAYS if subject.run.model.text_encoders == "keep" else ("encode",)
    where = {
        "keep": "kept on the device",
        "offload": "on the device while they encode",
        "free": "dropped after the first prompts",
    }
    for part in subject.text_parts:
        count = subject.model.count(part)
        yield Held(
            part,
            count * BYTES[subject.run.model.dtype],
            f"{_count(count)}, {where[subject.run.model.text_encoders]}",
            phases,
        )


def _gathered(subject: Subject) -> Iterator[Held]:
    network, width = shapes(subject.denoiser.part), BYTES[subject.run.model.dtype]
    full = subject.run.model.tune == "full"
    yield Held(
        "gathered blocks",
        gathered_bytes(network, width, with_gradient=False),
        "weights of two blocks and what is around them",
        ("rollout", "measure"),
    )
    yield Held(
        "gathered blocks, training",
        gathered_bytes(network, width, with_gradient=full),
        "with a block's gradient",
        ("train",),
    )


def vae_width(subject: Subject) -> int:
    """Bytes of a number in the VAE: float32 where SDXL's overflows in fewer."""
    upcast = subject.run.model.architecture == "sdxl" and subject.model.parts["vae"].config.get(
        "force_upcast", True
    )
    return BYTES["float32"] if upcast else BYTES[subject.run.model.dtype]


def _share(split: int) -> str:
    return f", 1/{split} on this rank" if split > 1 else ""


def _count(numbers: int) -> str:
    return f"{numbers / 1e9:,.2f} B" if numbers >= 1e9 else f"{numbers / 1e6:,.2f} M"
