"""Where the picture is lost: from which noise level on the reward and the judge no longer see it, in either image of the recovery study."""

from __future__ import annotations

from collections.abc import Sequence

from .records import Row, arms_of
from .statistics import mean_interval
from .tables import markdown

JUMP = 0.02
"""The jump that the tables and the collapse are read at; the official span is 0.0214."""
HALF = 0.5
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

    `content` is the judge's; `reward kept` is (score − chance) / (clean score − chance), where chance is the clean
    images' mean score under other captions.
    """
    clean = [row for row in rows if row["arm"] == arm and row["image"] == "clean"]
    points = []
    for sigma in sigmas_of(rows, arm):
        found = of(rows, arm, image, noise, sigma)
        if found:
            points.append((sigma, _share(found, clean, what)))
    return points


def _share(found: Sequence[Row], clean: Sequence[Row], what: str) -> float:
    if what == "content":
        return _mean(found, "content") / _mean(clean, "content")
    chance = _mean(clean, "chance")
    return (_mean(found, "reward") - chance) / (_mean(clean, "reward") - chance)


def lost_from(points: Sequence[tuple[float, float]]) -> float | None:
    """The lowest level from which on less than half is left at every level; None if the highest still has half."""
    level = None
    for sigma, share in sorted(points, reverse=True):
        if share >= HALF:
            break
        level = sigma
    return level


def collapse_table(rows: list[Row]) -> str:
    """Where each image loses half of what the reward and the judge see, and what the recovered one has there."""
    lines = []
    for arm, title in arms_of(rows).items():
        for noise in (OWN, FRESH):
            cells = [_level(lost_from(kept(rows, arm, image, noise, what))) for what in ("reward kept", "content") for image in ("x0_hat", "recovered")]
            least = min(share for _, share in kept(rows, arm, "recovered", noise, "content"))
            lines.append([title, NOISES[noise], *cells, f"{100 * least:.0f} %"])
    headers = ["model", "noise", "reward: guess", "reward: recovered", "content: guess", "content: recovered", "recovered, least content"]
    return markdown(headers, lines)


def collapse(rows: list[Row]) -> str:
    """The same as sentences."""
    said = [
        f"The level from which on less than half of the clean images' value is left; jump {JUMP} down. For the reward that is half of what its score has over "
        "the score that the same images get under other captions, for the judge half of the clean images' content rate."
    ]
    for arm, title in arms_of(rows).items():
        guess, recovered = (lost_from(kept(rows, arm, image, FRESH, "content")) for image in ("x0_hat", "recovered"))
        held = "the recovered image keeps it at every level" if recovered is None else f"the recovered image from sigma {recovered:g}"
        lost = "never loses half of its content" if guess is None else f"loses half of its content from sigma {guess:g}"
        said.append(f"{title}, fresh noise: the one-step guess {lost}; {held}.")
    return "\n\n".join([said[0], " ".join(said[1:])])


def _mean(rows: Sequence[Row], key: str) -> float:
    return mean_interval([row[key] for row in rows])["value"]


def _level(sigma: float | None) -> str:
    return "kept" if sigma is None else f"sigma {sigma:g}"
