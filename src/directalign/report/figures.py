"""Which numbers stand in which chart, and the caption that says what to see in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from markupsafe import Markup

from .charts import NARROW, WIDE, Axes, Series, interval_bar, line_chart
from .collect import Record, RunFiles, number
from .story import Change, percent, span

STYLES = ("s0", "s1", "s2", "s3", "s4")
SHARE = "share_"
"""What a member of a mixture adds to its reward is recorded under this and its label."""
PLANE_SIZES = {"wide": WIDE, "narrow": NARROW}


@dataclass(frozen=True)
class Figure:
    """A chart under its title, with what to see in it."""

    title: str
    chart: Markup
    caption: str


def curves(run: RunFiles) -> list[Figure]:
    """What happened over the updates, as far as it was recorded."""
    few = len(run.steps) <= 40
    drawn = [
        _measured(run, "Photo rate", "photo_rate", "Share of images that the style judge takes for a photo; the band is the 95 % interval.", rate=True),
        _measured(run, "Content", "content", "Share with colour, shape and background all as asked. A fall here is the price of the style.", rate=True),
        _measured(run, "Colour drift", "color_drift", "Distance of the mean colour cast from the reference images. A tint that pleases the reward shows here."),
        _measured(run, "Reward of whole images", "reward", "Mean score of sampled images under the bare prompt: rising while content falls is hacking."),
        _trained(run, "Reward in training", "reward", "What is maximised, on the recovered images of each update.", few),
        _trained(run, "Loss", "loss", "Mean over the branches of an update.", few),
        _trained(run, "Gradient norm", "grad_norm", "Before clipping. A jump here comes before a collapse.", few),
        *_mixture(run, few),
    ]
    return [figure for figure in drawn if figure.chart]


def _mixture(run: RunFiles, dots: bool) -> list[Figure]:
    """Of a mixture of rewards: what each member adds, then each by itself, in training and in the measurements."""
    labels = [name.removeprefix(SHARE) for name in (run.steps[-1].get("metrics") or {}) if name.startswith(SHARE)] if run.steps else []
    if not labels:
        return []
    lines = [Series(label, run.curve(f"metrics.{SHARE}{label}"), style) for label, style in zip(labels, cycle(STYLES), strict=False)]
    chart = line_chart(lines, Axes(x="update", y="share"), "Share of each member by update", dots)
    figures = [Figure("Shares in the reward", chart, "What each member adds to what is maximised: weight times reward, over its running spread if so asked.")]
    for label in labels:
        own = f"What is asked of {label}, in its own units, on the recovered images of each update."
        whole = f"Mean score of {label} on sampled images under the bare prompt, in its own units."
        figures.append(_trained(run, f"{label} in training", f"metrics.reward_{label}", own, dots))
        figures.append(_measured(run, f"{label} of whole images", f"reward_{label}", whole))
    return figures


def levels(run: RunFiles) -> list[Figure]:
    """Recovery error, gain and reward by noise level, one line per branch."""
    rows = run.levels()
    texts = {
        "recovery_error": ("Recovery error", "How far the recovered image stands from the clean one. A level that stands out has too large a jump."),
        "gain": ("Gain", "The share of the network's residual that reaches the image: above zero denoises, below inverts."),
        "reward": ("Reward", "Mean over the run; a level far from the others is off the reward's distribution."),
    }
    figures = []
    for key, (title, caption) in texts.items():
        lines = [_level_line(branch, entries, key, style) for (branch, entries), style in zip(rows.items(), STYLES, strict=False)]
        chart = line_chart(lines, Axes(x="noise level σ", y=title.lower()), f"{title} by noise level")
        figures.append(Figure(title, chart, caption))
    return [figure for figure in figures if figure.chart]


def plane(runs: Sequence[RunFiles]) -> dict[str, Markup]:
    """Judge against drift: the path of every run through (photo rate, colour drift), drawn for wide and for narrow screens."""
    series = []
    for run, style in zip(runs, STYLES, strict=False):
        records = [record for record in run.measured if number(record.get("photo_rate")) is not None and number(record.get("color_drift")) is not None]
        points = [(number(record["photo_rate"]) or 0.0, number(record["color_drift"]) or 0.0) for record in records]
        series.append(Series(run.name, points, style, notes=[f"after {record['step']} updates" for record in records]))
    axes = Axes(x="photo rate", y="colour drift", percent_x=True, x_low=0.0, x_high=1.0, y_low=0.0)
    charts = {name: line_chart(series, axes, "Colour drift against photo rate, one line per run", size=size) for name, size in PLANE_SIZES.items()}
    return {name: chart for name, chart in charts.items() if chart}


def long_curves(runs: Sequence[RunFiles]) -> list[Figure]:
    """Runs that went on for much longer than recommended: what they keep and what they lose."""
    texts = {"content": "Content", "photo_rate": "Photo rate", "color_drift": "Colour drift"}
    captions = {
        "content": "Colour, shape and background as asked. A line that falls is a model being ruined.",
        "photo_rate": "A ruined model can still look like a photo, of nothing.",
        "color_drift": "Distance of the mean colour cast from the reference images.",
    }
    figures = []
    for key, title in texts.items():
        rate = key != "color_drift"
        lines = [Series(run.name, run.measured_curve(key), style, run.band(key)) for run, style in zip(runs, STYLES, strict=False)]
        axes = Axes(x="update", y=title.lower(), percent=rate, y_low=0.0, y_high=1.0 if rate else None)
        figures.append(Figure(title, line_chart(lines, axes, f"{title} by update, long runs"), captions[key]))
    return [figure for figure in figures if figure.chart]


def change_bar(change: Change) -> Markup:
    """Before and after of a rate on one line, with intervals; nothing for other numbers."""
    if not change.is_rate or not span(change.before) or not span(change.after):
        return Markup("")
    title = f"{change.title}: {percent(change.before)} ({span(change.before)}) before, {percent(change.after)} ({span(change.after)}) after"
    return interval_bar([_whisker("s1", change.before), _whisker("s0", change.after)], title)


def rate_bars(numbers: Record) -> dict[str, Markup]:
    """A whisker each for the rates of a table row."""
    known = [key for key in ("photo_rate", "content") if span(numbers.get(key))]
    return {key: interval_bar([_whisker("s0", numbers[key])], f"{percent(numbers[key])}, 95 % interval {span(numbers[key])}") for key in known}


def _whisker(style: str, value: Record) -> tuple[str, tuple[float, float], float]:
    return style, (value["low"], value["high"]), number(value) or 0.0


def _measured(run: RunFiles, title: str, key: str, caption: str, rate: bool = False) -> Figure:
    axes = Axes(x="update", y=title.lower(), percent=rate, y_low=0.0 if rate or key == "color_drift" else None, y_high=1.0 if rate else None)
    return Figure(title, line_chart([Series("", run.measured_curve(key), "s0", run.band(key))], axes, f"{title} by update"), caption)


def _trained(run: RunFiles, title: str, key: str, caption: str, dots: bool) -> Figure:
    return Figure(title, line_chart([Series("", run.curve(key))], Axes(x="update", y=title.lower()), f"{title} by update", dots), caption)


def _level_line(branch: str, entries: Sequence[Record], key: str, style: str) -> Series:
    known = [entry for entry in entries if key in entry]
    return Series(branch, [(entry["sigma"], entry[key]) for entry in known], style, notes=[f"{entry['n']} samples" for entry in known])
