"""`directalign directions`: the images of before and after, or of before and probed, become a file that `reward.project` takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import config
from ..control.asked import OPTION, reward_settings
from ..control.bias_probes import PROBES
from ..control.examples import load_examples
from ..control.exploit import Exploit, Features, Rows, features_of, fit, joined, measured, pulls, wanted_by_examples, wanted_by_words
from ..interfaces import Reward
from ..prompts import read_prompts
from ..rewards import load_reward
from ..rewards.projection import Directions, fingerprint, write_directions
from ..types import DirectAlignError
from .pictures import Pictures, paired, pictures_of


@dataclass(frozen=True)
class Request:
    """What the command is asked for: one of three sources of shifts, and what is to be kept.

    `before`, `after`: folders of images or runs (a run's base model, a run's trained weights). `probes` (names of `bias_probes.PROBES`)
    change the images of `before`, each for `components` directions. `prompts` (a list as data.prompts) needs no image: the pull that
    all texts have in common is the shift. `keep`: control phrases and labelled examples whose difference is taken out.
    """

    reward: str
    before: Path | None
    after: Path | None
    probes: tuple[str, ...] = ()
    prompts: str | None = None
    keep: config.ControlPhrases = field(default_factory=config.ControlPhrases)
    keep_examples: str | None = None
    components: int = 1
    num_pairs: int = 64


def make_directions(request: Request, out: Path) -> Exploit:
    """Fit the directions and write them to `out`; what they hold.

    Raises: DirectAlignError for options that do not fit together, images that do not, and a reward that reads no `project`.
    """
    _check(request)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reward: Any = load_reward(_settings(request.reward), device, OPTION)
    shifts = _pulled(request, reward, device) if request.prompts is not None else _moved(request, reward, device)
    wanted = _wanted(request, reward, shifts)
    rows = joined([fit(shifts.before, after, request.components, wanted) for after in shifts.after])
    many = len(shifts.after)
    found = measured(reward, shifts.before.repeat(many, 1), torch.cat(shifts.after), rows, wanted, shifts.scored and shifts.scored * many)
    write_directions(out, Directions(rows.float(), fingerprint(reward.model), _made(request, found)))
    return found


@dataclass(frozen=True)
class Shifts:
    """Features before, and after each change; the prompts they belong to, and those under which what was gained can be told."""

    before: Features
    after: list[Features]
    prompts: tuple[str, ...] | None
    scored: tuple[str, ...] | None


def _moved(request: Request, reward: Reward, device: str) -> Shifts:
    before, changed = _sides(request)
    here, there = features_of(reward, before.images, device), [features_of(reward, images, device) for images in changed]
    return Shifts(here, there, before.prompts, before.prompts)


def _pulled(request: Request, reward: Reward, device: str) -> Shifts:
    """From nowhere to where each prompt pulls, under every wanted phrase."""
    assert request.prompts is not None
    prompts, like = tuple(read_prompts(request.prompts)), features_of(reward, [torch.zeros(3, 32, 32)], device)
    pulled = torch.cat([pulls(reward, prompts, phrase, like) for phrase in request.keep.positive or [""]])
    return Shifts(torch.zeros_like(pulled), [pulled], prompts, None)


def _settings(text: str) -> config.Clip | config.Siglip:
    """The reward as it sees without any projection."""
    settings = reward_settings(text)
    if not isinstance(settings, (config.Clip, config.Siglip)):
        raise DirectAlignError(f"{OPTION} {text}: {settings.name} takes no project: only clip and siglip judge by one feature vector per image")
    return settings.model_copy(update={"project": None})


def _check(request: Request) -> None:
    unknown = [name for name in request.probes if name not in PROBES]
    if unknown:
        raise DirectAlignError(f"--probe {unknown[0]}: no such probe; there are {', '.join(PROBES)}")
    if request.prompts is not None and (request.before or request.after or request.probes):
        raise DirectAlignError("--prompts: takes the common pull of texts and needs no image; leave --before, --after and --probe out")
    if request.probes and (request.after is not None or request.before is None):
        raise DirectAlignError("--probe: changes the images of --before itself; give --before and leave --after out")
    if not request.probes and request.after is None and request.prompts is None:
        raise DirectAlignError("--after: missing; give images of the trained model, or --probe to change those of --before, or --prompts to go by texts alone")
    if bool(request.keep.positive) != bool(request.keep.negative):
        raise DirectAlignError("--keep-words and --against: what is kept is the difference between the two; give both")


def _sides(request: Request) -> tuple[Pictures, list[list[Tensor]]]:
    """The images of before, and of each change the images of after, in the same order."""
    source = request.before or request.after
    assert source is not None
    before = pictures_of(source, True, request.num_pairs, "--before" if request.before else "--after")
    if request.after is None:
        return before, [[PROBES[name](image[None])[0] for image in before.images] for name in request.probes]
    here, after = paired(before, pictures_of(request.after, False, request.num_pairs, "--after"))
    return here, [after.images]


def _wanted(request: Request, reward: Reward, shifts: Shifts) -> Rows | None:
    """What is not to be taken away from the reward, None where nothing was named."""
    rows = []
    if request.keep.positive:
        if shifts.prompts is None:
            raise DirectAlignError("--keep-words: is read together with the images' prompts; put a .txt beside each image, or use --keep-examples")
        rows.append(wanted_by_words(reward, shifts.prompts, request.keep, shifts.before))
    if request.keep_examples is not None:
        rows.append(wanted_by_examples(reward, load_examples(request.keep_examples, "--keep-examples"), shifts.before.device))
    return joined(rows) if rows else None


def _made(request: Request, found: Exploit) -> dict[str, str]:
    """How the directions came about, for the head of their file."""
    how = request.prompts or ", ".join(request.probes) or f"{request.before or request.after} to {request.after}"
    kept = [*request.keep.positive, "against", *request.keep.negative] if request.keep.positive else []
    told = {"from": how, "images": str(found.images), "kept": ", ".join(filter(None, [" ".join(kept), request.keep_examples])), "reward": request.reward}
    return {name: text for name, text in told.items() if text}
