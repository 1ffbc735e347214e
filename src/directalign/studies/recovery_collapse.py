"""Where the picture is lost: from which noise level on the reward and the judge no longer see it, in either image of the recovery study."""

from __future__ import annotations

from .comparing.statistics import mean_interval
from .running.records import Row, arms_of
from .showing.tables import markdown, number
from collections.abc import Sequence
from itertools import product


JUMP = 0.02
"""The jump that the tables and the collapse are read at; the official span is 0.0214."""
HALF = 0.5
SEEN = {
    "reward": "reward's score",
    "agreement": "reward's ranking",
    "content": "content",
    "style": "style",
    "sharpness": "sharpness",
}
"""What may be lost, by its name in the rows."""
OWN, FRESH = "rollout", "fresh"
NOISES = {OWN: "its own", FRESH: "fresh"}


def of(rows: Sequence[Row], arm: str, image: str, noise: str, sigma: float, jump: float = JUMP) -> list[Row]:
    """The rows of one image at one level, one per seed; `jump` counts for recovered images alone."""
    wanted = {"arm": arm, "image": image, "noise": noise, "sigma": sigma} | ({"jump": jump} if image == "recovered" else {})
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def sigmas_of(rows: Sequence[Row], arm: str) -> list[float]:
    """The levels of one model, rising."""
    return sorted({row["sigma"] for row in rows if row["arm"] == arm and "sigma" in row})


def kept(rows: Sequence[Row], arm: str, image: str, noise: str, what: str) -> list[tuple[float, float]]:
    """(sigma, share of the clean images' value that is left), means over seeds.

    `what` is one of `SEEN`. Of the reward's score that is (score − chance) / (clean score − chance), where chance is the
    clean images' mean score under other captions.
    """
    clean = [row for row in rows if row["arm"] == arm and row["image"] == "clean"]
    points = []
    for sigma in sigmas_of(rows, arm):
        found = of(rows, arm, image, noise, sigma)
        if found:
            points.append((sigma, _share(found, clean, what)))
    return points


def _share(found: Sequence[Row], clean: Sequence[Row], what: str) -> float:
    nothing = _mean(clean, "chance") if what == "reward" else 0.0
    return (_mean(found, what) - nothing) / (_mean(clean, what) - nothing)


def lost_from(points: Sequence[tuple[float, float]]) -> float | None:
    """The lowest level from which on less than half is left at every level; None if the highest still has half."""
    level = None
    for sigma, share in sorted(points, reverse=True):
        if share >= HALF:
            break
        level = sigma
    return level


def collapse_table(rows: list[Row]) -> str:
    """Where each image loses half of what is seen, and the least that is left of it at any level."""
    lines = []
    for arm, title in arms_of(rows).items():
        for noise, what in product(NOISES, SEEN):
            points = [kept(rows, arm, image, noise, what) for image in ("x0_hat", "recovered")]
            levels = [_level(lost_from(found)) for found in points]
            least = [f"{number(100 * min(share for _, share in found), 0)} %" for found in points]
            lines.append([title, NOISES[noise], SEEN[what], *levels, *least])
    headers = ["model", "noise", "what", "guess: half lost", "recovered: half lost", "guess: least left", "recovered: least left"]
    return markdown(headers, lines)


LEGEND = (
    f"The level from which on less than half of the clean images' value is left, and the least that is left at any level; jump {JUMP} down. The reward's score "
    "counts from what the same images get under other captions; its ranking is the correlation of scores over images with those of the clean images. "
    "Content is the judge's rate, style the share of images that it names as it names the clean one, sharpness the gradient energy."
)


def collapse(rows: list[Row]) -> str:
    """The same as sentences, for fresh noise."""
    said = []
    for arm, title in arms_of(rows).items():
        guess, recovered = (_losses(rows, arm, image) for image in ("x0_hat", "recovered"))
        said.append(f"{title}, fresh noise: half is lost in the one-step guess of {guess}, in the recovered image of {recovered}.")
    return "\n\n".join([LEGEND, " ".join(said)])


def _losses(rows: list[Row], arm: str, image: str) -> str:
    levels = {title: lost_from(kept(rows, arm, image, FRESH, what)) for what, title in SEEN.items()}
    return ", ".join(f"{title} (from sigma {level:g})" for title, level in levels.items() if level is not None) or "nothing"


def _mean(rows: Sequence[Row], key: str) -> float:
    return mean_interval([row[key] for row in rows])["value"]


def _level(sigma: float | None) -> str:
    return "kept" if sigma is None else f"sigma {sigma:g}"
