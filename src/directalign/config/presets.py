"""The published settings (arXiv 2509.06942 and its released recipes), and `half_cost`, our own.

A recipe names one under `preset` and overrides any key.
"""

from __future__ import annotations

from typing import Any, Literal

from .methods import DEFAULT_METHOD

PresetName = Literal["official_flux", "official_pickscore", "official_qwen", "half_cost"]

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


_PHRASES = {
    "positive": ["Natural-lighting", "Detail", "Detailed", "Real"],
    "negative": ["Concept art", "Painting", "Anime", "Flat", "Oil"],
    "order": "cycle",
    "cycle_start": 1,
}

_FLUX: dict[str, Any] = {
    "method": {
        "name": "srpo",
        "form": "relative",
        "control_phrases": _PHRASES,
        "branches": "both",
        "denoise": {"k_pos": {"low_noise": 0.1, "high_noise": 0.25}},
        "inversion": {"k_neg": {"low_noise": 0.3, "high_noise": 0.01}},
        "noise_levels": {
            "kind": "window",
            "schedule_steps": 50,
            "schedule_shift": 3.0,
            "first": 5,
            "last": 25,
            "points": 1000,
            "groundtruth_ratio": 0.9,
            "edge": 5,
        },
        "margin": 0.7,
        "noise": {"source": "rollout", "scope": "shared"},
        "image_mapping": "clamp",
        "embedded_guidance": 3.5,
        "truncate_timestep": 1000,
    },
    "rollout": {
        "num_inference_steps": 25,
        "shift": 3.0,
        "embedded_guidance": 1.0,
        "truncate_timestep": 1000,
    },
    "train": {
        "learning_rate": 5e-6,
        "schedule": "constant",
        "betas": [0.9, 0.999],
        "weight_decay": 1e-4,
        "max_grad_norm": 0.1,
    },
}

PRESETS: dict[str, dict[str, Any]] = {
    "official_flux": _FLUX,
    "official_pickscore": merged(
        _FLUX,
        {
            "reward": {"scale": 5.0},
            "method": {
                "denoise": {"k_pos": {"low_noise": 0.1, "high_noise": 0.5}},
                "inversion": {"k_neg": {"low_noise": 0.6, "high_noise": 0.01}},
                "noise_levels": {"kind": "window", "last": 30},
            },
            "rollout": {"embedded_guidance": 2.0},
        },
    ),
    # The released code also limits the second injection's step to the length of the first one's.
    "official_qwen": merged(
        _FLUX,
        {
            "reward": {"scale": 5.0},
            "method": {
                "control_phrases": {
                    "negative": ["Concept art", "Painting", "Anime"],
                    "cycle_start": 0,
                },
                "branches": "denoise",
                "injections": 2,
                "denoise": {"k_pos": {"low_noise": 0.0, "high_noise": 0.0}},
                "inversion": {"k_neg": {"low_noise": 0.0, "high_noise": 0.0}},
                "noise_levels": {
                    "kind": "window",
                    "schedule_shift": 1.0,
                    "last": 40,
                    "points": 100,
                    "groundtruth_ratio": 0.6,
                    "edge": 2,
                },
                "margin": None,
                "discount_shift": 3.0,
                "noise": {"scope": "fixed"},
                "image_mapping": "min_max",
                "embedded_guidance": None,
            },
            "rollout": {
                "num_inference_steps": 26,
                "shift": 1.0,
                "embedded_guidance": None,
                "cfg_scale": 4.0,
            },
            "train": {"learning_rate": 3e-6, "max_grad_norm": 50.0},
        },
    ),
    # Ours: one denoise branch instead of the two of official_flux. Half the official k_pos of
    # denoise and half the official k_neg of inversion give half the absolute and half the relative
    # weight of their sum, for half the calls (docs/method.md, section 4). Exact except that the
    # inversion branch evaluates its ramp a tenth of the window lower: 0.015 of absolute weight.
    "half_cost": merged(
        _FLUX,
        {
            "method": {
                "branches": "denoise",
                "denoise": {
                    "k_pos": {"low_noise": 0.05, "high_noise": 0.125},
                    "k_neg": {"low_noise": 0.15, "high_noise": 0.005},
                },
                "inversion": {"k_neg": {"low_noise": 0.0, "high_noise": 0.0}},
            }
        },
    ),
}
