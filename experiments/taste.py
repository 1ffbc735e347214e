"""From votes to a model: is a simulated voter with a hidden taste satisfied after two rounds?

Expected beforehand: Flow-DPO on a few dozen decided pairs raises the voter's preference for the
tuned model to 65 % or more in two rounds. The chain is that of `directalign taste`. The voter gets
what a browser gets, the pixels of two images in random order, prefers the one that the toy world's
style judge calls a photo with more certainty, and calls a tie where both are alike. It votes on
pairs of the training prompts, then on base and tuned model on held-out prompts and other seeds. The
control's votes on the pairs are the voter's with sides by a coin; it judges as the voter does.

Rate, beta and length were chosen on seed 100, which is not among those recorded.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

import torch
from PIL import Image

from directalign import taste
from directalign.arena.session import open_arena
from directalign.config.load import load_run
from directalign.data.prompts import read_prompts
from directalign.evaluation.candidates import load_images
from directalign.evaluation.eval_prompts import Pairs as PromptSeeds
from directalign.evaluation.eval_prompts import PromptRow, samples_of_rows
from directalign.stats import grouped_mean
from directalign.toyworld.judges import WorldJudge, load_judge
from directalign.training import train_once

from .asking import judged
from .plots import Panel, curves, lines_along
from .rows import Row, Rows
from .runner import flat, piece, unflat
from .tables import DASH, Column, Table, means, with_interval

ARMS = {"voter": "votes by the taste", "coin": "votes by a coin"}
ROUNDS = {"voter": 2, "coin": 1}
RUNS = [*product(["voter"], range(5)), *product(["coin"], range(2))]
PAIRS, COMPARED = 128, 102
ALIKE = 0.05
"""Photo probabilities as close as this are a tie."""
SATISFIED = 0.65
SETTINGS = (
    *("rollout.num_inference_steps=8", "rollout.embedded_guidance=1.0"),
    *("model.lora.rank=8", "model.lora.alpha=8", "method.beta=500", "data.batch_size=8"),
    *("train.num_steps=40", "train.learning_rate=2e-3", "train.schedule=linear"),
)
COLUMNS = (
    Column("decided", "pairs decided", 0, interval=False),
    Column("won", "preferred to the base", 0, percent=True),
    Column("photo_rate", "photo rate", 2),
    Column("content", "content", 2),
    Column("color_drift", "colour drift"),
)
Value = Callable[[bytes], float]
"""What a voter likes of an image file: larger is better."""


def measure(out: Path, quick: bool) -> list[Row]:
    """Rows of kind `round`: the base model (step 0), and the tuned model after every round."""
    found, sizes = [], (96, 4) if quick else (PAIRS, COMPARED)
    short = ("train.num_steps=2", "rollout.num_inference_steps=2") if quick else ()
    for arm, seed in RUNS[-1:] if quick else RUNS:
        folder = out / "tastes" / f"{arm}-seed{seed}"
        given = (*SETTINGS, *short)
        taste.start("world:flux", "world", folder, *sizes, seed=seed, overrides=given)
        settings = load_run(folder / taste.RECIPE)
        make = partial(rounds, arm, seed, folder)
        found += piece(out, f"{arm}-seed{seed}", settings, make)
    return found


def rounds(arm: str, seed: int, folder: Path) -> Iterator[Row]:
    """Vote, train and compare, round after round."""
    judge = load_judge()
    likes = partial(photo_probability, judge)
    coin = random.Random(f"coin {seed}") if arm == "coin" else None
    named = {"study": "taste", "kind": "round", "arm": arm, "title": ARMS[arm], "seed": seed}
    for number in range(1, ROUNDS[arm] + 1):
        this = taste.Round(folder, number)
        candidates, database = taste.make_candidates(this, 32), this / "votes.sqlite"
        vote(database, candidates, likes, coin)
        overrides = taste.prepare_training(this)
        train_once(load_run(folder / taste.RECIPE, overrides), this / "run", overrides)
        images = taste.make_comparison(this)
        vote(this / "after.sqlite", images, likes)
        models, votes = taste.answers(this / "after.sqlite")
        won = [0.5 if v.winner is None else float(v.winner == models[1]) for v in votes]
        about = {"decided": taste.num_decided(database), "votes": len(votes)}
        rate = flat("won", grouped_mean(won, [v.prompt for v in votes]).as_dict())
        satisfied = float(rate["won"] >= SATISFIED and rate["won_low"] > 0.5)
        numbers = [numbers_of(judge, images, model, folder) for model in models]
        if number == 1:
            yield {**named, "step": 0, **numbers[0]}
        yield {**named, "step": number, **about, **rate, "satisfied": satisfied, **numbers[1]}
        print(f"taste: {arm}, seed {seed}, round {number}: {rate['won']:.3f}", flush=True)


def vote(database: Path, images: Path, likes: Value, coin: random.Random | None = None) -> None:
    """Answer every question of an arena, or the rest of them; a `coin` exchanges the sides."""
    arena = open_arena(database, [images], "vote")
    voter = arena.join("Voter", "0" * 32)
    state = arena.state(voter)
    while state["next"]:
        task = state["next"][0]
        left, right = (likes(arena.image(token) or b"") for token in task["images"])
        left, right = (right, left) if coin and coin.random() < 0.5 else (left, right)
        side = "tie" if abs(left - right) <= ALIKE else "left" if left > right else "right"
        state = arena.vote(voter, f"request {state['done']}", task["task"], side)
    arena.store.close()


def photo_probability(judge: WorldJudge, file: bytes) -> float:
    """How certain the style judge is that a PNG file is a photo."""
    pixels = bytearray(Image.open(io.BytesIO(file)).tobytes())
    image = torch.frombuffer(pixels, dtype=torch.uint8).view(1, 64, 64, 3).permute(0, 3, 1, 2)
    with torch.no_grad():
        return float(judge.style(image.float() / 255)["style"].softmax(1)[0, 0])


def numbers_of(judge: WorldJudge, comparison: Path, model: str, folder: Path) -> Row:
    """What the judges say of a model's images in a comparison, and its colour drift."""
    prompts = [PromptRow(prompt) for prompt in read_prompts(folder / taste.HELD_OUT)]
    samples = samples_of_rows(prompts, taste.load(folder).compared, 1)
    pairs = PromptSeeds(tuple(e.prompt for e in samples), tuple(e.seed for e in samples))
    return judged(judge, load_images(comparison, model, samples), pairs)


def tables(rows: Rows) -> dict[str, Table]:
    lines = []
    for arm, title in rows.arms.items():
        for step in sorted({row["step"] for row in rows.where(arm=arm)}):
            found = rows.at(arm, step)
            sure = f"{sum(int(row.get('satisfied', 0)) for row in found)} of {len(found)}"
            lines.append([title, str(step), *means(COLUMNS, found), sure if step else DASH])
    columns = ["model", "rounds", *(column.title for column in COLUMNS), "satisfied"]
    each = [
        [title, str(seed), *(_won(rows.run(arm, seed), step) for step in (1, 2))]
        for arm, title in rows.arms.items()
        for seed in rows.seeds(arm)
    ]
    return {
        "rounds": Table(columns, lines),
        "seeds": Table(["model", "seed", "after round 1", "after round 2"], each),
    }


def _won(run: Rows, step: int) -> str:
    """How often a seed's model is preferred, with the interval over prompts."""
    return next((with_interval(unflat(row, "won"), 0, True) for row in run.where(step=step)), DASH)


def draw(rows: Rows, folder: Path) -> list[Path]:
    panels = [
        Panel(column.title.capitalize(), "rounds", "", lines_along(rows, "step", column.key))
        for column in COLUMNS[2:]
    ]
    return [curves(folder / "taste.png", "From votes to a model", panels, "Means over seeds")]
