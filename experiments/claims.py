"""The claims ledger: what the project says about results, and what its records show.

`claims.yaml` holds each claim with the numbers that would show it. A verdict is computed, never
written by hand, by one rule from the 95 % interval over training seeds: it "holds" where the whole
interval is on the claimed side, is "refuted" where the whole interval is on the other, and is "not
shown" otherwise, with fewer than three seeds, or where no record measures it. A claim about exact
agreement names the test that shows it instead; it is "tested".

In README.md a sentence that speaks of results links its row, `docs/claims.md#ID`; `unlinked` finds
those that do not.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from directalign.types import DirectAlignError

from .rows import Pick, Rows, SeedInterval, after, at_level, cost_ratio, difference, over, read_rows
from .tables import Table, signed, with_interval

FILE = Path(__file__).with_name("claims.yaml")
FEW_SEEDS = 3
"""Fewer training seeds than this show nothing, whatever their interval."""
RESULT = re.compile(
    r"\d %|\d%|\d+e-\d|\b\d+ times\b|\b(better|worse|faster|cheaper|keeps?|loses?|lost|cancels?|"
    r"wins?|reach(es)?|beats?|drifts?)\b",
    re.IGNORECASE,
)
"""Words and numbers of a sentence that speaks of a result."""


class Measured(BaseModel):
    """Numbers of a study: of `arm`, or of `arm` minus (with `ratio`: over) `against`, by seed.

    A training run is read after so many `updates`, where its photo rate first reaches
    `photo_rate`, or at its end; with `where` the rows of a seed that hold all of it are read.
    """

    model_config = ConfigDict(extra="forbid")

    study: str
    arm: str
    against: str | None = None
    key: str
    ratio: bool = False
    where: dict[str, Any] | None = None
    updates: int | None = None
    photo_rate: float | None = None
    expect: Literal["above", "below"]
    than: float = 0.0


class Claim(BaseModel):
    """One sentence, what shows it (`measured` or `test`, a `file::name`), and what it leaves open.

    Without either nothing has measured it.
    """

    model_config = ConfigDict(extra="forbid")

    id: str
    claim: str
    limits: str = ""
    measured: Measured | None = None
    test: str | None = None

    @model_validator(mode="after")
    def one_kind(self) -> Claim:
        if self.measured and self.test:
            raise ValueError(f"claim {self.id} is measured or tested, not both")
        if self.measured and self.measured.where and self.measured.against:
            raise ValueError(f"claim {self.id}: `against` compares training runs, not `where`")
        return self


@dataclass(frozen=True)
class Verdict:
    """What the records say: `found` over seeds (None if nothing was measured) and the word."""

    found: SeedInterval | None
    word: str


@cache
def claims() -> tuple[Claim, ...]:
    """The ledger. Raises: DirectAlignError for an id that is there twice."""
    found = tuple(Claim(**each) for each in yaml.safe_load(FILE.read_text(encoding="utf-8")))
    ids = [each.id for each in found]
    for name in ids:
        if ids.count(name) > 1:
            raise DirectAlignError(f"{FILE.name}: id {name} is there twice; give each its own")
    return found


def verdict(claim: Claim, records: Path) -> Verdict:
    """Judge a claim by the recorded rows, `records/STUDY.jsonl`."""
    if claim.test:
        return Verdict(None, "tested")
    if claim.measured is None:
        return Verdict(None, "not shown")
    found = effect(claim.measured, read_rows(records / f"{claim.measured.study}.jsonl"))
    if found is None:
        raise DirectAlignError(f"{FILE.name}: no row of the record fits claim {claim.id}")
    low, high = found["low"], found["high"]
    if low is None or high is None or found["n"] < FEW_SEEDS:
        return Verdict(found, "not shown")
    above = claim.measured.expect == "above"
    beyond, short = (operator.gt, operator.lt) if above else (operator.lt, operator.gt)
    than = claim.measured.than
    for word, side in (("holds", beyond), ("refuted", short)):
        if side(low, than) and side(high, than):
            return Verdict(found, word)
    return Verdict(found, "not shown")


def effect(measured: Measured, rows: Rows) -> SeedInterval | None:
    """The claimed number with its interval over seeds; None where the record lacks it."""
    if measured.where is not None:
        found = rows.where(arm=measured.arm, **measured.where)
        if len(found) != len(found.seeds()):
            raise DirectAlignError(f"{FILE.name}: {measured.where} leaves several rows of a seed")
        return over(found, measured.key)
    pick = _pick(measured)
    if measured.against is None:
        read = [pick(run) for run in rows.runs.runs_of(measured.arm)]
        return over([row for row in read if row is not None], measured.key)
    pairs = rows.runs.pairs(measured.arm, measured.against, pick)
    return (cost_ratio if measured.ratio else difference)(pairs, measured.key)


def _pick(measured: Measured) -> Pick:
    if measured.updates is not None:
        return after(measured.updates)
    if measured.photo_rate is not None:
        level = measured.photo_rate
        return lambda run: at_level(run, "photo_rate", level)
    return lambda run: run[-1]


def table(records: Path) -> str:
    """The ledger as Markdown: one anchored line per claim."""
    lines = []
    for claim in claims():
        found = verdict(claim, records)
        lines.append([f'<a id="{claim.id}"></a>{claim.claim}', *_evidence(claim, found)])
    columns = ["claim", "verdict", "number (95 % interval)", "claimed", "seeds", "shown by", "open"]
    return Table(columns, lines).markdown()


def _evidence(claim: Claim, found: Verdict) -> list[str]:
    word = f"**{found.word}**"
    if claim.test:
        file = claim.test.partition("::")[0]
        return [word, "", "", "", f"[`{Path(file).name}`](../{file})", claim.limits]
    measured = claim.measured
    if measured is None or found.found is None:
        return [word, "", "", "", "nothing yet", claim.limits]
    side = f"{measured.expect} {measured.than:g}"
    compared = measured.against is not None and not measured.ratio
    value = (signed if compared else with_interval)(found.found, 3)
    study = f"[{measured.study}](findings/{measured.study}.md)"
    return [word, value, side, str(found.found["n"]), study, claim.limits]


def unlinked(text: str) -> Iterator[str]:
    """Sentences of a README about results without a link to a row of the ledger.

    Tables of recorded numbers, code and picture captions are left out. Raises: DirectAlignError
    for a link to a row that is not there.
    """
    known = {each.id for each in claims()}
    for name in re.findall(r"claims\.md#([\w-]+)", text):
        if name not in known:
            raise DirectAlignError(f"README.md links claim {name}, which {FILE.name} lacks")
    text = re.sub(r"<!-- numbers: .*?<!-- /numbers -->", "", text, flags=re.DOTALL)
    text = re.sub(r"(?m)^ {4}.*$|!\[.*?\]\(.*?\)", "", text)
    for sentence in re.split(r"(?<=[.:;])\s+|\n\n+|\n(?=[*|#])", text):
        if RESULT.search(re.sub(r"\(.*?\)|`.*?`", "", sentence)) and "claims.md#" not in sentence:
            yield " ".join(sentence.split())
