"""Runs on two processes equal those on one, whole and sharded, and each continues the other's."""

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import launching
import pytest
import torch
from launching import one_process, records, torchrun, train
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import tiny
from directalign import config
from directalign.evaluation.generate import generate
from directalign.export.average import average_run
from directalign.io import atomic
from directalign.io.checkpoint_files import METHOD, read_group
from directalign.io.checkpoint_files import WEIGHTS as WEIGHTS_GROUP
from directalign.methods.objective_math import Reference
from directalign.models import load_model
from directalign.training import early_stopping, run_log
from low_rank_updates import updates_of_shape, write_lora

HALF = "--set=data.batch_size=2"
"""Of the recipe's four prompts per step."""
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
STOPPING = (
    "--set=evaluate.every=1",
    "--set=train.num_steps=9",
    "--set=train.save_every=1",
    "--set=early_stopping={metric_for_best: score_pos, patience: 1, "
    "max_degradation: {color_drift: 0.5, brightness: 0.5}}",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Output folder of a run on one process, by `model.tune`; its recipe lies beside it."""
    folder = tmp_path_factory.mktemp("whole")

    @cache
    def run(tune: str, *more: str) -> Path:
        recipe, out, log = launching.write_recipe(folder, tune), folder / tune, folder / "log"
        assert one_process(train(recipe, out, *more), log) == 0, log.read_text()
        return out

    return run


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(next(out.glob("lora.safetensors"), out / WEIGHTS))


def distance(ours: Path, theirs: Path) -> float:
    """The largest difference of a saved weight."""
    first, second = weights(ours), weights(theirs)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def alike(ours: Any, theirs: Any) -> bool:
    """Equal except for rounding: numbers within 1e-4."""
    if isinstance(theirs, Mapping):
        return ours.keys() == theirs.keys() and all(alike(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(alike, ours, theirs))
    return ours == (pytest.approx(theirs, 1e-4, 1e-4) if isinstance(theirs, float) else theirs)


def test_sharded_processes_match_one_process_and_each_continues_the_other(whole, tmp_path):
    """All weights: the first half of `a` and the second of `b` on two processes; also the mean of
    sharded checkpoints."""
    wanted, a, b, log = whole("full"), tmp_path / "a", tmp_path / "b", tmp_path / "log"
    recipe = wanted.with_suffix(".yaml")
    assert torchrun(train(recipe, a, HALF), log, launching.kill_once(3, rank=1)) != 0
    assert [record["step"] for record in records(a, "step")] == [1, 2, 3]
    assert one_process(train(recipe, a, "--resume"), log) == 0, log.read_text()
    short = train(recipe, b, "--set=train.num_steps=2")
    assert one_process(short, log) == 0, log.read_text()
    longer = "--set=train.num_steps=5", HALF, "--resume"  # 2 of the call before, else
    assert torchrun(train(recipe, b, *longer), log) == 0, log.read_text()
    assert alike(records(a), records(wanted))
    for out in (a, b):
        assert distance(out, wanted) < 1e-5 and alike(records(out, "step"), records(wanted, "step"))
        for theirs in (wanted / "samples").glob("*.png"):
            ours = run_log.load_grid(out / "samples" / theirs.name)
            assert (ours - run_log.load_grid(theirs)).abs().max() < 1.5 / 255
    assert alike(records(b, "evaluate")[-1], records(wanted, "evaluate")[-1])
    base = load_file(wanted.parent / "model" / WEIGHTS)
    moved = max(float((weights(wanted)[name] - base[name]).abs().max()) for name in base)
    assert moved > 1e-4
    kl = [record["metrics"]["kl"] for record in records(a, "step")]
    assert kl[0] == 0 < kl[-1]
    assert json.loads((b / "summary.json").read_text())["ranks"] == 2
    assert list((b / "checkpoints" / "step-000004").glob("shard-00002*"))
    for name, run in (("ours", b), ("theirs", wanted)):
        average_run(run, tmp_path / name, last=2, base_share=0.25)
    assert distance(tmp_path / "ours", tmp_path / "theirs") < 1e-5


def test_two_nodes_that_shard_alone_match_one_process_which_continues_them(whole, tmp_path):
    """Four processes of one prompt each: two nodes with a copy of the weights, split in two."""
    wanted, out, log = whole("full"), tmp_path / "out", tmp_path / "log"
    recipe = wanted.with_suffix(".yaml")
    given = train(recipe, out, "--set=data.batch_size=1", "--set=train.parallel=hybrid")
    short = (*given, "--set=train.num_steps=3", "--set=train.save_every=3")
    assert launching.processes(lambda: launching.run(short), log, nodes=2) == [0] * 4
    assert json.loads((out / "summary.json").read_text())["ranks"] == 4
    longer = train(recipe, out, "--resume", "--set=train.num_steps=5")
    assert one_process(longer, log) == 0, log.read_text()
    assert distance(out, wanted) < 1e-5 and alike(records(out, "step"), records(wanted, "step"))


def test_hybrid_nodes_of_unequal_size_are_refused_by_all(whole, tmp_path):
    """Two processes, of which one is told of a node of two and one of a node of one."""
    recipe, log = whole("full").with_suffix(".yaml"), tmp_path / "log"
    given = train(recipe, tmp_path / "out", "--set=train.parallel=hybrid", HALF)

    def on_each_rank() -> None:
        os.environ["LOCAL_WORLD_SIZE"] = "1" if os.environ["RANK"] == "1" else "2"
        launching.run(given)

    assert launching.processes(on_each_rank, log) == [1, 1]
    assert "train.parallel: hybrid needs the same number of processes" in log.read_text()


def test_a_method_with_its_own_copy_of_the_weights_continues_on_other_processes(tmp_path):
    """DiffusionNFT's old policy, sharded as the weights are, in a checkpoint of two processes; its
    samples are made with a LoRA."""
    recipe, log = launching.write_recipe(tmp_path, "full"), tmp_path / "log"
    one, two = tmp_path / "one", tmp_path / "two"
    nft = "--set=method={name: diffusion_nft, group_size: 2, old_decay_rise: 0.2, kl_beta: 0.1}"
    write_lora(tmp_path / "few", updates_of_shape({"transformer_blocks.0.attn.to_q": (16, 16)}))
    method = nft, f"--set=rollout.lora={tmp_path}/few"
    assert one_process(train(recipe, one, *method), log) == 0, log.read_text()
    assert torchrun(train(recipe, two, *method, HALF), log, launching.kill_once(3, rank=1)) != 0
    (saved,) = (two / "checkpoints").glob("step-*")
    assert len(read_group(saved, METHOD)) == len(read_group(saved, WEIGHTS_GROUP))
    assert one_process(train(recipe, two, "--resume"), log) == 0, log.read_text()
    assert alike(records(two, "step"), records(one, "step")) and distance(two, one) < 2e-5
    assert records(one, "step")[-1]["metrics"]["old_distance"] > 0


def test_block_swap_changes_no_digit_and_continues_without_it_on_other_processes(tmp_path):
    """With a ceiling of the best images, which is not measured again."""
    recipe, log = launching.write_recipe(tmp_path, "lora"), tmp_path / "log"
    plain, swapped, two = (tmp_path / name for name in ("plain", "swapped", "two"))
    recompute, swap = "--set=model.gradient_checkpointing=true", "--set=model.block_swap=2"
    both = recompute, "--set=method.ceiling={images: 5, best: 0.5}"
    assert one_process(train(recipe, plain, *both), log) == 0, log.read_text()
    assert one_process(train(recipe, swapped, *both, swap), log) == 0, log.read_text()
    assert distance(swapped, plain) == 0 and losses(swapped) == losses(plain)
    given = train(recipe, two, *both, swap, HALF)
    assert torchrun(given, log, launching.kill_once(3, rank=1)) != 0
    without = "--set=model.block_swap=null"
    assert one_process(train(recipe, two, without, "--resume"), log) == 0, log.read_text()
    assert alike(records(two, "step"), records(plain, "step")) and distance(two, plain) < 1e-5
    check_ceiling(plain, log, "unasked, the best 3")


def check_ceiling(out: Path, log: Path, how: str) -> None:
    """Measured on five images, and once."""
    before, _, after = log.read_text().partition("continuing from")
    assert f"ceiling of clip: 5 images of the base model, {how}" in before
    assert after and "ceiling of" not in after
    assert len({record["metrics"]["ceiling"] for record in records(out, "step")}) == 1


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in records(out, "step")]


def test_two_processes_train_on_pairs_as_one_does(tmp_path):
    recipe, log = launching.write_recipe(tmp_path, "full"), tmp_path / "log"
    one, two, rows = tmp_path / "one", tmp_path / "two", []
    for n in range(6):
        Image.new("RGB", (32, 32), (40 * n, 90, 9)).save(tmp_path / f"{n}.png")
        rows.append({"prompt": f"star {n}", "chosen": f"{n}.png", "rejected": f"{(n + 1) % 6}.png"})
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = f"--set=data={{prompts: null, pairs: {tmp_path}}}", "--set=method={name: dpo}"
    assert one_process(train(recipe, one, *data), log) == 0, log.read_text()
    assert torchrun(train(recipe, two, *data, HALF), log) == 0, log.read_text()
    assert alike(records(two, "step"), records(one, "step")) and distance(two, one) < 2e-5
    assert records(one, "step")[-1]["metrics"]["margin"] != 0


SMALL = "--set=train.num_steps=2", "--set=evaluate={num_samples: 1, references: false}"
SETTINGS = {
    "awm": ("method={{name: awm, group_size: 2, old_decay_rise: 0.2, kl_beta: 0.1}}",),
    "raft": ("method={{name: raft, candidates: 2, kl_beta: 0.1}}",),
    "edits": (  # at the levels of the rollout
        "method.noise_levels={{kind: rollout}}",
        "model={{architecture: flux_kontext, path: {0}/kontext, tune: lora}}",
        "data={{prompts: null, edits: {0}/edits.jsonl}}",
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_train_as_one_does(tmp_path, name):
    """Of methods that make groups DiffusionNFT is above, on sharded weights."""
    recipe, log = launching.write_recipe(tmp_path, "lora"), tmp_path / "log"
    one, two, rows = tmp_path / "one", tmp_path / "two", []
    if name == "edits":
        tiny.write_flux_kontext(tmp_path / "kontext")
        for n in range(4):
            Image.new("RGB", (32, 32), (60 * n, 90, 9)).save(tmp_path / f"{n}.png")
            rows.append({"prompt": f"star {n}", "source": f"{n}.png"})
        (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = [*SMALL, *(f"--set={each.format(tmp_path)}" for each in SETTINGS[name])]
    assert one_process(train(recipe, one, *given), log) == 0, log.read_text()
    assert torchrun(train(recipe, two, *given, HALF), log) == 0, log.read_text()
    assert alike(records(two, "step"), records(one, "step")) and distance(two, one) < 2e-5


def test_two_processes_stop_early_at_the_same_step(tmp_path):
    """Killed once and restarted; finished once more by one process."""
    recipe, log = launching.write_recipe(tmp_path, "lora"), tmp_path / "log"
    one, two = tmp_path / "one", tmp_path / "two"
    assert one_process(train(recipe, one, *STOPPING), log) == 0, log.read_text()
    killed = launching.kill_once(step=1, rank=1)
    assert torchrun(train(recipe, two, *STOPPING, HALF), log, killed, 1) == 0, log.read_text()
    ends = [[(r["event"], r["step"]) for r in records(out, "stop", "kept")] for out in (one, two)]
    assert ends[0] == ends[1] and [event for event, _ in ends[0]] == ["stop", "kept"]
    assert len(records(one, "step")) < 9 and distance(two, one) < 2e-5
    assert alike(records(two, "step"), records(one, "step"))
    assert not list((two / "checkpoints").glob("*/shard-*"))
    paths = [early_stopping.best_path(two, step) for step in early_stopping.best_steps(two)]
    assert paths and all(atomic.damage(path) is None for path in paths)
    before = (two / "metrics.jsonl").read_bytes()
    assert one_process(train(recipe, two, *STOPPING, "--resume"), log) == 0, log.read_text()
    assert (two / "metrics.jsonl").read_bytes() == before and distance(two, one) < 2e-5
    assert "stopped after step" in log.read_text()


def test_two_processes_reuse_a_rollout_and_measure_a_ceiling_as_one_does(tmp_path):
    """Five images: the last process fills up. Killed between the two updates of a rollout, and
    continued from there without measuring again."""
    recipe, log = launching.write_recipe(tmp_path, "lora"), tmp_path / "log"
    one, two = tmp_path / "one", tmp_path / "two"
    more = "--set=method.ceiling={images: 5}", "--set=rollout.reuse=2"
    assert one_process(train(recipe, one, *more), log) == 0, log.read_text()
    more = (*more, "--set=train.save_every=1", HALF)
    killed = launching.kill_once(3, rank=1)
    assert torchrun(train(recipe, two, *more), log, killed, 1) == 0, log.read_text()
    assert alike(records(two, "step"), records(one, "step")) and distance(two, one) < 2e-5
    forward = [record["nfe"]["forward"] for record in records(one, "step")]
    assert forward == [forward[0], forward[0] - 4 * 2] * 2 + [forward[0]]
    check_ceiling(one, log, "asked with the positive phrases")


class Rank:
    """One of several ranks; `sum` adds `others`, `gather` stores its argument."""

    def __init__(self, rank: int, size: int, others: float = 0.0) -> None:
        self.rank, self.size, self.others, self.sent = rank, size, others, torch.empty(0)

    def sum(self, values: Tensor) -> Tensor:
        return values + self.others

    def gather(self, values: Tensor) -> Tensor:
        self.sent = values
        return torch.cat([values] * self.size)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    model = {"architecture": "flux", "path": str(tiny.write_flux(folder / "model")), "tune": "full"}
    given = {
        "name": "tiny",
        "model": model,
        "reward": {"name": "pixels", "statistic": "redness"},
        "method": {"form": "absolute"},
        "rollout": {"num_inference_steps": 2, "embedded_guidance": 2.0},
        "data": {"prompts": "none"},
        "train": {"num_steps": 1},
    }
    return config.RunConfig.model_validate(given)


@pytest.mark.parametrize("size", [2, 8])
def test_ranks_generate_equal_parts_of_the_images(run, size):
    model, seeds = load_model(run.model, "cpu"), range(5)
    prompts = [f"a star {i}" for i in seeds]
    ranks = [Rank(rank, size) for rank in range(size)]
    for rank in ranks:
        assert len(generate(model, prompts, seeds, run.rollout, 2, rank)) == len(prompts)
    assert len({len(rank.sent) for rank in ranks}) == 1
    joined = torch.cat([rank.sent for rank in ranks])[: len(prompts)]
    assert (joined - generate(model, prompts, seeds, run.rollout, 2)).abs().max() < 1e-5


def test_all_ranks_have_one_reference():
    one, both = Reference(2), Reference(2)
    one.update(torch.tensor([1.0, 2.0]), 0)
    both.update(torch.tensor([1.0, 2.0]), 0, Rank(0, 2, others=4.0))
    assert (one.total, one.count) == (3.0, 2) and (both.total, both.count) == (7.0, 6)
    both.update(torch.tensor([9.0]), 2, Rank(0, 2, others=4.0))
    assert both.count == 6
