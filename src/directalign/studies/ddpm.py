"""The comparison on the embedded Stable Diffusion: does what holds on a flow hold on a DDPM, and on other noise schedules?

The methods on epsilon and v, SRPO over other windows of levels and other grids of its rollout, and the closed form itself
on the tables of other DDPMs (`schedules`). Learning rates and budgets are those of the recipes.
"""

from __future__ import annotations

from ..toyworld import assets
from .ddpm_story import draw, tell
from .running.experiment import run_arms
from .running.records import Arm, Row
from .running.sizes import sized
from .schedules import exactness
import json
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path


__all__ = ["NAME", "QUESTION", "TITLE", "draw", "measure", "tell"]

NAME = "ddpm"
TITLE = "The comparison on the embedded Stable Diffusion"
QUESTION = (
    "The paper aligns rectified flows and leaves open whether its method holds on DDPMs and on other noise schedules. Here the same methods train the "
    "embedded Stable Diffusion, once predicting the noise and once v, with the same reward and words. SRPO is trained over other windows of levels and other "
    "sampling grids too, and the closed form is held against diffusers' own DDIM step on three tables of alphas."
)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Group:
    """Arms that are compared with each other: on one prediction, by method, window or grid. `parts` are (what, arm)."""

    name: str
    prediction: str
    parts: tuple[tuple[str, Arm], ...]


def measure(out: Path, quick: bool, recipes: Path) -> list[Row]:
    """Rows of all runs, with `group`, `prediction` and `what` (the method, window or grid) beside the arm; then the rows of kind `schedule`."""
    seeds = SEEDS[:1] if quick else SEEDS
    found: list[Row] = []
    for group in groups(out, quick):
        named = {arm.name: {"group": group.name, "prediction": group.prediction, "what": what} for what, arm in group.parts}
        rows = run_arms(NAME, sized([arm for _, arm in group.parts], quick), seeds, out, recipes)
        found += [{**row, **named[row["arm"]]} for row in rows]
    facts = {key: found[0][key] for key in ("study", "commit", "machine", "versions")}
    return found + [{**facts, **row} for seed in seeds for row in exactness(seed)]


def groups(out: Path, quick: bool) -> list[Group]:
    """What is trained; the quick size keeps every method on epsilon, SRPO on v, and one other grid."""
    methods = [Group("methods", name, methods_of(name, quick)) for name in ("epsilon", "v")]
    grid = Group("grids", "epsilon", grids(out))
    if not quick:
        return [*methods, Group("windows", "epsilon", windows()), grid]
    return [methods[0], *(replace(group, parts=group.parts[:1]) for group in (methods[1], grid))]


# --- arms -------------------------------------------------------------------------------------------------------------

OFFICIAL_RAMPS = (
    "method.form=relative",
    "method.branches=both",
    "method.words.order=cycle",
    "method.denoise={k_pos: {low_noise: 0.1, high_noise: 0.25}}",
    "method.inversion={k_neg: {low_noise: 0.3, high_noise: 0.01}}",
)
METHODS = {
    "srpo": ("SRPO, anchored", "world_sd", ()),
    "srpo_official": ("SRPO, official ramps", "world_sd", OFFICIAL_RAMPS),
    "direct_align": ("Direct-Align", "world_sd_direct_align", ()),
    "refl": ("ReFL", "world_sd_refl", ()),
    "draft_lv": ("DRaFT-LV", "world_sd_draft_lv", ()),
    "flow_grpo": ("Flow-GRPO (DDIM steps)", "world_sd_flow_grpo", ("evaluate.every=10",)),
}
"""Title, recipe and overrides of each method. Policy gradient's recipe spends several times the calls of the others, and the table says so."""
ON_V = ("srpo", "direct_align", "refl")
"""The methods that are tried on the v-predicting checkpoint too."""
QUICK_METHODS = {"refl": ("method.last_steps=1",), "flow_grpo": ("method.trained_steps=1", "method.group_size=2")}
"""What fits a rollout of two steps."""
MEASURED = ("evaluate.num_pairs=32", "evaluate.pairs_during=32", "evaluate.every=10")


def methods_of(prediction: str, quick: bool) -> tuple[tuple[str, Arm], ...]:
    """Every method on one of the two checkpoints."""
    model = {"epsilon": "world:sd", "v": "world:sd_v"}[prediction]
    arms = []
    for name, (title, recipe, overrides) in METHODS.items():
        if prediction == "v" and name not in ON_V:
            continue
        extra = QUICK_METHODS.get(name, ()) if quick else ()
        arms.append((name, Arm(f"{prediction}-{name}", f"{title}, {prediction}", recipe, (f"model.path={model}", *MEASURED, *overrides, *extra))))
    return tuple(arms)


WINDOWS = {
    "gain .2, sigma .98 to .7 (recipe)": "{kind: constant_gain, sigma_high: 0.98, sigma_low: 0.7, gain: 0.2}",
    "jump .02, sigma .96 to .5": "{kind: uniform, sigma_high: 0.96, sigma_low: 0.5, jump: 0.02}",
    "official grid, sigma .964 to .75": "{kind: window}",
}


def windows() -> tuple[tuple[str, Arm], ...]:
    """Anchored SRPO over other levels, by jumps or by gains."""
    return tuple((title, _other(f"window-{place}", title, f"method.moves={moves}")) for place, (title, moves) in enumerate(WINDOWS.items()))


def grids(out: Path) -> tuple[tuple[str, Arm], ...]:
    """Anchored SRPO, trained and sampled on other grids: another of diffusers' spacings of timesteps, and fewer steps."""
    trailing = ("10 steps, trailing", f"model.path={with_spacing(out / 'models', 'trailing')}")
    fewer = ("5 steps, leading", "rollout.num_sampling_steps=5")
    return tuple((title, _other(f"grid-{place}", title, override)) for place, (title, override) in enumerate([trailing, fewer]))


def _other(name: str, title: str, override: str) -> Arm:
    return Arm(name, title, "world_sd", (*MEASURED, "evaluate.every=0", override))


def with_spacing(folder: Path, spacing: str) -> Path:
    """The embedded Stable Diffusion in `folder`, its scheduler visiting timesteps by another of diffusers' spacings; made once."""
    model = folder / f"sd-{spacing}"
    if not model.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            copy = shutil.copytree(assets.resolve("world:sd"), Path(partial) / "sd")
            settings = copy / "scheduler" / "scheduler_config.json"
            settings.write_text(json.dumps(json.loads(settings.read_text(encoding="utf-8")) | {"timestep_spacing": spacing}), encoding="utf-8")
            copy.replace(model)
    return model
