"""Charts of what a run is measured on and never trained on: held-out rewards, and prompts that are off its topic."""

from __future__ import annotations

from .charts import Axes, Series, line_chart
from .collect import RunFiles
from .figures import Figure

HELD_OUT, OFF_TOPIC = "held_out_", "off_topic_"
SIDES = ("_pos", "_neg")
TITLES = {
    "off_topic_reward": ("Reward off topic", "Mean score of prompts that the training has nothing to do with. A rise is what leaked onto them."),
    "off_topic_score_pos": ("Wanted score off topic", "The same under the wanted phrases: how far what was trained is preferred where nobody asked for it."),
    "off_topic_color_drift": ("Colour drift off topic", "Distance of the mean colour cast from the base model's own images of the same seeds; 0 is unchanged."),
    "off_topic_style_kept": ("Style kept off topic", "Share of images in the style that the prompt itself asks for. A fall suppresses a legitimate style."),
    "off_topic_content": ("Content off topic", "Share with colour, shape and background all as asked."),
}
RATES = ("off_topic_style_kept", "off_topic_content")


def curves(run: RunFiles) -> list[Figure]:
    """One chart for each held-out reward and each number of off-topic prompts that was measured."""
    drawn = [_held_out(run, name) for name in held_out_names(run)] + [_off_topic(run, name) for name in TITLES]
    return [figure for figure in drawn if figure.chart]


def held_out_names(run: RunFiles) -> list[str]:
    """The held-out rewards' scores under the bare prompt, in the order in which they were measured."""
    names = dict.fromkeys(name for record in run.measured for name in record if name.startswith(HELD_OUT) and not name.endswith(SIDES))
    return list(names)


def _held_out(run: RunFiles, name: str) -> Figure:
    title = f"Held out: {name.removeprefix(HELD_OUT)}"
    lines = [
        Series("bare prompt", run.measured_curve(name), "s0"),
        Series("wanted phrases", run.measured_curve(f"{name}_pos"), "s1"),
        Series("unwanted phrases", run.measured_curve(f"{name}_neg"), "s2"),
    ]
    chart = line_chart([each for each in lines if each.points], Axes(x="update", y="score"), f"{title} by update")
    return Figure(title, chart, "Mean score of a reward that is never trained on. If it falls while the trained one rises, that is hacking.")


def _off_topic(run: RunFiles, name: str) -> Figure:
    title, caption = TITLES[name]
    rate = name in RATES
    axes = Axes(x="update", y=title.lower(), percent=rate, y_low=0.0 if rate or name.endswith("drift") else None, y_high=1.0 if rate else None)
    return Figure(title, line_chart([Series("", run.measured_curve(name), "s0", run.band(name))], axes, f"{title} by update"), caption)
