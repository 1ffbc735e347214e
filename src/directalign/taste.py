"""From votes to a model, in rounds: candidates, votes, training on them, images before and after.

    FOLDER/taste.json           what was asked for
    FOLDER/recipe.yaml          how the model is trained on pairs (Flow-DPO); may be edited
    FOLDER/held_out.jsonl       prompts of the comparisons, on whose images no training vote is cast
    FOLDER/round1/candidates    two images of each prompt, as a comparison folder for the arena
    FOLDER/round1/votes.sqlite  the votes on them
    FOLDER/round1/pairs         what was preferred, as pairs to train on
    FOLDER/round1/run           the training run
    FOLDER/round1/comparison    base and tuned model on held-out prompts
    FOLDER/round1/after.sqlite  the votes on these

Round 2 votes on images of round 1's model. Its training begins with that LoRA and reads the votes
of both rounds; the reference of DPO stays the base model. What is there is kept, so a step that was
interrupted continues. The voting itself is `arena`'s, the training `training`'s.
"""

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from .arena.pairs import PAIRS, decide, write_pairs
from .arena.records import Vote
from .arena.statistics import Wins, win_rates
from .arena.store import Store
from .config import TRAINING_ONLY
from .config.load import is_recipe, load_run, load_text
from .data.pairs import KEYS
from .data.prompts import read_prompts
from .data.shuffle import permutation
from .evaluation.candidates import Candidate, generate_all, image_file
from .evaluation.compare import Request, compare
from .evaluation.eval_prompts import EvalSample
from .evaluation.generate import run_of
from .evaluation.run_weights import find_weights
from .io.atomic import exclusive, make_folder, new_folder, require_new, write_text
from .io.text import json_rows, read_json
from .io.yaml_text import dump_yaml
from .models import model_class
from .models.checkpoint_source import open_source
from .preflight import this_machine
from .preflight.checks import check_model_here
from .preflight.guidance import usual
from .toyworld.worlds import world_of
from .types import DirectAlignError

STATE, RECIPE, HELD_OUT = "taste.json", "recipe.yaml", "held_out.jsonl"
SIDES = "first", "second"
MIN_PAIRS = 8
"""Fewer decided votes of a round are refused: a batch or two, which a LoRA learns by heart."""
SEEDS_APART = 1_000_000
"""Seeds of a round's candidates, beyond those of comparisons (from 10,000)."""


@dataclass(frozen=True)
class Taste:
    """What was asked for: see `start`; `prompts` are those to vote on."""

    source: str
    prompts: list[str]
    pairs: int
    compared: int
    phrases: list[str]
    seed: int
    overrides: list[str]


@dataclass(frozen=True)
class Round:
    """The files of round `number` of `folder`."""

    folder: Path
    number: int

    def __truediv__(self, name: str) -> Path:
        return self.folder / f"round{self.number}" / name

    @property
    def before(self) -> Path | None:
        """The run of the round before, whose model is voted on; None for the base model."""
        return Round(self.folder, self.number - 1) / "run" if self.number > 1 else None

    @property
    def is_trained(self) -> bool:
        """Whether its training has ended."""
        return (self / "run/summary.json").is_file()


def start(
    source: str,
    prompts: str,
    folder: Path,
    pairs: int,
    compared: int,
    phrases: Sequence[str] = (),
    seed: int = 0,
    overrides: Sequence[str] = (),
) -> None:
    """Write the state of `folder`; nothing if it was begun with the same arguments.

    Args:
        source: a model, or a recipe, of which model, rollout, trackers, optimizer and the number
            of images sampled at once are taken.
        prompts: a list as `read_prompts` takes it, of which a quarter is held out.
        pairs: to vote on in a round. compared: images before and after.
        phrases: of two images of a pair each has another of them, or none, before its prompt.
        seed: of the order of the prompts, the images and the training.
        overrides: of the recipe that is written.
    Raises: DirectAlignError for another folder, fewer than 4 prompts, an invalid recipe.
    """
    found = list(dict.fromkeys(read_prompts(prompts)))
    held_out = len(found) // 4
    if not held_out:
        raise DirectAlignError(
            f"{prompts}: {len(found)} prompts, of which a quarter is held out for the comparison; "
            "give at least 4"
        )
    shuffled = [found[place] for place in permutation(len(found), seed, 0, "taste")]
    given = pairs, compared, list(phrases), seed, list(overrides)
    state = Taste(source, shuffled[held_out:], *given)
    if (folder / STATE).is_file():
        if load(folder) != state:
            raise DirectAlignError(
                f"{folder}: was begun with other options; give those, or directalign taste start "
                f"{folder}"
            )
        return
    require_new(folder)
    recipe = _recipe(source, folder, seed, overrides)
    with new_folder(folder) as made:
        write_text(made / RECIPE, recipe)
        rows = (json.dumps({"prompt": each}, ensure_ascii=False) for each in shuffled[:held_out])
        write_text(made / HELD_OUT, "".join(f"{row}\n" for row in rows))
        write_text(made / STATE, json.dumps(asdict(state), indent=2, ensure_ascii=False) + "\n")


def _recipe(source: str, folder: Path, seed: int, overrides: Sequence[str]) -> str:
    """A DPO recipe in YAML. No rate was searched for large models."""
    base, folder_of_run = (load_run(source), None) if is_recipe(source) else run_of(Path(source))
    if folder_of_run is not None:
        form = "folder --merge" if base.model.tune == "lora" else "folder"
        raise DirectAlignError(
            f"{source}: is a run, and taste begins with a model; give the folder that directalign "
            f"export {shlex.quote(source)} --format {form} writes"
        )
    architecture = base.model.architecture
    if base.data.edits is not None or getattr(model_class(architecture), "edits_images", False):
        raise DirectAlignError(
            f"{source}: data.edits, model.architecture {architecture}: edits images, and taste "
            "votes on images of prompts alone; give a model that makes these"
        )
    given = base.model_dump(mode="json", exclude_unset=True)
    if not is_recipe(source) and not world_of(source):
        index = read_json(
            open_source(base.model, weights=False).folder / "model_index.json", "restore it"
        )
        given["rollout"] |= usual(architecture, Path(source).name, index)
    kept = ("model", "rollout", "trackers")
    sections: dict[str, Any] = {name: given[name] for name in kept if name in given}
    sections["model"] |= {"tune": "lora"}
    sections["model"].pop("trained_dtype", None)
    for key in TRAINING_ONLY:
        sections.get("rollout", {}).pop(key, None)
    sections |= {
        "name": "Taste",
        "seed": seed,
        "reward": {"name": "pixels", "statistic": "brightness"},  # measured only
        "method": {"name": "dpo"},
        "data": {"pairs": str(folder / "round1/pairs"), "batch_size": 1},
        "train": {"num_steps": 100, "learning_rate": 1e-4, "global_batch_size": 8},
        "evaluate": {"num_samples": 4, "num_samples_during": 4, "references": False},
    }
    if "optimizer" in given["train"]:
        sections["train"]["optimizer"] = given["train"]["optimizer"]
    if size := given.get("evaluate", {}).get("batch_size", 0 if world_of(base.model.path) else 1):
        sections["evaluate"]["batch_size"] = size
    run = load_text(dump_yaml(sections), source, overrides)
    if run.model.lora.init is not None:
        raise DirectAlignError(
            f"{source}: model.lora.init: {run.model.lora.init}: images to vote on and the base of "
            "the comparison are made without it; merge it into the model that model.path names "
            "and leave the key out"
        )
    if (run.method.name, run.model.tune) != ("dpo", "lora"):
        raise DirectAlignError(
            f"--set: taste trains a LoRA on pairs, not {run.method.name} with model.tune: "
            f"{run.model.tune}; leave these keys out"
        )
    return dump_yaml(run.model_dump(mode="json", exclude_unset=True))


def load(folder: Path) -> Taste:
    """The state of `folder`. Raises: DirectAlignError if it holds none."""
    remedy = f"begin with directalign taste start MODEL --prompts FILE --out {folder}"
    return Taste(**read_json(folder / STATE, remedy, Taste))


def current(folder: Path) -> Round:
    """The first round whose training has not ended."""
    found = Round(folder, 1)
    while found.is_trained:
        found = Round(folder, found.number + 1)
    return found


def to_vote_on(folder: Path) -> Round:
    """The round that takes votes. Raises: DirectAlignError if its training has begun."""
    found = current(folder)
    if (found / "run/run.yaml").is_file():
        raise DirectAlignError(
            f"{found / 'run'}: the training of round {found.number} has begun, which reads no "
            f"further votes; finish it with directalign taste train {shlex.quote(str(folder))}, "
            "or remove the run to vote on"
        )
    return found


def last_trained(folder: Path) -> Round:
    """The last round whose training has ended. Raises: DirectAlignError if there is none."""
    found = current(folder).number - 1
    if not found:
        raise DirectAlignError(
            f"{folder}: no round is trained yet; directalign taste train {folder}"
        )
    return Round(folder, found)


def asked(this: Round) -> list[EvalSample]:
    """The images of a round, two after each other for every pair: each with its own seed, and with
    one of two phrases, if there are any, before the prompt."""
    state = load(this.folder)
    first = SEEDS_APART * (1 + 100 * state.seed + this.number)
    sides = list(combinations(("", *state.phrases), 2)) or [("", "")]
    found = list[EvalSample]()
    for place in range(state.pairs):
        for phrase in sides[place % len(sides)]:
            prompt = _prompt(state, this, place)
            text = f"{phrase}. {prompt}" if phrase else prompt
            found.append(EvalSample(len(found), text, first + len(found)))
    return found


def check_candidates(this: Round) -> list[str]:
    """Warnings about the model and its guidance, none where the images to vote on are made.

    Raises: DirectAlignError for settings that the model or this machine cannot sample with.
    """
    if (this / "candidates/comparison.json").is_file():
        return []
    run = load_run(this.folder / RECIPE)
    return check_model_here(run, this_machine(), online=True)[1]


def make_candidates(this: Round, batch_size: int | None = None) -> Path:
    """The images to vote on, by the base model or the last round's; returns their folder."""
    state, out = load(this.folder), this / "candidates"
    if (out / "comparison.json").is_file():
        return out
    make_folder(out)
    with exclusive(out, "sampling into it"):
        generate_all([_model(this)], asked(this), {}, out, batch_size)
    rows = [
        {"model": side, "index": place, "prompt": _prompt(state, this, place)}
        | {"file": image_file("model", 2 * place + number)}
        for place in range(state.pairs)
        for number, side in enumerate(SIDES)
    ]
    write_text(out / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    models = [{"key": side, "label": f"{side.capitalize()} image"} for side in SIDES]
    write_text(out / "comparison.json", json.dumps({"format": 1, "models": models}) + "\n")
    return out


def _prompt(state: Taste, this: Round, place: int) -> str:
    """The prompt of a pair of a round; rounds go on where the last one ended."""
    return state.prompts[((this.number - 1) * state.pairs + place) % len(state.prompts)]


def _model(this: Round) -> Candidate:
    if this.before is None:
        run = load_run(this.folder / RECIPE)
        return Candidate("model", "Base model", "base", run.model.path, run)
    run, folder = run_of(this.before)
    assert folder is not None
    weights = find_weights(run, folder)
    return Candidate("model", run.name, "run", str(folder), run, weights)


def prepare_training(this: Round) -> list[str]:
    """Write the pairs that the votes decided; returns the overrides of FOLDER/recipe.yaml.

    Raises: DirectAlignError without an arena, or with fewer than `MIN_PAIRS` pairs of this round.
    """
    if not (this / "run/run.yaml").is_file():
        database, own = this / "votes.sqlite", this / "pairs"
        decided = num_decided(database) if database.is_file() else 0
        if decided < MIN_PAIRS:
            raise DirectAlignError(
                f"{database}: {decided} pairs are decided, and a training needs {MIN_PAIRS}; vote "
                f"on more of them: directalign taste start {this.folder}"
            )
        shutil.rmtree(own, ignore_errors=True)  # of an attempt that did not train
        write_pairs(database, own)
        rows = []
        for number in range(1, this.number + 1):
            place = f"../round{number}/pairs"
            for _, row in json_rows(this / place / PAIRS, "pairs file"):
                rows.append({**row, **{key: f"{place}/{row[key]}" for key in KEYS}})
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(this / PAIRS, text)
    paths = {"data.pairs": this / PAIRS, "model.lora.init": this.before}
    given = {key: json.dumps(str(path), ensure_ascii=False) for key, path in paths.items() if path}
    return [f"name=Taste of round {this.number}", *(f"{key}={each}" for key, each in given.items())]


def num_pairs(this: Round) -> int:
    """Number of pairs that the training of a round reads: those of its votes and of earlier ones.

    Raises: DirectAlignError before `prepare_training`.
    """
    return sum(1 for _ in json_rows(this / PAIRS, "pairs file"))


def make_comparison(this: Round) -> Path:
    """Images of the base model and the tuned one, on held-out prompts; returns their folder."""
    runs, prompts = (str(this / "run"),), str(this.folder / HELD_OUT)
    count = load(this.folder).compared
    return compare(
        Request(runs, this / "comparison", True, prompts, num_samples=count, seeds_per_prompt=1)
    )


def outcome(database: Path) -> Wins | None:
    """The tuned model against the base model in the votes of a comparison; None without votes."""
    models, votes = answers(database)
    found = win_rates(votes, models)
    return found[0] if found else None


def num_decided(database: Path) -> int:
    """Number of pairs that the votes decide."""
    return len(decide(answers(database)[1])[0])


def answers(database: Path) -> tuple[list[str], list[Vote]]:
    """Models and votes of an arena."""
    store = Store(database)
    try:
        return list(store.models()), store.votes()
    finally:
        store.close()
