"""Measurements that train nothing, kept piece by piece: a study that was stopped goes on with the next piece.

OUT/pieces/NAME.jsonl    the rows of one piece
OUT/pieces/NAME.yaml     the settings that they were measured under
"""

from __future__ import annotations

from ...config import RunConfig
from ...config.load import dump_run
from ...io.atomic import write_text
from ...training.run_folder import commit, machine, versions
from ...types import DirectAlignError
from .records import Row, read_rows, write_rows
from collections.abc import Callable, Iterable
from pathlib import Path


def piece(out: Path, name: str, settings: RunConfig, measure: Callable[[], Iterable[Row]]) -> list[Row]:
    """The rows of a piece, measured when they are not there yet; commit, machine and versions are added to each.

    Raises: DirectAlignError where rows of other settings lie.
    """
    rows, under = out / "pieces" / f"{name}.jsonl", out / "pieces" / f"{name}.yaml"
    if not rows.exists():
        facts = {"commit": commit(), "machine": machine(), "versions": versions()}
        write_rows([{**row, **facts} for row in measure()], rows)
        write_text(under, dump_run(settings))
    if not under.exists() or under.read_text(encoding="utf-8") != dump_run(settings):
        raise DirectAlignError(f"{rows} was measured under other settings than the recipe has now: remove {rows}, or choose another --out")
    return read_rows(rows)
