"""Sweeps: killed in the middle and repeated, no run is repeated; tables of their comparison."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import forked
from directalign.io.atomic import is_locked
from directalign.training.run_log import read

NUM_STEPS = 8
SMALL = [f"train.num_steps={NUM_STEPS}", "rollout.num_inference_steps=2", "data.batch_size=2"]
SMALL += ["evaluate.num_samples=4", "train.save_every=2", "train.sample_every=0"]
SMALL += ["evaluate.every=0", "evaluate.diversity_prompts=0", "evaluate.references=false"]
SMALL += ["train.sample_prompts=[a red star on a navy background]"]
FOLDERS = ["learning_rate-0.001_seed-0", "learning_rate-0.003_seed-0"]
FOLDERS += [name.replace("seed-0", "seed-1") for name in FOLDERS]


def start(folder: Path, *words: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "directalign", "sweep", "world_srpo_lora", *words]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
    return forked.popen(command, cwd=folder, **output)


def wait_for(process: "subprocess.Popen[str]", *texts: str) -> None:
    """Read lines until one of them contains each of the texts, in this order."""
    wanted = list(texts)
    for line in process.stdout:
        if wanted and wanted[0] in line:
            wanted.pop(0)
        if not wanted:
            return
    raise AssertionError(f"{wanted} did not come")


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    process.stdout.close()


def steps(folder: Path) -> list[int]:
    return [record["step"] for record in read(folder) if record["event"] == "step"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of four runs that was killed in the second and then finished."""
    folder = tmp_path_factory.mktemp("sweep")
    words = *SMALL, "--seeds", "0,1", "--grid", "train.learning_rate=1e-3,3e-3", "--out", "sw"
    first = start(folder, *words)
    wait_for(first, f"{FOLDERS[0]}: finished", f"step 3/{NUM_STEPS}")
    kill(first)
    before = {file: file.stat().st_mtime_ns for file in (folder / "sw" / FOLDERS[0]).rglob("*")}
    assert steps(folder / "sw" / FOLDERS[1])[:3] == [1, 2, 3]
    assert not (folder / "sw" / FOLDERS[2]).exists()
    second = start(folder, *words)
    said, _ = second.communicate()
    assert second.returncode == 0, said
    return folder / "sw", before, said


def test_a_killed_sweep_finishes_without_repeating_a_run(swept):
    out, before, said = swept
    assert {file: file.stat().st_mtime_ns for file in before} == before
    for name in FOLDERS:
        assert (out / name / "summary.json").is_file(), name
        assert steps(out / name) == list(range(1, NUM_STEPS + 1))
    assert "continuing from" in said and f"step 1/{NUM_STEPS}" in said
    assert said.count(f"step {NUM_STEPS}/{NUM_STEPS}") == 3
    summary = json.loads((out / FOLDERS[3] / "summary.json").read_text(encoding="utf-8"))
    assert (summary["seed"], summary["name"]) == (1, "SRPO, LoRA, learning_rate 0.003, seed 1")
    assert (out / "report.html").is_file()


def test_a_comparison_by_seed_is_written_as_csv_and_latex(swept, command, tmp_path):
    out, _, _ = swept
    options = ["--group-by", "seed", "--num-samples", "4", "--judge", "world", "--base"]
    tables = ["--csv", tmp_path / "t.csv", "--latex", tmp_path / "t.tex"]
    shown = command("compare", out, "--out", tmp_path / "compared", *options, *tables)
    assert shown.exit_code == 0, shown.output
    assert "mean ± standard deviation" in shown.stdout and "95 % intervals" not in shown.stdout
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = json.loads((tmp_path / "compared" / "summary.json").read_text(encoding="utf-8"))
    models = json.loads((tmp_path / "compared" / "comparison.json").read_text(encoding="utf-8"))
    alike = [m["key"] for m in models["models"] if "learning_rate 0.001" in m["label"]]
    (row,) = [
        r for r in rows if r["model"] == "learning_rate 0.001" and r["metric"] == "base_color_shift"
    ]
    values = [found["models"][key]["base_color_shift"]["value"] for key in alike]
    assert len(values) == 2 and float(row["mean"]) == pytest.approx(sum(values) / 2)
    assert float(row["std"]) == pytest.approx(abs(values[0] - values[1]) / 2**0.5, rel=1e-6)
    assert float(row["low"]) <= float(row["mean"]) <= float(row["high"])
    assert {(r["model"], r["runs"]) for r in rows} >= {("learning_rate 0.003", "2")}
    assert row["n"] == "4" and all(int(r["n"]) > 0 for r in rows)
    assert {r["interval_over"] for r in rows} == {"runs", "prompts"}  # the base model is one
    lines = (tmp_path / "t.tex").read_text(encoding="utf-8").splitlines()
    body = [line for line in lines if line.endswith(r" \\")]
    assert lines[2] == r"\begin{tabular}{lrccc}" and lines[-1] == r"\end{tabular}"
    assert len(body) > 5 and {line.count(" & ") for line in body} == {4}
    assert r"learning\_rate 0.001 (2 runs)" in body[0] and r" \pm " in body[1]
    wrong = command(
        "compare", out, "--out", tmp_path / "compared", *options[2:], "--group-by", "sed"
    )
    assert wrong.exit_code == 1 and "--group-by sed: no compared run has this key" in wrong.stderr


def test_workers_stop_with_their_sweep_and_share_its_runs(tmp_path, monkeypatch):
    monkeypatch.setattr("directalign.cli.sweep.subprocess", forked.MODULE)
    words = *SMALL, "--seeds", "0,1", "--gpus", "0,1", "--out", "sw"
    first = start(tmp_path, *words)
    wait_for(first, f"step 2/{NUM_STEPS}")
    kill(first)
    runs, deadline = [tmp_path / "sw" / f"seed-{seed}" for seed in (0, 1)], time.monotonic() + 120
    while any(is_locked(each, unknown=False) for each in runs) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any((run / "summary.json").exists() for run in runs)
    said, _ = (second := start(tmp_path, *words)).communicate()
    assert second.returncode == 0, said
    assert all(steps(run) == list(range(1, NUM_STEPS + 1)) for run in runs)
    assert "[GPU 0] " in said and "[GPU 1] " in said


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "sweep: nothing to vary; give --seeds 0,1,2 or --grid KEY=VALUE"),
        ("--seeds 0,x", "--seeds 0,x: give whole numbers from 0 on"),
        ("--seeds 1,1", "--seeds 1,1: names a seed twice"),
        ("--grid train.learning_rate", "--grid train.learning_rate: write it as KEY=VALUE,VALUE"),
        ("--grid train.num_steps=2,2", "--grid train.num_steps: 2,2 names a value twice"),
        ("--grid train.num_step=2,3", "--set train.num_step: unknown key; did you mean"),
        ("--grid seed=1,2 --seeds 0", "--grid seed: is given twice"),
        ("--grid train.num_steps=[1", "--grid train.num_steps: the values are not YAML"),
    ],
)
def test_a_wrong_sweep_is_one_line_and_trains_nothing(command, tmp_path, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    wrong = command("sweep", "world_srpo_lora", *words.split())
    assert wrong.exit_code == 1 and line in wrong.stderr and wrong.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_values_are_given_without_set_too(command, recipe):
    shown = command("check", recipe, "data.batch_size=2")
    assert shown.exit_code == 0 and "2 prompts" in shown.stdout
    assert command("train", recipe, "train.num_steps=none").exit_code == 1
