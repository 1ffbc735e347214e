"""What the study `listening` found, in words, tables and figures, all of it from its rows."""

from __future__ import annotations

from .comparing.reading import before_training, curve, ends, line, of_kind, of_runs, over
from .comparing.statistics import SeedInterval
from .comparing.versus import CALLS, after, at_photo_rate, common_photo_rate, excludes_zero, signed, table, versus
from .running.records import Row, arms_of, of_run, seeds_of
from .showing.figures import Column, Panel, curves, dots_with_intervals
from .showing.tables import DASH, markdown, number, with_interval
from collections.abc import Sequence
from pathlib import Path


PAIRS = {"relative": ("relative_tuned", "relative_original"), "anchored": ("anchored_tuned", "anchored_original")}
MADE_UP = ("made_up_tuned", "made_up_original")
LEVELS = (0.5, 0.8)
ANGLES = {"angle": "angle", "scene_angle": "by scene", "pixel_angle": "among pixels"}
SHOWN = {"photo_rate": "photo rate", "content": "content", "color_drift": "colour drift"}


def tell(rows: list[Row]) -> str:
    """The taught rewards, the runs with and without them, the words that the reward did not know, and the wide gap."""
    trained = of_runs(rows)
    names = arms_of(trained)
    parts = ["## Does it push straighter?", _straighter(rows), "## Does its run drift less?", CALLS]
    parts += [_drift(trained, form, *pair) for form, pair in PAIRS.items() if set(pair) <= set(names)]
    parts += [_unknown_words(trained)] if set(MADE_UP) <= set(names) else []
    return "\n\n".join([*parts, "## Where each run ends", _ends(trained, list(names))])


# --- the rewards --------------------------------------------------------------------------------------------------------


def angle_of(rows: Sequence[Row], arm: str, when: str, name: str = "angle") -> SeedInterval:
    """An angle of a reward, with its interval over scenes."""
    row = of_kind(rows, "listen", arm=arm, when=when)[0]
    return {"value": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"], "n": row["held_out"]}


def verdict(before: SeedInterval, after: SeedInterval) -> str:
    """straighter, less straight, or neither, where the intervals lie apart."""
    assert before["low"] is not None and before["high"] is not None and after["low"] is not None and after["high"] is not None
    if after["high"] < before["low"]:
        return "straighter"
    return "less straight" if after["low"] > before["high"] else "not told apart"


def _straighter(rows: Sequence[Row]) -> str:
    pupils = arms_of(of_kind(rows, "listen"))
    sentences = [f"“{title}”: {_verdicts(rows, arm)}." for arm, title in pupils.items()]
    said = (
        "Angles in degrees between the pull of pos − neg and the way to the photograph, on captions that were not learned from: of the mean directions "
        "among image features, scene by scene, and scene by scene among pixels. Intervals (95 %) are over scenes; a verdict stands where they lie apart. "
    )
    headers = ["reward", "", "responsiveness", "AUC", *ANGLES.values(), "content under the words", "red tint moves pos − neg", "brightness moves it"]
    lines = [[title, when, *_numbers(rows, arm, when)] for arm, title in pupils.items() for when in ("before", "after")]
    return f"{said}{' '.join(sentences)}\n\n{markdown(headers, lines)}"


def _verdicts(rows: Sequence[Row], arm: str) -> str:
    found = {shown: verdict(angle_of(rows, arm, "before", name), angle_of(rows, arm, "after", name)) for name, shown in ANGLES.items()}
    return ", ".join(f"{shown} {said}" for shown, said in found.items())


def _numbers(rows: Sequence[Row], arm: str, when: str) -> list[str]:
    row = of_kind(rows, "listen", arm=arm, when=when)[0]
    told = [number(row["responsiveness"], 2), number(row["auc"], 3), *(with_interval(angle_of(rows, arm, when, name), 1) for name in ANGLES)]
    return [*told, number(row["content_with_words"], 3), number(row["bias_red_tint"], 4), number(row["bias_brightness"], 4)]


# --- the runs -----------------------------------------------------------------------------------------------------------


def _drift(trained: Sequence[Row], form: str, tuned: str, original: str) -> str:
    """Tuned against original, seed by seed, at equal photo rates and at the end."""
    reached = common_photo_rate(trained, [tuned, original])
    begun = before_training(trained)["photo_rate"]
    found = [versus(trained, tuned, original, f"at photo rate {level:g}", at_photo_rate(level)) for level in LEVELS if begun < level <= reached]
    last = min(of_run(trained, arm, seed)[-1]["step"] for arm in (tuned, original) for seed in seeds_of(trained, arm))
    found.append(versus(trained, tuned, original, f"after {last} updates", after(last)))
    said = [f"{signed(each.differences['color_drift'])} {each.condition}, {_sure(each.differences['color_drift'])}" for each in found]
    return f"### {form.capitalize()}\n\nColour drift, tuned minus original: {'; '.join(said)}.\n\n{table(found)}"


def _sure(difference: SeedInterval | None) -> str:
    if difference is None or not excludes_zero(difference):
        return "within the interval"
    return "less" if difference["value"] < 0 else "more"


def _unknown_words(trained: Sequence[Row]) -> str:
    tuned, original = (with_interval(over(ends(trained, arm), "photo_rate"), 2) for arm in MADE_UP)
    kept = with_interval(over(ends(trained, MADE_UP[0]), "content"), 2)
    said = f"Under two made-up words the photo rate ends at {tuned} with the reward that was taught them, content {kept}, and at {original} with the original."
    return f"## Words that the reward did not know\n\n{said}"


def _ends(trained: Sequence[Row], arms: Sequence[str]) -> str:
    titles = arms_of(trained)
    base = ["base model", "0", *(number(before_training(trained)[key], 3) for key in SHOWN)]
    lines = [[titles[arm], number(ends(trained, arm)[0]["step"], 0), *(with_interval(over(ends(trained, arm), key), 3) for key in SHOWN)] for arm in arms]
    return markdown(["run", "updates", *SHOWN.values()], [base, *lines]) if arms else DASH


SHORT = {"tuned": "known words", "wide": "wide gap", "made_up": "made-up words"}
"""What the figure has room for."""


# --- figures ------------------------------------------------------------------------------------------------------------


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Angles before and after as dots, and the runs as curves, one sheet for each form."""
    trained, titles = of_runs(rows), arms_of(of_runs(rows))
    pupils = arms_of(of_kind(rows, "listen"))
    dots = {f"{when}_{arm}": (arm, when) for arm in pupils for when in ("before", "after")}
    columns = [Column(f"{shown}, degrees", {dot: angle_of(rows, *place, name) for dot, place in dots.items()}) for name, shown in ANGLES.items()]
    named = {dot: f"{SHORT[arm]}, {when}" for dot, (arm, when) in dots.items()}
    note = "Between the pull of the reward and the way to the photograph; 0° is straight. 95 % intervals over scenes."
    files = [dots_with_intervals(folder / "listening_angles.png", "Does the taught reward push straighter?", columns, note, named)]
    for form in ("relative", "anchored"):
        shown = [arm for arm in titles if arm.startswith(form) or (form == "anchored" and arm.startswith("made_up"))]
        if shown:
            panels = [_panel(trained, shown, key) for key in SHOWN]
            title = f"SRPO with the taught reward, {form}"
            files.append(curves(folder / f"listening_{form}.png", title, panels, "Means over seeds, 95 % intervals.", titles=titles))
    return files


def _panel(trained: Sequence[Row], arms: Sequence[str], key: str) -> Panel:
    return Panel(SHOWN[key], "updates", SHOWN[key], [line(arm, curve(trained, arm, key)) for arm in arms], key != "color_drift")
