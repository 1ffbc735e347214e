"""Output of `directalign reward phrases`.

phrases.json, a YAML section per suggested form, and phrases.html, a self-contained page in the
style of the run report. All text is escaped.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup
from PIL import Image

from ..io.atomic import write_text
from ..io.tensors import to_pixels
from ..methods.objective_math import from_absolute_relative
from ..report.images import data_uri
from ..report.page import TEMPLATES as REPORT_TEMPLATES
from ..report.page import environment
from .images import PROBES, Examples
from .phrases import PairStats, PhraseReport, Suggestion

TEMPLATES = Path(__file__).parent / "templates"
PAGE, DATA = "phrases.html", "phrases.json"
MAX_IMAGES = 8
"""Images per side on the page."""


def write_report(found: PhraseReport, examples: Examples, out: Path, **source: str) -> Path:
    """Write phrases.json, the recipe sections and phrases.html into `out`; returns the page.

    `source`: `reward`, `images` and `command` that were given, for the head of the page.
    """
    out.mkdir(parents=True, exist_ok=True)
    phrases, pairs, suggestion = (
        map(asdict, found.phrases),
        map(_pair, found.pairs),
        found.suggestion,
    )
    sections = recipes(suggestion)
    data = {
        **source,
        "wanted": len(examples.wanted),
        "unwanted": len(examples.unwanted),
        "paired": examples.paired,
        "phrases": list(phrases),
        "pairs": list(pairs),
        "all_given": found.all_given and _pair(found.all_given),
        "suggestion": suggestion and {**asdict(suggestion), "recipes": sections},
        "warnings": found.warnings,
        "tokens_read": found.limit,
        "prompts": found.prompts,
    }
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(out / DATA, text + "\n")
    for form, section in sections.items():
        write_text(out / f"{form}.yaml", as_yaml(section))
    write_text(out / PAGE, _page(found, examples, data))
    return out / PAGE


def _pair(pair: PairStats) -> dict[str, Any]:
    return {**asdict(pair), "warnings": pair.warnings}


def recipes(found: Suggestion | None) -> dict[str, dict[str, Any]]:
    """`method` sections for a recipe by form; without those whose settings are unknown."""
    if found is None:
        return {}
    phrases = {"positive": list(found.pair.positive), "negative": list(found.pair.negative)}
    sections: dict[str, dict[str, Any]] = {}
    if found.tolerance is not None:  # one branch, all phrases at every update
        sections["anchored"] = {
            "form": "anchored",
            "branches": "denoise",
            "control_phrases": {**phrases, "order": "average"},
            "anchor": {"tolerance": found.tolerance},
        }
    if found.mu is not None:  # the same ramp in both branches
        sections["relative"] = {
            "form": "relative",
            "control_phrases": {**phrases, "order": "cycle"},
            "denoise": ramp(found.mu),
            "inversion": ramp(found.mu),
        }
    return sections


def ramp(mu: float) -> dict[str, dict[str, float]]:
    """k_pos and k_neg of a branch: nu = 1, mu from 0 (low noise) to twice its mean (high noise)."""
    weights = {"low_noise": 0.0, "high_noise": 2 * mu}
    ends = {end: from_absolute_relative(weight, 1.0) for end, weight in weights.items()}
    return {
        name: {end: round(float(pair[i]), 3) + 0.0 for end, pair in ends.items()}
        for i, name in enumerate(("k_pos", "k_neg"))
    }


def as_yaml(section: Mapping[str, Any]) -> str:
    """A `method` section as YAML for a recipe."""
    return yaml.safe_dump(
        {"method": dict(section)},
        sort_keys=False,
        allow_unicode=True,
        width=1000,
        default_flow_style=None,
    )


def as_override(section: Mapping[str, Any]) -> str:
    """The same for the command line: --set 'method={...}', quoted for a shell."""
    return f"--set {shlex.quote(f'method={json.dumps(section, ensure_ascii=False)}')}"


def _page(found: PhraseReport, examples: Examples, data: Mapping[str, Any]) -> str:
    ends = [abs(end) for each in found.phrases for end in (each.lift.low, each.lift.high)]
    original = examples.unwanted[:1]
    probed = {name: probe(original)[0] for name, probe in PROBES.items()}
    gaps = [each or [None] * MAX_IMAGES for each in found.gap_by_image]
    sections = recipes(found.suggestion).items()
    return (
        environment(TEMPLATES)
        .get_template("phrases.html.j2")
        .render(
            style=Markup((REPORT_TEMPLATES / "style.css").read_text(encoding="utf-8")),
            script=Markup((REPORT_TEMPLATES / "page.js").read_text(encoding="utf-8")),
            data=data,
            found=found,
            widest=max(ends, default=1.0) or 1.0,
            sections=[(form, as_yaml(section), as_override(section)) for form, section in sections],
            images=zip(("Wanted", "Unwanted"), examples.sides, gaps, strict=True),
            limit=MAX_IMAGES,
            probed={"original": original[0], **probed},
            uri=lambda image: data_uri(Image.fromarray(to_pixels(image))),
        )
    )
