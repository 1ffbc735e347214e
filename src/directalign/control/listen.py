"""Teach a reward to listen: fine-tune it on wanted and unwanted pictures until the control words tell them apart (see `hearing`).

A quarter of the captions is held out, with all pictures of them: they say when to stop, and the measures before and after are taken
on them alone. The best weights on them are kept. What comes out is a complete folder that a recipe names as reward.path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .. import config
from ..interfaces import Reward
from ..order import permutation
from ..types import DirectAlignError, Images
from . import nuisance
from .direction import batches, is_vectors, measure
from .examples import Examples
from .hearing import Objective, Seen, Side, Weights, length_of_pull, margin_of, remember
from .students import Part, Student, learner_of, part_of, student_of

HELD_OUT = 0.25
VIEWS = 4
"""Casts that each picture is shown under where image features are computed once."""
WARMUP = 20
RATES: dict[Part, float] = {"text": 1e-5, "lora": 1e-4}


@dataclass(frozen=True)
class Lessons:
    """How long and how hard a reward is taught.

    `gap` is the length of pos − neg that is aimed at, in score units per unit of image feature; None keeps the reward's own, and
    `Weights(hold=0)` lets it go. `light` is the share of more or less light that pos − neg shall not answer to: 0 where the wanted
    pictures are themselves lighter or darker. `part` and `learning_rate` None take what `part_of` and `RATES` say.
    """

    part: Part | None = None
    num_steps: int = 300
    batch_size: int = 16
    learning_rate: float | None = None
    gap: float | None = None
    light: float = 0.0
    seed: int = 0
    check_every: int = 20
    patience: int = 5
    weights: Weights = field(default_factory=Weights)


@dataclass(frozen=True)
class Taught:
    """A reward that was taught, its measures before and after on held-out captions, and which update it is the state of."""

    reward: Reward
    before: dict[str, Any]
    after: dict[str, Any]
    best_step: int
    stopped_at: int
    held_out: int


def teach(reward: Reward, examples: Examples, words: config.ControlPhrases, lessons: Lessons) -> Taught:
    """Fine-tune `reward` in place; the same arguments give the same weights.

    Raises: DirectAlignError for words of one side only, too few captions, or a reward that cannot be taught.
    """
    if not words.positive or not words.negative:
        raise DirectAlignError("--positive, --negative: words of both sides are needed; give one of each, or a recipe that has them")
    lessons = replace(lessons, part=part_of(reward, lessons.part))
    learn, held = split(examples, lessons.seed)
    before, learner = measure(reward, held, words), learner_of(reward)
    sides, checked = remember(learner, learn, words), remember(learner, held, words)
    objective = Objective(words, lessons.weights, margin_of(*sides), _gap(learner, sides[1], words, lessons), examples.paired)
    assert lessons.part is not None
    student = student_of(reward, lessons.part, lessons.seed)
    best_step, stopped_at = _fit(student, objective, sides, checked, lessons)
    settled = student.settle()
    return Taught(settled, before, measure(settled, held, words), best_step, stopped_at, len(held.wanted))


def _gap(reward: Reward, side: Side, words: config.ControlPhrases, lessons: Lessons) -> float | None:
    own = length_of_pull(reward, side, words)
    if own is None and lessons.gap is not None:
        raise DirectAlignError(f"--gap {lessons.gap}: {reward.name} has no image features of one vector an image, so its gap cannot be held: leave --gap out")
    if own == 0:
        raise DirectAlignError("--positive, --negative: the reward reads both sides alike; use other words, or fewer before a long caption that is cut")
    return own if lessons.gap is None else lessons.gap


def split(examples: Examples, seed: int) -> tuple[Examples, Examples]:
    """Examples to learn from, and held-out ones: no caption is in both.

    Raises: DirectAlignError where a side would be empty.
    """
    captions = sorted({*examples.wanted_prompts, *examples.unwanted_prompts})
    order = permutation(len(captions), seed, 0, "listen")
    held = {captions[i] for i in order[: max(2, round(HELD_OUT * len(captions)))]}
    parts = _only(examples, lambda caption: caption not in held), _only(examples, lambda caption: caption in held)
    if any(len(set(texts)) < 2 for part in parts for texts in (part.wanted_prompts, part.unwanted_prompts)):
        raise DirectAlignError(
            f"--images: {len(captions)} different captions; each side needs more of them to learn from and to hold out, eight or so at least"
        )
    return parts


def _only(examples: Examples, chosen: Callable[[str], bool]) -> Examples:
    sides = [[i for i, caption in enumerate(each) if chosen(caption)] for each in (examples.wanted_prompts, examples.unwanted_prompts)]
    prompts = [tuple(each[i] for i in places) for each, places in zip((examples.wanted_prompts, examples.unwanted_prompts), sides, strict=True)]
    return Examples(examples.wanted[sides[0]], examples.unwanted[sides[1]], prompts[0], prompts[1], examples.paired and sides[0] == sides[1])


# --- the fit ------------------------------------------------------------------------------------------------------------


def _fit(student: Student, objective: Objective, sides: Sequence[Side], held: Sequence[Side], lessons: Lessons) -> tuple[int, int]:
    """Update the student until its held-out loss no longer falls; its best weights are put back. Returns the best and the last update."""
    generator = torch.Generator().manual_seed(lessons.seed)
    views = [_views(student, side, lessons.light, generator) for side in sides]
    optimizer = torch.optim.AdamW(student.parameters, lr=_rate(lessons), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, lessons.num_steps))
    best, best_step, kept = _held_out_loss(student, objective, held), 0, _weights(student)
    step = 0
    for step in range(1, lessons.num_steps + 1):
        _update(student, objective, [view(places) for view, places in zip(views, _drawn(sides, objective, lessons, generator), strict=True)], optimizer)
        schedule.step()
        if step % lessons.check_every == 0 or step == lessons.num_steps:
            loss = _held_out_loss(student, objective, held)
            if loss < best:
                best, best_step, kept = loss, step, _weights(student)
            elif step - best_step >= lessons.patience * lessons.check_every:
                break
    _put_back(student, kept)
    return best_step, step


def _rate(lessons: Lessons) -> float:
    assert lessons.part is not None
    return RATES[lessons.part] if lessons.learning_rate is None else lessons.learning_rate


def _share(step: int, num_steps: int) -> float:
    """Of the learning rate at a step: a short rise, then a straight fall to 0."""
    return min(1.0, (step + 1) / min(WARMUP, num_steps // 5 + 1)) * (1 - step / num_steps)


def _update(student: Student, objective: Objective, batch: Sequence[Seen], optimizer: torch.optim.Optimizer) -> None:
    loss = objective(student, *batch)
    if not math.isfinite(loss.item()):
        raise DirectAlignError(f"the loss is {loss.item()}: choose a smaller --learning-rate")
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters, 1.0)
    optimizer.step()
    student.forget()


def _drawn(sides: Sequence[Side], objective: Objective, lessons: Lessons, generator: torch.Generator) -> Iterator[list[int]]:
    """Places of a batch in each side: the same ones where they are paired."""
    places = torch.randint(len(sides[0].prompts), (lessons.batch_size,), generator=generator).tolist()
    yield places
    yield places if objective.paired else torch.randint(len(sides[1].prompts), (lessons.batch_size,), generator=generator).tolist()


def _views(student: Student, side: Side, light: float, generator: torch.Generator) -> Callable[[list[int]], Seen]:
    """Batches of one side by places: from features computed once where the student sees alike all along, else computed anew."""

    def anew(places: list[int]) -> Seen:
        images = side.images[places]
        return Seen(side, places, student.encode(images), student.encode(nuisance.draw(images, generator, light)))

    if not student.sees_alike:
        return anew
    with torch.no_grad():
        plain = _encoded(student, side.images)
        if not is_vectors(plain):
            return anew
        changed = torch.stack([_encoded(student, nuisance.draw(side.images, generator, light)) for _ in range(VIEWS)])
    return lambda places: Seen(side, places, plain[places], changed[torch.randint(VIEWS, (len(places),), generator=generator), places])


def _encoded(student: Student, images: Images) -> Any:
    parts = [student.encode(part) for part, _ in batches(images, [""] * len(images))]
    return torch.cat(parts) if is_vectors(parts[0]) else parts


@torch.no_grad()
def _held_out_loss(student: Student, objective: Objective, held: Sequence[Side]) -> float:
    """Of all held-out pictures, without casts, mean over batches."""
    length = min(len(side.prompts) for side in held)
    losses = []
    for start in range(0, length, 32):
        places = list(range(start, min(start + 32, length)))
        losses.append(objective(student, *(Seen(side, places, student.encode(side.images[places])) for side in held)).item() * len(places))
        student.forget()
    return sum(losses) / length


def _weights(student: Student) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in student.parameters]


@torch.no_grad()
def _put_back(student: Student, weights: Sequence[Tensor]) -> None:
    for parameter, kept in zip(student.parameters, weights, strict=True):
        parameter.copy_(kept)
