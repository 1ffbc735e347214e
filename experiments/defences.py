"""Projected and mixed rewards against reward hacking.

judgebench (2026) found that a model which games an embedding cosine moves all images along one
direction, and that projecting it out cures this. Here the embedded reward's taste for red is the
exploit; its direction is learned from a hacked run, from tinted and blurred images, or from texts,
and what the control phrases want is left in. Beside it: a mixture with a reward of the opposite
taste, with and without a penalty on disagreement. `raw` is the trained reward without projection.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from directalign import config
from directalign.reward_analysis.bias_directions import Request, make_directions

from .control_phrases import OTHERS, PHOTO
from .plots import curves, panels_over_updates
from .rows import Row, Rows, at_photo_rate, difference
from .runner import PAIRS, Arm, piece, run_arm, run_arms, settings_of, sized
from .tables import Column, Table, means, number, signed

SEEDS, LEARNED_FROM = (0, 1, 2), 100
PLAIN, OFFICIAL = "world_direct_align", "world_official"
KEPT = config.ControlPhrases(positive=list(PHOTO), negative=list(OTHERS))
HACKED = Arm("hacked", "plain, the run that is learned from", PLAIN, ("evaluate.every=0",))
SECOND = '{name: clip, path: "world:second_reward"}'
FIRST = '{name: clip, path: "world:reward"}'
HELD_OUT = f"evaluate.rewards={{second: {SECOND}, raw: {FIRST}}}"
SEEN = (HELD_OUT, "evaluate.control_prompts=world", "evaluate.every=10")
SOURCES = {"learned": "a hacked run", "probes": "tint and blur", "texts": "texts alone"}
REMOVED = {"learned": "learned direction removed", "texts": "text direction removed"}
REMOVED["probes"] = "tint and blur directions removed"
TITLES = {
    "plain": "plain",
    **{f"plain_{name}": f"plain, {REMOVED[name]}" for name in SOURCES},
    "official": "SRPO, official",
    "official_learned": f"SRPO, official, {REMOVED['learned']}",
    "mixture": "plain, two rewards",
    "agreement": "plain, two rewards, std_penalty",
}
SHORT = {"plain_learned": "learned removed", "plain_probes": "tint, blur removed"}
SHORT |= {"plain_texts": "text removed", "official": "official", "mixture": "two rewards"}
SHORT |= {"official_learned": "official, removed", "agreement": "std_penalty"}
UNDEFENDED = {f"plain_{name}": "plain" for name in SOURCES}
UNDEFENDED |= {"official_learned": "official", "agreement": "mixture"}
"""{defence: what it defends}."""
QUICK_NAMES = ("plain", "plain_texts")


def arms(out: Path) -> list[Arm]:
    """All arms; the files of directions lie in `out`."""
    found = []
    for name, title in TITLES.items():
        base, _, source = name.partition("_")
        overrides = SEEN
        if source:
            overrides += (f'reward.project_out="{file_of(source, out).as_posix()}"',)
        if name in ("mixture", "agreement"):
            members = f"[{{label: first, reward: {FIRST}}}, {{label: second, reward: {SECOND}}}]"
            penalty = 1.0 if name == "agreement" else 0.0
            overrides += (f"reward={{name: mix, members: {members}, std_penalty: {penalty}}}",)
        found.append(Arm(name, title, OFFICIAL if base == "official" else PLAIN, overrides))
    return found


def file_of(source: str, out: Path) -> Path:
    """Where the directions of a source lie."""
    return out / "directions" / f"{source}.safetensors"


def measure(out: Path, quick: bool) -> list[Row]:
    """Train the hacked run, fit the directions, train every arm; quick: two arms, one seed."""
    hacked = sized([HACKED], quick)[0]
    folder = run_arm(hacked, LEARNED_FROM, out)
    settings, rows = settings_of(hacked, LEARNED_FROM), []
    for name, request in requests_for(folder, 16 if quick else PAIRS).items():
        make = partial(_fit, name, request, out)
        rows += piece(out, f"directions-{name}", settings, make)
    chosen = [arm for arm in arms(out) if not quick or arm.name in QUICK_NAMES]
    seeds = SEEDS[:1] if quick else SEEDS
    return rows + run_arms("defences", sized(chosen, quick), seeds, out)


def requests_for(hacked: Path, num_samples: int) -> dict[str, Request]:
    """What each source learns its directions from."""
    blank = Request(PLAIN, None, None, keep=KEPT, num_samples=num_samples)
    return {
        "learned": replace(blank, after=hacked),
        "probes": replace(blank, before=hacked, probes=("red tint", "blur")),
        "texts": replace(blank, prompts="world"),
    }


HELD = {
    "shared": "shared",
    "wanted": "kept back",
    "held": "held",
    "gain": "reward gained",
    "explained": "of it along the directions",
}


def _fit(name: str, request: Request, out: Path) -> list[Row]:
    found = make_directions(request, file_of(name, out))
    named = {"study": "defences", "kind": "directions", "arm": name, "title": name}
    numbers = {key: getattr(found, key) for key in HELD}
    return [{**named, "seed": LEARNED_FROM, "directions": len(found.rows), **numbers}]


COLUMNS = (
    Column("color_drift", "colour drift"),
    Column("content", "content"),
    Column("held_out_raw_pos", "trained reward"),
    Column("held_out_second", "held-out reward"),
    Column("off_topic_color_drift", "colour drift on control prompts"),
    Column("off_topic_style_kept", "style kept on control prompts", 2),
)
PHOTO_RATE = Column("photo_rate", "photo rate", 2)
LEAK = "off_topic_held_out_raw_pos"
COMPARED = {
    "color_drift": "colour drift",
    "content": "content",
    "held_out_second": "held-out reward",
    LEAK: "leak",
}


def tables(rows: Rows) -> dict[str, Table]:
    runs = rows.runs
    names = list(runs.arms)
    facts = [
        [SOURCES[row["arm"]], str(row["directions"]), *(number(row[key], 3) for key in HELD)]
        for row in rows.where(kind="directions")
    ]
    effect = []
    for ours, theirs in UNDEFENDED.items():
        if ours in names and theirs in names:
            level = runs.highest_common((ours, theirs))
            pairs = runs.pairs(ours, theirs, at_photo_rate(level))
            cells = [signed(difference(pairs, key)) for key in COMPARED]
            effect.append([f"{TITLES[ours]}, minus {TITLES[theirs]}", number(level), *cells])

    def methods(found: dict[str, Rows], *columns: Column) -> Table:
        lines = [["base model", *means(columns, [runs.base])]]
        lines += [[TITLES[name], *means(columns, found[name])] for name in names if name in found]
        return Table(["method", *(column.title for column in columns)], lines)

    at_rate = runs.matched(at_photo_rate(runs.highest_common(names)))
    at_end = runs.matched(lambda run: run[-1])
    columns = ["defence, minus undefended", "at photo rate", *COMPARED.values()]
    return {
        "directions": Table(["learned from", "directions", *HELD.values()], facts),
        "matched_photo_rate": methods(at_rate, *COLUMNS),
        "effect": Table(columns, effect),
        "end": methods(at_end, PHOTO_RATE, *COLUMNS),
    }


def draw(rows: Rows, folder: Path) -> list[Path]:
    runs = rows.runs
    keys = {column.key: column.title for column in (PHOTO_RATE, *COLUMNS[:2], COLUMNS[3])}
    keys |= {LEAK: "trained reward on control prompts", COLUMNS[5].key: COLUMNS[5].title}
    panels = panels_over_updates(runs, list(runs.arms), keys)
    file, title = folder / "defences_curves.png", "Defences against a reward with a taste for red"
    note = "Means over seeds, with 95 % intervals."
    return [curves(file, title, panels, note, columns=2, titles=SHORT)]
