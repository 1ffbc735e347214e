"""What was asked of the first world, asked again where words do not reach: the second world.

windows   One objective at high, middle or low noise, with equal gain. Beforehand: the look is
          decided at high noise, so elsewhere the photo rate stays; the absolute score washes out
          the texture (all images keep less than 85 % of the base's sharpness) in every window.
overlap   Negative phrases that share a word with the positive ones. Beforehand: the difference
          shrinks, so with a KL beside it less is gained; no bias appears. (A phrase that is on both
          sides is refused by the configuration.)
phrases   Other looks as the target, one pair, signs swapped, and phrases without a meaning.
          Beforehand: a look of 2 % of the base's images is reached in fewer than half of all.
long      Ten times the length, and the trained model under other samplers and 20 img2img rounds.
          Beforehand: photo and content do not fall below the value at the recommended length.
policy    Policy gradients at five times the compute of study `rivals`. Beforehand: on the absolute
          score they hack as Direct-Align does, only later: colour distance above the base's.
forms     Ways to differentiate the reward x its form, one learning rate, equal compute.
          Beforehand: SRPO's objective keeps the content of each; none reaches Direct-Align with it.
listens   A reward of the kind of a vision-language model, world2:reward_vlm, which has the words in
          its question: SRPO by it, and Direct-Align on its absolute score. Beforehand, of one that
          answers at least .8 of each kind of question on held-out pairs: words are carried better
          if photo and content end above SRPO's by the CLIP, and the difference is not needed if the
          absolute form reaches .9 of it with no more colour distance. (It does not answer so well,
          see table `answers`. Scale .006 was computed before; one trial, on seed 100.)
diffusion The published forms on Stable Diffusion, the rate of each chosen on validation captions.
          Beforehand: as on FLUX, no published form comes within .10 of SRPO.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from directalign.rewards import load_reward
from directalign.rewards.qwen_vl import VlmReward
from tools.build_toyworld.spec import SPECS
from tools.build_toyworld.vlm_reward import measure_answers, measure_words

from .ddpm import OFFICIAL_RAMPS, QUICK_METHODS
from .few_step import KEPT, references, with_kept
from .learning_rates import with_rate
from .plots import DotColumn, Panel, curves, dots_with_intervals, lines_along
from .rivals import OBJECTIVE, chosen
from .rows import Row, Rows, over
from .runner import (
    ALWAYS,
    Arm,
    Budget,
    drop_weights,
    piece,
    rows_of,
    run_arm,
    run_arms,
    settings_of,
    sized,
    within,
)
from .stability import BASE, KINDS, QUICK, SHOWN_ROUNDS, Size, sampled
from .tables import Column, Table, means
from .unpromptable import WORLD2

Measure = Callable[[Path, bool], list[Row]]
SEEDS, TUNING_SEED = (0, 1), 100
AT_END = "evaluate.every=0"
SRPO = Arm("srpo", "SRPO", "world2_srpo", (*WORLD2, AT_END))
COLUMNS = (
    Column("photo_and_content", "photo and content"),
    Column("photo_rate", "photo rate"),
    Column("style_reject", "rejected"),
    Column("content", "content"),
    Column("color_drift", "colour drift"),
    Column("color_distance", "colour distance"),
    Column("sharpness_left", "sharpness of base"),
    *(Column(f"{key}_kept", title) for key, title in KEPT.items()),
)
"""Sharpness of all images over that of the base model's; the last three are of photos, relative to
photographs through the autoencoder."""

# --- training runs --------------------------------------------------------------------------------

WINDOWS = {"high": (0.97, 0.9), "middle": (0.75, 0.45), "low": (0.3, 0.02)}
"""(highest, lowest) target noise level; the recipe's are .965 and .93."""
FORMS = {
    "absolute": ("absolute score", "world2_direct_align", "train.learning_rate=3e-5"),
    "relative": ("relative", "world2_srpo", "method.form=relative", "train.learning_rate=1e-4"),
    "anchored": ("anchored, with ceiling", "world2_srpo"),
}
NO_PARTS = ("method.ceiling=null", "method.kl_beta=0", "method.kl_noise_levels=null")


def windows() -> list[Arm]:
    """Forms without a KL in three windows of noise levels."""
    arms = []
    for form, (title, recipe, *overrides) in FORMS.items():
        parts = {"relative": NO_PARTS, "anchored": NO_PARTS[1:]}.get(form, ())
        for window, (high, low) in WINDOWS.items():
            levels = f"kind: constant_gain, sigma_high: {high}, sigma_low: {low}, gain: 0.2"
            own = (*WORLD2, *parts, *overrides, f"method.noise_levels={{{levels}}}", AT_END)
            arms.append(Arm(f"{form}_{window}", f"{title}, {window} noise", recipe, own))
    return arms


WINDOWED = windows()
POSITIVE, NEGATIVE = ("Realistic photo", "Natural lighting"), ("CG render", "Glossy plastic")


def _phrases(name: str, title: str, positive: tuple[str, ...], negative: tuple[str, ...]) -> Arm:
    words = f"positive: [{', '.join(positive)}], negative: [{', '.join(negative)}], order: average"
    sides = f"method.control_phrases={{{words}}}"
    return SRPO.of(name, title, sides)


OVERLAP = [
    _phrases("overlap_0", "no shared word", POSITIVE, (*NEGATIVE, "Soft pastel")),
    _phrases("overlap_1", "in one", POSITIVE, ("CG photo", "Glossy plastic", "Soft pastel")),
    _phrases("overlap_3", "in all three", POSITIVE, ("CG photo", "Glossy lighting", "Soft photo")),
]
PHRASES = [
    _phrases("one_pair", "one pair", POSITIVE[:1], NEGATIVE[:1]),
    _phrases("to_soft", "to soft", ("Soft pastel", "Faded print"), NEGATIVE),
    _phrases("to_flat", "to flat", ("Flat cartoon", "Vector art"), NEGATIVE),
    _phrases("swapped", "signs swapped", NEGATIVE, POSITIVE),
    _phrases("unknown", "words without a meaning", ("Flarn", "Wib"), NEGATIVE),
]
LONG = Arm(
    *("long_srpo", "SRPO, 750 updates", "world2_srpo"),
    (*WORLD2, "train.num_steps=750", "evaluate.every=150"),
)
POLICY = [
    Arm(f"{name}_long", f"{title}, 135 updates", f"world_{name}", (*WORLD2, *length))
    for length in [("train.num_steps=135", "evaluate.every=27", "train.learning_rate=1e-4")]
    for name, title in {"grpo_relative": "GRPO, relative", "flow_grpo": "GRPO, absolute"}.items()
]
VLM = (
    "reward={name: vlm, path: 'world2:reward_vlm', question: '{prompt}. Does the image fit?', "
    "answer: log_odds, scale: 0.006, dtype: float32}",
    AT_END,
)
LISTENS = [
    Arm("vlm", "SRPO, VLM", "world2_vlm", (*WORLD2, *VLM)),
    Arm("vlm_absolute", "Direct-Align, VLM", "world2_direct_align", (*WORLD2, *VLM)),
    SRPO.of("clip", "SRPO, CLIP"),
    Arm("clip_absolute", "Direct-Align, CLIP", "world2_direct_align", (*WORLD2, AT_END)),
]
"""The absolute forms have their recipe's rate, 3e-5, and no KL."""
EQUAL = Budget(calls=6_000, measurements=1, num_samples=64, diversity_prompts=8)
SMALL = Budget(calls=32, measurements=1, num_samples=4, diversity_prompts=0, probed=1)
DIFFERENTIATED = {"refl": "ReFL", "draft_lv": "DRaFT-LV", "leapalign": "LeapAlign"}
DIFFERENTIATED |= {"alignprop": "AlignProp"}
OBJECTIVES = {
    "absolute": ("absolute", ()),
    "relative": ("relative", ("method.form=relative",)),
    "objective": ("SRPO's objective", OBJECTIVE),
}
RATE = "train.learning_rate=1e-4"


def forms() -> list[Arm]:
    """Every way to differentiate the reward with every objective."""
    return [
        Arm(f"{name}_{form}", f"{title}, {called}", f"world_{name}", (*WORLD2, RATE, *parts))
        for name, title in DIFFERENTIATED.items()
        for form, (called, parts) in OBJECTIVES.items()
    ]


RATES = (3e-5, 1e-4, 3e-4)
SD = (*WORLD2, "model.path=world2:sd", "train.num_steps=50")
PUBLISHED = ("method.anchor=null", *NO_PARTS)
DIFFUSION = [
    Arm("sd_srpo", "SRPO", "world2_sd", SD),
    Arm("sd_official", "SRPO, released form", "world2_sd", (*SD, *PUBLISHED, *OFFICIAL_RAMPS)),
    Arm(
        *("sd_direct_align", "Direct-Align", "world2_sd"), (*SD, *PUBLISHED, "method.form=absolute")
    ),
]
"""SRPO has the recipe's rate, found on validation captions too."""


# --- measuring ------------------------------------------------------------------------------------


def measure(out: Path, quick: bool) -> list[Row]:
    """Training runs with `group`, rows of kind `tuning`, `sampled` (base and SRPO, `what` is the
    condition of `condition`) and `reference`. Quick: the first arm of a group."""
    (arm,) = sized([SRPO], quick)
    settings = settings_of(arm.plus("evaluate.references=true"), 0)
    rows = piece(out, "references", settings, lambda: _references(settings))
    for group in GROUPS:
        rows += measure_group(group, out, quick)
    flux = Rows(row for row in Rows(rows).runs if not row["arm"].startswith("sd_"))
    for row in flux:
        begun = flux.run(row["arm"], row["seed"])[0]
        row["sharpness_left"] = row["sharpness"] / begun["sharpness"]
    return with_kept(Rows(rows))


def measure_group(group: str, out: Path, quick: bool) -> list[Row]:
    """The rows of one group."""
    found = GROUPS[group](out, quick)
    return [{**row, "study": "second_world", "group": group} for row in found]


def _references(settings: Any) -> list[Row]:
    named = {"kind": "reference", "arm": "base", "title": "base model", "seed": 0}
    return [{**named, **row} for row in references(settings)]


def _trained(arms: list[Arm]) -> Measure:
    def make(out: Path, quick: bool) -> list[Row]:
        found = sized(arms[: 1 if quick else None], quick)
        if quick and arms is POLICY:
            found = [arm.plus(*QUICK_METHODS["flow_grpo"]) for arm in found]
        return run_arms("second_world", found, SEEDS[: 1 if quick else None], out)

    return make


def _long(out: Path, quick: bool) -> list[Row]:
    """Ten times the length; base and SRPO at the recommended length under other samplers."""
    rows = _trained([LONG])(out, quick)
    size, (arm,) = (QUICK if quick else CONDITIONS), sized([SRPO], quick)
    for seed in size.seeds:
        run, folder = settings_of(arm, seed), run_arm(arm, seed, out, keeps_weights=True)
        rows += rows_of("second_world", arm, seed, folder)
        for name, title, trained in ((BASE, "base model", None), (arm.name, arm.title, folder)):
            named = {"arm": name, "title": title, "seed": seed}
            make = partial(sampled, run, trained, seed, size)
            found = piece(out, f"{name}-seed{seed}", run, make)
            rows += [{**row, **named, "kind": "sampled", "condition": row["kind"]} for row in found]
        drop_weights(folder)
    return rows


def _listens(out: Path, quick: bool) -> list[Row]:
    rows = _trained(LISTENS)(out, quick)
    for arm in LISTENS[::2]:
        run = settings_of(arm, 0)
        make = partial(_answers, run.reward, arm.name, arm.title.removeprefix("SRPO, "))
        rows += piece(out, f"answers-{arm.name}", run, make)
    return rows


def _answers(settings: Any, arm: str, title: str) -> list[Row]:
    """What the words move, and of a VLM the shares of right answers, on held-out pairs."""
    reward, spec = load_reward(settings), SPECS["world2"]
    found = measure_words(reward, spec)
    found |= measure_answers(reward, spec) if isinstance(reward, VlmReward) else {}
    return [{"kind": "answers", "arm": arm, "title": title, "seed": 0, **found}]


def _forms(out: Path, quick: bool) -> list[Row]:
    small = ("data.batch_size=2",) if quick else ()
    arms = [
        within(SMALL if quick else EQUAL, arm.plus(*ALWAYS, *small), out)
        for arm in forms()[: 1 if quick else None]
    ]
    return run_arms("second_world", arms, SEEDS[:1], out)


def _diffusion(out: Path, quick: bool) -> list[Row]:
    """Every arm at its own best rate on validation captions."""
    rows = []
    for arm in DIFFUSION[: 1 if quick else None]:
        told = arm
        if arm.name != "sd_srpo":
            tried = [with_rate(arm.plus("evaluate.prompts=world2"), rate) for rate in RATES]
            found = run_arms("second_world", sized(tried, quick), (TUNING_SEED,), out)
            rows += [{**row, "kind": "tuning", "method": arm.name} for row in found]
            best = chosen(Rows(found))
            length = f"train.num_steps={best['step']}"
            told = arm.plus(length, f"train.learning_rate={best['learning_rate']}")
        rows += run_arms("second_world", sized([told], quick), SEEDS[: 1 if quick else None], out)
    return rows


CONDITIONS = Size(64, SEEDS[:1], (4, 10, 25, 50), (1.0, 3.5), (1.0, 2.0), 2, 32, 20)
GROUPS: dict[str, Measure] = {
    "windows": _trained(WINDOWED),
    "overlap": _trained(OVERLAP),
    "phrases": _trained(PHRASES),
    "policy": _trained(POLICY),
    "long": _long,
    "forms": _forms,
    "listens": _listens,
    "diffusion": _diffusion,
}
TITLES = {
    "windows": "Where the reward acts",
    "overlap": "Words that are on both sides",
    "phrases": "Other phrases and looks",
    "policy": "Policy gradients, five times as long",
    "long": "Ten times the length",
    "forms": "Ways to differentiate the reward, and its form",
    "listens": "A reward that reads its question",
    "diffusion": "Stable Diffusion",
}

# --- tables and figures ---------------------------------------------------------------------------


def tables(rows: Rows) -> dict[str, Table]:
    looks = [Column(f"style_{style}", style) for style in ("photo", "cg", "soft", "flat")]
    found = {}
    for group in GROUPS:
        own = rows.runs.where(group=group)
        columns = [*looks, *COLUMNS[2:]] if group == "phrases" else COLUMNS
        lines = [
            [title, str(step), *means(columns, own.at(arm, step))]
            for arm, title in own.arms.items()
            for step in sorted({row["step"] for row in own.where(arm=arm)} - {0})
        ]
        found[group] = Table(["arm", "updates", *(each.title for each in columns)], lines)
    kinds = ("gap of tints", "share that cancels", "fits", "another thing", "another background")
    told = [Column(kind, kind, interval=False) for kind in (*kinds, "true word", "wrong word")]
    answers = [[row["title"], *means(told, [row])] for row in rows.where(kind="answers")]
    found["answers"] = Table(["reward", *(each.title for each in told)], answers)
    found["sampled"] = _sampled(rows.where(kind="sampled"))
    tuned = rows.where(kind="tuning")
    lines = []
    for method in dict.fromkeys(row["method"] for row in tuned):
        own = tuned.where(method=method)
        tried = [Rows(r for r in own.where(learning_rate=x) if r["step"] > 0) for x in RATES]
        at = [max(row["photo_and_content"] for row in each) for each in tried]
        best = chosen(own)
        rate = f"{best['learning_rate']:.0e}, {best['step']} updates"
        title = next(arm.title for arm in DIFFUSION if arm.name == method)
        lines.append([title, *(f"{each:.2f}" for each in at), rate])
    found["tuning"] = Table(["method", *(f"{rate:.0e}" for rate in RATES), "chosen"], lines)
    return found


def _sampled(rows: Rows) -> Table:
    lines, columns = [], [COLUMNS[0], COLUMNS[3], Column("color_drift", "colour drift")]
    for condition in dict.fromkeys(row["condition"] for row in rows):
        own = rows.where(condition=condition)
        for what in dict.fromkeys(row["what"] for row in own):
            if condition != "rounds" or what in (*SHOWN_ROUNDS, 20):
                pair = [own.where(what=what, arm=arm) for arm in (BASE, SRPO.name)]
                cells = [column.cell(each) for column in columns for each in pair]
                lines.append([f"{KINDS.get(condition, 'image seeds')}: {what}", *cells])
    sides = [f"{column.title}, {side}" for column in columns for side in ("base", "aligned")]
    return Table(["sampled with", *sides], lines)


def _short(title: str) -> str:
    """For the margin of a figure."""
    for word in (" objective", " score", ", with ceiling", " noise"):
        title = title.replace(word, "")
    return title


def draw(rows: Rows, folder: Path) -> list[Path]:
    shown, figures = ("photo_and_content", "content", "color_distance", "sharpness_left"), []
    for group in ("windows", "forms"):
        own = rows.runs.where(group=group)
        columns = [
            DotColumn(each.title, {arm: over(own.last(arm), each.key) for arm in own.arms})
            for each in COLUMNS
            if each.key in shown
        ]
        file = folder / f"second_world_{group}.png"
        note = "After training, means over seeds with 95 % intervals"
        names = {arm: _short(title) for arm, title in own.arms.items()}
        figures.append(dots_with_intervals(file, TITLES[group], columns, note, titles=names))
    own = Rows(row for row in rows.runs if row["group"] in ("policy", "long"))
    panels = [
        Panel(each.title.capitalize(), "updates", "", lines_along(own.where(), "step", each.key))
        for each in COLUMNS
        if each.key in shown
    ]
    title = "Long runs: SRPO and policy gradients"
    file = folder / "second_world_long.png"
    names = {arm: called.removesuffix(", 135 updates") for arm, called in own.arms.items()}
    names |= {"long_srpo": "SRPO, long"}
    return [*figures, curves(file, title, panels, "Means over seeds", titles=names)]
