"""What `directalign words` leaves: words.json, one YAML piece per suggested form, and words.html, a page that needs no network.

The page takes its style from the report's. All text is escaped; a piece of a recipe is laid over one by hand or by `--set`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from ..report.page import TEMPLATES as REPORT
from ..report.strips import data_uri
from ..types import Images
from .bias_probes import PROBES
from .examples import Examples
from .findings import Findings, as_data, sections
from .words import pair_warnings

TEMPLATES = Path(__file__).parent / "templates"
PAGE, DATA = "words.html", "words.json"
SHOWN = 8
"""Images of each side on the page."""


@dataclass(frozen=True)
class Asked:
    """What was asked, for the head of the page."""

    reward: str
    images: str
    command: str


def write_words(found: Findings, examples: Examples, asked: Asked, out: Path) -> Path:
    """Write words.json, the pieces of recipes and words.html into `out`, made if need be; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    facts = {"reward": asked.reward, "images": asked.images, "command": asked.command, "wanted": len(examples.wanted), "unwanted": len(examples.unwanted)}
    data = {**facts, "paired": examples.paired, **as_data(found)}
    (out / DATA).write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    for form, section in sections(found).items():
        (out / f"{form}.yaml").write_text(fragment(section), encoding="utf-8")
    page = out / PAGE
    page.write_text(_page(found, examples, data), encoding="utf-8")
    return page


def fragment(section: Mapping[str, Any]) -> str:
    """A `method` section as YAML, to be put into a recipe."""
    return yaml.safe_dump({"method": dict(section)}, sort_keys=False, allow_unicode=True, width=1000, default_flow_style=None)


def as_override(section: Mapping[str, Any]) -> str:
    """The same for the command line: --set 'method={...}', quoted for a shell."""
    return f"--set {shlex.quote(f'method={json.dumps(section, ensure_ascii=False)}')}"


def _page(found: Findings, examples: Examples, data: Mapping[str, Any]) -> str:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    style = Markup((REPORT / "style.css").read_text(encoding="utf-8"))
    pieces = [(form, fragment(section), as_override(section)) for form, section in sections(found).items()]
    return environment.get_template("words.html.j2").render(
        style=style,
        data=data,
        found=found,
        widest=max((abs(end) for word in found.words for end in (word.lift.low, word.lift.high)), default=1.0) or 1.0,
        pieces=pieces,
        images=_shown(found, examples),
        probed=_probed(examples),
        pair_warnings=pair_warnings,
    )


def _shown(found: Findings, examples: Examples) -> list[tuple[str, list[tuple[str, str, float | None]]]]:
    """(side, [(image, caption, pos − neg)]) of the first images of both sides."""
    sides = (("Wanted", examples.wanted, examples.wanted_prompts, 0), ("Unwanted", examples.unwanted, examples.unwanted_prompts, 1))
    shown = []
    for name, images, prompts, place in sides:
        gaps = found.gap_by_image[place]
        shown.append((name, [(_uri(images[i]), prompts[i], gaps[i] if gaps else None) for i in range(min(SHOWN, len(images)))]))
    return shown


def _probed(examples: Examples) -> list[tuple[str, str]]:
    """(name, image): the first unwanted image as it is and under each probe."""
    first: Images = examples.unwanted[:1]
    return [("as it is", _uri(first[0])), *((name, _uri(probe(first)[0])) for name, probe in PROBES.items())]


def _uri(image: Float[Tensor, "3 h w"]) -> str:
    return data_uri(Image.fromarray((image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()))
