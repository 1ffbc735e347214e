"""From a reward's name to a folder with that reward, taught: what `directalign listen` does, and what it leaves.

FOLDER/   weights in safetensors, config.json, tokenizer, image settings: complete, as transformers writes and reads it
          listen.json: what it was taught from, with which settings, and the measures before and after on held-out captions
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .. import __version__, config
from ..interfaces import Reward
from ..rewards import load_reward
from ..rewards.clip import ClipReward
from ..rewards.common import Preprocessing
from ..rewards.qwen_vl import SETTINGS, VlmReward
from ..rewards.weights import locate
from ..types import DirectAlignError
from .asked import reward_settings
from .examples import load_examples
from .listen import Lessons, Taught, teach

LIBRARIES = ("torch", "transformers", "peft", "safetensors")


def listen(reward: str, images: str, words: config.ControlPhrases, out: Path, lessons: Lessons, count: int | None = None) -> dict[str, Any]:
    """Teach the reward that `reward` names (see `asked`) with the examples that `images` names (see `examples`), and write it to `out`.

    Returns what listen.json holds. Nothing is written unless all of it is, and no folder is overwritten.

    Raises: DirectAlignError for a folder that is there already, and as `reward_settings`, `load_examples` and `teach` do.
    """
    if out.exists():
        raise DirectAlignError(f"--out {out} exists already: choose a new folder")
    settings = reward_settings(reward)
    examples = load_examples(images, "--images", count=count, seed=lessons.seed)
    taught = teach(load_reward(settings, key="--reward"), examples, words, lessons)
    record = {"reward": settings.model_dump(mode="json"), "images": images, "count": len(examples.wanted), "paired": examples.paired}
    record |= {"words": words.model_dump(mode="json"), "lessons": asdict(lessons), **_found(taught)}
    record["versions"] = {"directalign": __version__, **{name: version(name) for name in LIBRARIES}}
    _write(taught.reward, record, out)
    return record


def _found(taught: Taught) -> dict[str, Any]:
    return {name: getattr(taught, name) for name in ("best_step", "stopped_at", "held_out", "before", "after")}


def _write(reward: Reward, record: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as partial:
        folder = Path(partial) / out.name
        folder.mkdir()
        save(reward, folder)
        (folder / "listen.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        folder.rename(out)


def save(reward: Reward, folder: Path) -> None:
    """Weights, tokenizer and image settings of a reward that was taught."""
    if isinstance(reward, VlmReward):
        reward.model.save_pretrained(folder)
        _copy_reader(reward.settings, folder)
        return
    assert isinstance(reward, ClipReward)
    reward.model.save_pretrained(folder)
    reward.tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_image_settings(reward.preprocessing), indent=1) + "\n", encoding="utf-8")


def _copy_reader(settings: config.Vlm, folder: Path) -> None:
    """What a VLM reads with lies in many files, which differ between its kinds: they are copied as they are."""
    source = locate(settings.processor or settings.path, "--reward", SETTINGS)
    for file in sorted({file for pattern in SETTINGS for file in source.glob(pattern)}):
        if file.is_file() and not (folder / file.name).exists():
            shutil.copy(file, folder / file.name)


def _image_settings(of: Preprocessing) -> dict[str, Any]:
    """As transformers' CLIPImageProcessor reads them."""
    size = {"shortest_edge": of.size} if isinstance(of.size, int) else {"height": of.size[0], "width": of.size[1]}
    steps = {"do_convert_rgb": True, "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
    numbers = {"size": size, "crop_size": {"height": of.crop[0], "width": of.crop[1]}, "image_mean": list(of.mean), "image_std": list(of.std)}
    return {"image_processor_type": "CLIPImageProcessor", **steps, **numbers, "resample": {"bilinear": 2, "bicubic": 3}[of.mode]}
