"""The memory of a run, phase by phase: what is held, and what comes and goes on top of it. The peak is that of the busiest phase.

encode   prompts through the text encoders          rollout  sampling without gradient, real images through the VAE encoder
train    a loss with its backward pass              update   the optimiser's step
measure  sample grids and measurements, held-out rewards too, `evaluate.batch_size` images at once
Weights, gradients, moments are counted; what comes and goes is traced; what a GPU and its allocator add is an allowance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from .. import config
from .architecture import model_architecture
from .held import Subject, held
from .judges import panel
from .passing import passing, says
from .place import CONTEXT, FRAGMENTS, Place

Phase = Literal["encode", "rollout", "train", "update", "measure"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(frozen=True)
class Row:
    """One line: bytes by phase, 0 where it is not there. `kind` says how sure it is."""

    part: str
    note: str
    sizes: Mapping[str, int]
    kind: Literal["counted", "traced", "allowance"]


@dataclass(frozen=True)
class Estimate:
    """What a run needs on its device. `trained` counts the trained numbers of the whole network, over all ranks; `doubts` are warnings."""

    rows: tuple[Row, ...]
    trained: int
    place: Place
    state: str
    doubts: tuple[str, ...]

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
        """Bytes that are certain at the peak of what is certain: weights, gradients, optimiser states."""
        return max(self.at(phase, ("counted",)) for phase in PHASES)

    @property
    def fits(self) -> bool:
        return self.peak <= self.place.capacity


def estimate(run: config.RunConfig, place: Place) -> Estimate:
    """Memory of one rank at `place`.

    Raises:
        DirectAlignError: a folder that is missing, torn, without safetensors or of another architecture.
    """
    subject = Subject(run, model_architecture(run.model), panel(run), place)
    rows = [
        Row(each.part, each.note, dict.fromkeys(each.phases, each.size), "counted")
        for each in held(subject)
        if each.size
    ]
    peaks = passing(subject)
    rows.append(Row("comes and goes", says(subject), peaks, "traced"))
    if place.is_gpu:
        rows.append(
            Row("CUDA", "context, kernels, workspaces", dict.fromkeys(PHASES, CONTEXT), "allowance")
        )
        rows.append(
            Row(
                "fragments",
                f"{FRAGMENTS:.0%} of what comes and goes",
                {phase: int(FRAGMENTS * size) for phase, size in peaks.items()},
                "allowance",
            )
        )
    return Estimate(
        tuple(rows),
        subject.trained,
        place,
        subject.model.state,
        (*subject.model.doubts, *subject.panel.doubts),
    )
