"""The presets of presets.yaml. A recipe names one under `preset` and overrides any key."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from .methods import DEFAULT_METHOD

_TAGS: dict[str, tuple[str, str | None]] = {
    "method": ("name", DEFAULT_METHOD),
    "reward": ("name", None),
    "noise_levels": ("kind", None),
}
"""Sections that are unions: the key with the tag, and the tag where that key is absent."""


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`below` updated with `above`, section by section; a section with another tag is replaced."""
    result = dict(below)
    for key, value in above.items():
        old = below.get(key)
        tag, default = _TAGS.get(key, ("", None))
        if isinstance(value, dict) and isinstance(old, dict):
            old_tag = old.get(tag, default)
            if tag not in value or old_tag is None or value[tag] == old_tag:
                value = merged(old, value)
        result[key] = value
    return result


_GIVEN = yaml.safe_load((Path(__file__).parent / "presets.yaml").read_text(encoding="utf-8"))
PRESETS: dict[str, dict[str, Any]] = {
    name: merged(_GIVEN["official_flux"], differences) for name, differences in _GIVEN.items()
}
"""The settings of presets.yaml by name."""

if TYPE_CHECKING:
    PresetName = str
else:
    PresetName = Literal[tuple(PRESETS)]
