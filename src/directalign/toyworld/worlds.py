"""The toy worlds by name, which is the prefix of their models: world:flux, world2:reward_tint.

`world` has drawn shapes; a base model of it does what control phrases ask. `world2` has things that
artists drew; there words do not select a style, except in `flux_promptable`, whose transformer
`flux` shares: only the text encoders differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DirectAlignError
from . import drawings, scenes

Parts = Mapping[str, str]


@dataclass(frozen=True)
class World:
    """`scenes`: the module that draws it. `assets`: the folder of its weights. `pipelines`: which
    shipped folder stands behind each part of each pipeline; a LoRA in a pipeline's own folder is
    merged into its transformer."""

    name: str
    title: str
    scenes: Any
    assets: Path
    pipelines: Mapping[str, Parts]
    rewards: tuple[str, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """The names after the prefix."""
        return *self.pipelines, *self.rewards

    @property
    def judged(self) -> tuple[str, ...]:
        """What its judge answers of an image (`judges.WorldJudge`)."""
        styles = (f"style_{style}" for style in self.scenes.JUDGED_STYLES)
        rejects = len(self.scenes.JUDGED_STYLES) > len(self.scenes.STYLES)
        lenient = ("photo_among_styles",) if rejects else ()
        content = self.scenes.CONTENT
        return "photo_rate", "content", "photo_and_content", *lenient, *content, *styles


def _flux(name: str = "flux") -> Parts:
    own = ("transformer", "text_encoder", "text_encoder_2", "scheduler")
    shared = {"tokenizer": "clip_tokenizer", "tokenizer_2": "t5_tokenizer", "vae": "autoencoder"}
    return {part: f"{name}/{part}" for part in own} | shared


def _sd(name: str) -> Parts:
    shared = {"text_encoder": "sd/text_encoder", "tokenizer": "clip_tokenizer"}
    own = {"unet": f"{name}/unet", "scheduler": f"{name}/scheduler"}
    return own | shared | {"vae": "autoencoder"}


_HERE = Path(__file__).parent
WORLDS = {
    "world": World(
        "world",
        "the toy world",
        scenes,
        _HERE / "assets",
        {"flux": _flux(), "sd": _sd("sd"), "sd_v": _sd("sd_v"), "flux_turbo": _flux()},
        ("reward", "second_reward", "reward_latent"),
    ),
    "world2": World(
        "world2",
        "the second toy world",
        drawings,
        _HERE / "assets2",
        {
            "flux": {**_flux(), "transformer": "flux_promptable/transformer"},
            "flux_promptable": _flux("flux_promptable"),
            "sd": _sd("sd"),
            "sd_v": _sd("sd_v"),
        },
        (
            *("reward_tint", "reward_smooth", "reward_saturation", "reward_exposure"),
            *("reward_tint_rho25", "reward_tint_rho50", "reward_tint_rho100", "reward_vlm"),
        ),
    ),
}


def captions_of(source: str) -> list[str] | None:
    """The prompts of a toy world: its training captions for world2, others for world2:test.

    None for other sources. Raises: DirectAlignError for an unknown list of a world.
    """
    name, _, part = source.partition(":")
    if name not in WORLDS:
        return None
    sets = WORLDS[name].scenes.CAPTION_SETS
    if (part or "train") not in sets:
        known = ", ".join(f"{name}:{each}" for each in sets)
        raise DirectAlignError(f"no prompts {source!r}: choose {known}")
    return sets[part or "train"]()


def world_of(path: str) -> World | None:
    """The world of an embedded model's address such as world:flux; None for other paths."""
    prefix, colon, _ = path.partition(":")
    return WORLDS.get(prefix) if colon else None
