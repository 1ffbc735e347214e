"""The page of one run: before and after, curves, where it stopped, best and worst prompts."""

import shlex
import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import yaml

from ..metrics import HELD_OUT, NEG, OBEYS, POS, ROLES, STYLE, Metric, by_role, metric
from .charts import (
    BASE,
    STYLES,
    Axes,
    Figure,
    IntervalAxis,
    Marker,
    Point,
    Rule,
    Scatter,
    Series,
    line_chart,
    scatter,
)
from .comparison_page import FULL_AXIS, embed_extremes, extremes
from .format import cut, mapping, number
from .images import BUDGET, Images, embed_cells, prompts_of, sample_cells
from .page import credits_of, environment_of, render, repeat_command
from .read import RunFiles, is_comparison, metric_of, read_comparison
from .reference_rows import run_table
from .status import RUNNING, Status, status_of

EVALUATION = "evaluation"
"""Folder of the comparison with the base model, written by `directalign evaluate`."""
MAX_TEXT = 100_000
"""Most characters of run.yaml on the page."""
STOP, KEPT = "stop", "kept"
TEXTS = yaml.safe_load(Path(__file__).with_name("texts.yaml").read_text(encoding="utf-8"))
MEMBER_SHARE = "share_"
"""Prefix of the contribution of a mixture's member."""
SIDES = ("bare prompt", "wanted phrases", "unwanted phrases")
SIDE_STYLES = ("s0", "s2", "s3")
SIDE_SCORES = {
    "reward": ("score_pos", "score_neg"),
    "off_topic_reward": ("off_topic_score_pos", "off_topic_score_neg"),
}
MAX_CHARTS = 60
FALLBACK_JUDGES = ("score_pos", "reward")
DEFAULT_DRIFTS = ("color_drift", "content")
"""Metrics against the judge if the recipe limits none."""
MAX_SCATTERS = 3


def html(run: RunFiles) -> str:
    """The whole page."""
    end, status = ending(run), status_of(run)
    cells = sample_cells(run, kept=end.kept if end else None)
    if (left_out := len(run.samples) - len(cells)) > 0:
        run.notes.append(f"{left_out} of {len(run.samples)} sample grids are not displayed.")
    pairs, pair_images = [], Images({}, False)
    if is_comparison(run.folder / EVALUATION):
        comparison = read_comparison(run.folder / EVALUATION)
        pairs = extremes(comparison)
        pair_images = embed_extremes(comparison, pairs, BUDGET // 2)
        run.notes.extend(f"{EVALUATION}/{note}" for note in comparison.notes)
    kept = [place for place, (step, _) in enumerate(cells) if place and end and step == end.kept]
    (grids,), pixelated = embed_cells([cells], BUDGET // 2 if pairs else BUDGET)
    return render(
        "run.html.j2",
        title=cut(run.name, 120),
        run=run,
        status=status,
        written=time.time(),
        steps=next_steps(run, status),
        ending=end,
        changes=changes(run),
        beside=run_table(run, reference_columns(run), judge_of([run])),
        obeys=obedience(run),
        axis=IntervalAxis(),
        grids=grids,
        first_grid=kept[0] if kept else len(grids) - 1,
        pixelated=pixelated,
        prompts=prompts_of(run),
        scatters=run_scatters(run),
        groups=curve_groups(run),
        extremes=pairs,
        extreme_images=pair_images,
        levels=level_figures(run),
        method=method_of(run),
        reward=reward_of(mapping(run.setting("reward"))),
        settings_text=run.settings_text[:MAX_TEXT],
        environment=environment_of(run.summary),
        notes=[*credits_of([run.settings]), *run.notes],
    )


def main_metrics(recorded: Container[str], held_out: Sequence[Metric]) -> list[tuple[str, str]]:
    """(title, name) of what a page leads with: quality by the most independent judge, and drift."""
    main = [("Photo rate", "photo_rate"), ("Content right", "content")]
    if "photo_rate" not in recorded:  # held-out rewards instead of the toy world's judge
        main = [(each.label, each.name) for each in held_out if each.better > 0][:2]
    return [*main, ("Colour drift", "color_drift"), ("Reward", "reward")]


def changes(run: RunFiles) -> list[dict[str, Any]]:
    """The `title` and `key` of each main metric, its values `before` (of the base model) and
    `after` (of the final or kept weights), and their number of samples `n` (None if unknown).

    Both are on equal samples, also of a run that was interrupted between evaluations of all; []
    without both.
    """
    if not run.ends:
        return []
    count, (before, after) = next(iter(run.ends.items()))
    held_out = [metric_of([run], key) for key in after if key.startswith(HELD_OUT)]
    found = []
    for title, key in main_metrics(after, held_out):
        if None not in map(number, (before.get(key), after.get(key))):
            each = {"title": title, "key": key, "before": before[key], "after": after[key]}
            found.append({**each, "n": count})
    return found


def reference_columns(run: RunFiles) -> list[tuple[str, str]]:
    """(title, name) of the metrics that stand beside those of the references."""
    held_out = [metric_of([run], key) for key in run.measured_names if key.startswith(HELD_OUT)]
    return main_metrics(run.measured_names, held_out)


def obedience(run: RunFiles) -> list[tuple[Metric, Any, Any]]:
    """Each metric of style control with its values of the base model and of the trained one."""
    _, (before, after) = next(iter(run.ends.items()), (None, ({}, {})))
    names = [name for name in after if name.startswith(OBEYS) and name in before]
    return [(metric_of([run], name), before[name], after[name]) for name in names]


def next_steps(run: RunFiles, status: Status) -> list[tuple[str, str]]:
    """(what for, command) of what a user does next, by the state of the run."""

    def command(*words: str | Path) -> str:
        return shlex.join(["directalign", *map(str, words)])

    folder, compared = run.folder, run.folder / EVALUATION
    repeat = "The same again in a new folder, from the same seed", repeat_command(run)
    if status.state == RUNNING:
        return [("All runs beside this one, live", command("ui", folder.absolute().parent)), repeat]
    if status.is_resumable:
        return [("Continue this run", status.command), repeat]
    voting = command("arena", compared, "--out", f"{folder}-votes.sqlite")
    form, others = "folder", " (or --format checkpoint)"
    if run.setting("model", "tune", default="lora") == "lora":
        form, others = "diffusers", " (or --format comfyui, kohya, checkpoint)"
    found = [
        ("Compare it with the base model on equal prompts and seeds", command("evaluate", folder)),
        ("Then ask people which images they prefer", voting),
        (
            "Make images of your own",
            command("sample", folder, "--prompt", "a prompt", "--out", f"{folder}-samples"),
        ),
        (f"Use it elsewhere{others}", command("export", folder, "--format", form)),
    ]
    return [*(found[1:] if is_comparison(compared) else found), repeat]


def method_of(run: RunFiles) -> str:
    """Name of the method and form of its reward."""
    name = run.setting("method", "name", default="srpo")
    form = run.setting("method", "form", default="relative")
    if name in TEXTS["methods"]:
        score = "one score" if form == "absolute" else f"{form} reward"
        return f"{TEXTS['methods'][name]} ({score})"
    return TEXTS["forms"].get(form, "alignment")


def reward_of(section: Mapping[str, Any]) -> str:
    """A recipe's `reward` in words: name and source, for a mixture its members with weights."""
    members = section.get("members")
    if not isinstance(members, list):
        sources = (section[key] for key in ("path", "url", "statistic") if section.get(key))
        return f"{section.get('name', '')} {next(sources, '')}".strip()
    texts = []
    for member in members:
        weight = number(member.get("weight"))
        suffix = "" if weight in (None, 1.0) else f", weight {weight:g}".replace("-", "−")
        texts.append(f"{member.get('label')} ({reward_of(member.get('reward') or {})}{suffix})")
    return f"{section.get('name')} of {', '.join(texts)}"


@dataclass(frozen=True)
class Ending:
    """`stop` is the update of an early stop, `kept` that of the exported weights, else None."""

    stop: float | None
    kept: float | None
    reason: str

    def rules(self) -> list[Rule]:
        """Vertical rules on charts over updates."""
        if self.stop is not None and self.stop == self.kept:
            return [Rule(self.stop, "stop, kept", STOP)]
        found = [(self.kept, KEPT), (self.stop, STOP)]
        return [Rule(at, name, name) for at, name in found if at is not None]


def ending(run: RunFiles) -> Ending | None:
    """None if the run was not stopped early and its last weights are exported."""
    stop = run.stops[-1] if run.stops else mapping(run.summary.get("stopped"))
    record = run.keeps[-1] if run.keeps else mapping(run.summary.get("kept"))
    at, kept = number(stop.get("step")), number(record.get("step"))
    if kept is None:
        kept = number(stop.get("kept"))
    if at is None and kept is None:
        return None
    reason = stop.get("says") or TEXTS["stop_reasons"].get(
        str(stop.get("reason")), "no reason recorded"
    )
    return Ending(at, kept, cut(reason).rstrip(".") + ".")


def curve_groups(run: RunFiles) -> list[tuple[str, str, str, str, list[Figure]]]:
    """(role, title, chip, sentence, charts) of everything that was recorded over the updates; at
    most `MAX_CHARTS`."""
    end = ending(run)
    rules = end.rules() if end else []
    names = [name for name in run.measured_names if run.measured_curve(name)]
    names = [name for name in names if not name.endswith((POS, NEG))]  # in another chart
    found = [metric_of([run], name) for name in names]
    if len(found) > MAX_CHARTS:
        run.notes.append(f"{len(found) - MAX_CHARTS} of {len(found)} metrics are not drawn.")
    drawn = {role: _metric_figures(run, each, rules) for role, each in by_role(found[:MAX_CHARTS])}
    drawn["trained"] = drawn.get("trained", []) + _training_figures(run, rules)
    groups = []
    for role, words in ROLES.items():
        figures = [figure for figure in drawn.get(role, []) if figure.chart]
        if figures:
            groups.append((role, *words, figures))
    return groups


def metric_axes(each: Metric) -> Axes:
    """Axes of a metric over the updates: rates of judges from 0 to 1, distances from 0."""
    full = each.percent and each.role in FULL_AXIS
    low = 0.0 if full or each.better < 0 else None
    return Axes("update", each.label.lower(), each.percent, y_low=low, y_high=1.0 if full else None)


def _chart(
    title: str,
    lines: Sequence[Series],
    caption: str,
    rules: Sequence[Rule],
    axes: Axes | None = None,
) -> Figure:
    axes = axes or Axes("update", title.lower())
    return Figure(title, line_chart(lines, axes, f"{title} by update", rules=rules), caption)


def _metric_figures(
    run: RunFiles, metrics: Sequence[Metric], rules: Sequence[Rule]
) -> list[Figure]:
    styles = [each for each in metrics if each.name.startswith(STYLE)]
    figures = []
    for each in metrics:
        if each in styles:
            continue
        sides = SIDE_SCORES.get(each.name, (f"{each.name}{POS}", f"{each.name}{NEG}"))
        curves = [run.measured_curve(key) for key in (each.name, *sides)]
        lines = list(map(Series, SIDES, curves, SIDE_STYLES))
        if not curves[1] and not curves[2]:
            lines = [Series("", curves[0], "s0", run.band(each.name))]
        caption = " ".join(filter(None, (each.description, run.num_samples)))
        figures.append(_chart(each.label, lines, caption, rules, metric_axes(each)))
    if styles:
        labels = [each.label.removeprefix("Style ") for each in styles]
        curves = [run.measured_curve(each.name) for each in styles]
        axes = Axes("update", "share", percent=True, y_low=0.0, y_high=1.0)
        lines = list(map(Series, labels, curves, cycle(STYLES)))
        caption = f"Style of the images by the judge. {run.num_samples}".strip()
        figures.append(_chart("Styles", lines, caption, rules, axes))
    return figures


def _training_figures(run: RunFiles, rules: Sequence[Rule]) -> list[Figure]:
    """Numbers of the training steps, and the members of a mixture of rewards."""

    def one(key: str, title: str, caption: str) -> Figure:
        return _chart(title, [Series("", run.curve(key))], caption, rules)

    def titled(key: str, **words: str) -> list[str]:
        return [text.format(**words) for text in TEXTS["training"][key]]

    title, caption = titled("scores")
    scores = [run.curve(f"metrics.score_{side}") for side in ("plain", "pos", "neg")]
    lines = list(map(Series, SIDES, scores, SIDE_STYLES))
    figures = [one(key, *titled(key)) for key in ("reward", "loss", "grad_norm")]
    figures.insert(1, _chart(title, lines, caption, rules, Axes("update", "score")))
    last = mapping(run.steps[-1].get("metrics")) if run.steps else {}
    members = [name.removeprefix(MEMBER_SHARE) for name in last if name.startswith(MEMBER_SHARE)]
    if members:
        title, caption = titled("shares")
        curves = [run.curve(f"metrics.{MEMBER_SHARE}{name}") for name in members]
        lines = list(map(Series, members, curves, cycle(STYLES)))
        figures.append(_chart(title, lines, caption, rules, Axes("update", "share")))
    figures += [one(f"metrics.reward_{name}", *titled("member", name=name)) for name in members]
    return [*figures, one("resources.teraflops", *titled("achieved"))]


def level_figures(run: RunFiles) -> list[Figure]:
    """Recovery error, gain and reward by noise level, one line per branch."""
    figures = []
    for key, (title, caption) in TEXTS["levels"].items():
        lines = []
        for (branch, rows), style in zip(run.levels().items(), cycle(STYLES), strict=False):
            known = [row for row in rows if key in row]
            points = [(row["sigma"], row[key]) for row in known]
            notes = [f"{row['n']} samples" for row in known]
            lines.append(Series(branch, points, style, notes=notes))
        axes = Axes("noise level σ", title.lower())
        figures.append(Figure(title, line_chart(lines, axes, f"{title} by noise level"), caption))
    return [figure for figure in figures if figure.chart]


def run_scatters(run: RunFiles) -> list[Scatter]:
    """The run's path: its judge against each metric that the recipe limits, else the defaults."""
    allowed = mapping(run.setting("early_stopping", "max_degradation"))
    judge = judge_of([run])
    if judge is None:
        return []
    names = [name for name in allowed or DEFAULT_DRIFTS if name != judge.name]
    found = []
    for drift in (metric_of([run], name) for name in names):
        rules = _limits(run, drift, number(allowed.get(drift.name)))
        found.append(path_scatter([run], judge, drift, rules))
    return [one for one in found if one.charts][:MAX_SCATTERS]


def judge_of(runs: Sequence[RunFiles]) -> Metric | None:
    """The metric of quality: the recipe's, the toy world's, a held-out reward, the reward."""
    recorded = dict.fromkeys(name for run in runs for name in run.measured_names)
    held_out = [name for name in recorded if name.startswith(HELD_OUT) and metric(name).better > 0]
    wanted = [str(run.setting("early_stopping", "metric_for_best", default="")) for run in runs]
    wanted += ["photo_rate", *held_out, *FALLBACK_JUDGES]
    return next((metric_of(runs, name) for name in wanted if name in recorded), None)


def path_scatter(
    runs: Sequence[RunFiles],
    judge: Metric,
    drift: Metric,
    rules: Sequence[Rule] = (),
    styles: Sequence[str] = STYLES,
) -> Scatter:
    """One line per run through its evaluations, with markers for kept weights and early stops.

    Many lines have their names in tooltips only.
    """
    single, named = len(runs) == 1, 1 < len(runs) <= len(STYLES)
    lines, markers = [], []
    for run, style in zip(runs, [BASE] if single else styles, strict=False):
        xs, ys = (dict(run.measured_curve(one.name)) for one in (judge, drift))
        path = [(step, (x, ys[step])) for step, x in xs.items() if step in ys]
        whose = "" if single or named else f"{cut(run.name, 40)}, "
        notes = [f"{whose}after {step:.0f} updates" for step, _ in path]
        points = [point for _, point in path]
        lines.append(Series(cut(run.name, 40) if named else "", points, style, notes=notes))
        found = _markers(run, path, "s0" if single else style)
        if not single:
            found = [Marker(one.point, "", one.kind, style) for one in found[1:]]
        markers += found
    return scatter(judge, drift, lines, "" if single else "one line per run", rules, markers)


def _markers(run: RunFiles, path: Sequence[tuple[float, Point]], style: str) -> list[Marker]:
    """Start, kept weights and early stop, each at the last evaluation up to that update."""
    if not path:
        return []
    step, point = path[0]
    found = [Marker(point, "base model" if step == 0 else f"update {step:.0f}", "start", BASE)]
    end = ending(run)
    if end is None:
        if len(path) > 1:
            found.append(Marker(path[-1][1], f"update {path[-1][0]:.0f}", "end", style))
        return found
    marked = [(KEPT, end.kept, "kept"), (STOP, end.stop, "stopped")]
    if end.stop is not None and end.stop == end.kept:
        marked = [(KEPT, end.kept, "stopped and kept")]
    for kind, at, word in marked:
        points = [point for step, point in path if at is not None and step <= at]
        if points:
            found.append(Marker(points[-1], f"{word}: update {at:.0f}", kind, kind))
    return found


def _limits(run: RunFiles, drift: Metric, allowed: float | None) -> list[Rule]:
    """How far the recipe lets a metric move from the base model's value."""
    base = number(run.comparable[0].get(drift.name)) if run.measured else None
    if base is None or allowed is None:
        return []
    limits = {1: [base - allowed], -1: [base + allowed]}
    found = limits.get(drift.better, [base - allowed, base + allowed])
    return [Rule(limit, "limit", STOP, horizontal=True) for limit in found]
