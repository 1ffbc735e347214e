"""Who shows a run's records besides `metrics.jsonl`: TensorBoard, Weights & Biases and trackio, told the same things under the same names at the same steps.

A resumed run is the same run there: a key in `tracked.json` says which. Who can be written anew is told the kept records from
the beginning; who remembers (`Tracker.remembers`) goes on. What lies on other machines is spoken to from a thread of its own
(`trackers_aside`), so that it can neither end the run nor hold it up.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from .. import config
from .sealed import write_text

NAME = "tracked.json"
PICTURES = "samples"
"""What the sample grids are called."""

Pixels = UInt8[np.ndarray, "H W 3"]
Values = Mapping[str, float | str]


@runtime_checkable
class Tracker(Protocol):
    """Something that shows a run. Each method is called from one thread, in the order of the records."""

    remembers: bool
    """Whether it has what was written before this process and must not be told again."""

    def record(self, values: Values, step: int) -> None:
        """Numbers and short texts by name."""
        ...

    def picture(self, pixels: Pixels, step: int) -> None:
        """A sample grid."""
        ...

    def summary(self, found: Mapping[str, Any]) -> None:
        """What `summary.json` says."""
        ...

    def close(self, finished: bool) -> None:
        """The process ends; `finished`: and so does the run, otherwise it may be resumed."""
        ...


@dataclass(frozen=True)
class About:
    """What a tracker is told of the run when it opens.

    `key` tells runs apart that have one name, `caption` is that of every sample grid, `space` is where trackio has sent the run
    before, None if nowhere.
    """

    key: str
    name: str
    config: Mapping[str, Any]
    caption: str
    space: str | None


def about(run: config.Run, out: Path, prompts: Sequence[str]) -> About:
    """The run in `out`, with the key it has there or a new one; passwords in addresses are left out of its config."""
    file = out / NAME
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"key": secrets.token_hex(4), "space": None}
    caption = "\n".join(f"{place}. {prompt}" for place, prompt in enumerate(prompts, start=1))
    return About(kept["key"], run.name, without_passwords(run.model_dump(mode="json")), caption, kept["space"])


def remember(out: Path, key: str, space: str | None) -> None:
    """Write `tracked.json`, for the next process that opens the run."""
    write_text(out / NAME, json.dumps({"key": key, "space": space}, indent=1) + "\n")


def values_of(record: Mapping[str, Any]) -> dict[str, float | str]:
    """All finite numbers and texts of a record, under slash-joined names that begin with its event; lists (levels) are for the page."""
    return dict(_leaves(record, record["event"]))


def without_passwords(value: Any) -> Any:
    """A config without what stands before the @ of an address (`http://me:secret@host`)."""
    if isinstance(value, Mapping):
        return {key: without_passwords(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_passwords(inner) for inner in value]
    return re.sub(r"(?<=://)[^/@\s]+@", "", value) if isinstance(value, str) else value


def tell_again(tracker: Tracker, records: Sequence[Mapping[str, Any]]) -> None:
    """The records that a resumed run kept, to whoever does not remember them."""
    for record in records if not tracker.remembers else ():
        tracker.record(values_of(record), record["step"])


def _leaves(value: Any, name: str) -> Iterator[tuple[str, float | str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in ("event", "step"):
                yield from _leaves(inner, f"{name}/{key}")
    elif isinstance(value, str):
        yield name, value
    elif isinstance(value, (int, float)):
        yield name, float(value)
