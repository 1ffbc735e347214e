"""How a run ended: by itself or not, at which update, and which weights are left. Read from its "stop" and "kept" records."""

from __future__ import annotations

from .charts import Mark
from .collect import RunFiles
from .files import Record, mapping, number
from .writing import cut
from dataclasses import dataclass


REASONS = {
    "drift": "what it may lose was lost",
    "patience": "its judge found nothing better any more",
    "score_peak": "the absolute score fell from its peak",
}
STOP, KEPT = "stop", "kept"


@dataclass(frozen=True)
class Ending:
    """`stop` is the update after which the run ended itself (None: it did not), `kept` the one whose weights are left (None: the last)."""

    stop: float | None
    kept: float | None
    says: str

    def sentences(self) -> list[str]:
        """What stands on top of the page."""
        kept = (
            f"The weights that are left are those after update {self.kept:.0f}."
            if self.kept is not None
            else ""
        )
        if self.stop is None:
            return [f"The run went on to its end. {kept}"]
        return [
            each
            for each in (f"This run stopped itself after update {self.stop:.0f}: {self.says}", kept)
            if each
        ]

    def marks(self) -> list[Mark]:
        """Where both stand on a chart of updates."""
        if self.stop is not None and self.stop == self.kept:
            return [Mark(self.stop, "stop, kept", STOP)]
        kept = [Mark(self.kept, "kept", KEPT)] if self.kept is not None else []
        return kept + ([Mark(self.stop, "stop", STOP)] if self.stop is not None else [])


def ending(run: RunFiles) -> Ending | None:
    """None for a run that ended as its recipe says and left its last weights."""
    stop = run.stops[-1] if run.stops else mapping(run.summary.get("stopped"))
    record: Record = run.keeps[-1] if run.keeps else mapping(run.summary.get("kept"))
    at, kept = number(stop.get("step")), number(record.get("step"))
    kept = kept if kept is not None else number(stop.get("kept"))
    if at is None and kept is None:
        return None
    reason = stop.get("says") or REASONS.get(str(stop.get("reason")), "it says no reason")
    return Ending(at, kept, cut(reason).rstrip(".") + ".")
