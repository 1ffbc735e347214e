"""How the arms of the studies look and are called: a method has one colour, one mark and one name in every figure.

Kin have kindred colours (Direct-Align blue, direct gradient warm, policy gradient green). The colours were chosen to stay
apart under full protanopia and deuteranopia too, and every arm has a mark of its own besides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


CONTRAST = 4.5
"""Of text on white, the least that WCAG 2 allows."""


@dataclass(frozen=True)
class Look:
    """What an arm is called and how it is drawn; `weight` is the width of its line in points."""

    title: str
    colour: str
    mark: str
    weight: float = 1.5

    @property
    def ink(self) -> str:
        """The colour for text: as dark as it must be to be read on white."""
        darker = min(1.0, (1.05 / CONTRAST - 0.05) / luminance(self.colour))
        return "#" + "".join(f"{_encoded(darker * value):02x}" for value in linear(self.colour))


LOOKS = {
    "base": Look("base model", "#6b7280", "o"),
    "srpo": Look("SRPO, anchored", "#1239c4", "o", 2.6),
    "srpo_official": Look("SRPO, official", "#3593ff", "D"),
    "direct_align": Look("Direct-Align", "#0a1f55", "s"),
    "refl": Look("ReFL", "#a50600", "^"),
    "draft_k": Look("DRaFT-K", "#ddb703", "v"),
    "draft_lv": Look("DRaFT-LV", "#b67624", "<"),
    "alignprop": Look("AlignProp", "#520000", ">"),
    "drtune": Look("DRTune", "#e181d0", "P"),
    "leapalign": Look("LeapAlign", "#b4024d", "X"),
    "flowbp": Look("FlowBP", "#f19fa9", "p"),
    "flow_grpo": Look("Flow-GRPO", "#1a4931", "h"),
    "grpo_relative": Look("GRPO, relative", "#0db962", "d"),
}
OTHERS = ("#1239c4", "#ffa52d", "#03a978", "#790f29", "#69bdd6", "#70730b", "#5298ff", "#254169")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")


def title_of(name: str) -> str:
    """The name of an arm as it is printed: underscores are spaces where no other name is known."""
    return LOOKS[name].title if name in LOOKS else name.replace("_", " ")


def looks_of(names: Sequence[str], titles: Mapping[str, str]) -> dict[str, Look]:
    """A look for every name of one figure: its own, or the next free one for an arm that only one study knows; `titles` go before ours."""
    strangers = [name for name in dict.fromkeys(names) if name not in LOOKS]
    given = {name: Look(title_of(name), OTHERS[place % len(OTHERS)], MARKS[place % len(MARKS)]) for place, name in enumerate(strangers)}
    return {name: replace(look, title=titles.get(name, look.title)) for name, look in ((name, LOOKS.get(name) or given[name]) for name in names)}


def linear(colour: str) -> list[float]:
    """Light of red, green and blue in [0, 1] of "#rrggbb" (IEC 61966-2-1)."""
    encoded = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in encoded]


def luminance(colour: str) -> float:
    """Relative luminance in [0, 1]."""
    red, green, blue = linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _encoded(value: float) -> int:
    return round(255 * (12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055))
