"""A complete comparison on tiny models: its folder, its resumption after a kill, its refusals."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import recipe, trained, with_settings, write_run_folder

from directalign.evaluation import candidates, image_metrics
from directalign.evaluation.candidate_scores import JsonlStore
from directalign.evaluation.compare import Request, compare, evaluate_run
from directalign.evaluation.generate import generate, sample_images
from directalign.io.atomic import exclusive
from directalign.types import DirectAlignError

LIGHT = "light={name: pixels, statistic: brightness}"


@pytest.fixture(scope="module")
def run_folder(pipelines, tmp_path_factory):
    """A finished run, evaluated on three prompts and two control prompts."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "prompts.txt").write_text("a red star\na blue circle\na green square\n")
    (folder / "others.txt").write_text("a map\nsoup\n")
    run = recipe("flux", pipelines["flux"], folder / "prompts.txt")
    controls = str(folder / "others.txt")
    run = with_settings(run, "evaluate", num_samples=6, control_prompts=controls)
    return write_run_folder(folder / "run", run)


@pytest.fixture(scope="module")
def evaluated(run_folder, tmp_path_factory):
    """`directalign evaluate` of it, without an interruption."""
    return evaluate_run(request_for(run_folder, tmp_path_factory.mktemp("evaluated") / "out"))


def request_for(run_folder: Path, out: Path, **more: Any) -> Request:
    options = {"rewards": (LIGHT,), "batch_size": 4, "command": "directalign evaluate run", **more}
    return Request((str(run_folder),), out, base=True, **options)


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    files = [file for file in sorted(out.rglob("*")) if file.is_file()]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def image_of(out: Path, line: dict[str, Any]) -> torch.Tensor:
    """The stored image of a line, (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(Image.open(out / line["file"]))).permute(2, 0, 1) / 255


def test_a_run_is_compared_with_its_base(run_folder, evaluated):
    lines = lines_of(evaluated)
    keys = [(line["model"], line["index"]) for line in lines]
    assert keys == [(key, index) for key in ("base", "tuned") for index in range(12)]
    samples = [[(line[key]) for key in ("prompt", "seed", "group")] for line in lines]
    assert samples[:12] == samples[12:] and len({seed for _, seed, _ in samples}) == 12
    assert [group for *_, group in samples[:12]] == [None] * 6 + ["control_prompts"] * 6
    record = json.loads((evaluated / "comparison.json").read_text())
    source = str(run_folder.parent / "prompts.txt")
    counts = {"count": 3, "images": 6, "control_prompts": 6}
    assert record["prompts"] == {"source": source, **counts}
    base, tuned = record["models"]
    assert [base[name] for name in ("key", "kind", "base", "trained_on")] == [
        "base",
        "base",
        None,
        [],
    ]
    assert [tuned[name] for name in ("key", "kind", "base", "trained_on")] == [
        "tuned",
        "run",
        "base",
        ["score_redness", "sgp_redness"],
    ]
    assert tuned["settings"]["train.num_steps"] == 1
    assert "train.num_steps" not in base["settings"]
    assert "<title>" in (evaluated / "report.html").read_text()


def test_metrics_are_of_the_stored_images_and_images_of_the_models(evaluated, pipelines):
    lines, distances = lines_of(evaluated), {"base_rmse", "base_color_shift"}
    for line in (lines[3], lines[15]):
        image = image_of(evaluated, line)
        entropy = image_metrics.entropy(image[None]).item()
        assert line["numbers"]["entropy"] == pytest.approx(entropy, rel=1e-5)
        assert line["numbers"]["score_light"] == pytest.approx(image.mean().item(), abs=0.1)
    assert lines[15]["numbers"].keys() - lines[3]["numbers"].keys() == distances
    control = {"off_topic_score_redness", "off_topic_score_light"}
    assert set(lines[6]["numbers"]) == control
    assert set(lines[18]["numbers"]) == control | {f"off_topic_{name}" for name in distances}
    run, line = recipe("flux", pipelines["flux"], "none"), lines[14]
    image = generate(trained(run), [line["prompt"]], [line["seed"]], run.rollout)[0]
    assert (image - image_of(evaluated, line)).abs().max() < 1.01 / 255


def test_the_summary_has_differences_and_roles(evaluated):
    summary = json.loads((evaluated / "summary.json").read_text())
    scores = [line["numbers"].get("score_redness") for line in lines_of(evaluated)]
    gained = (sum(scores[12:18]) - sum(scores[:6])) / 6
    (found,) = [each for each in summary["differences"] if each["name"] == "score_redness"]
    assert (found["a"], found["b"], found["n"]) == ("base", "tuned", 6)
    assert found["value"] == pytest.approx(gained, abs=1e-9)
    roles = {name: each["role"] for name, each in summary["names"].items()}
    assert (roles["score_redness"], roles["score_light"]) == ("trained", "held_out")


class Killed(BaseException):
    """As SIGKILL: nothing after it runs."""


@pytest.mark.parametrize(("kind", "left"), [("image", 3), ("image", 17), ("row", 1), ("row", 12)])
def test_a_killed_comparison_resumes_to_the_same_bytes(
    run_folder, evaluated, tmp_path, monkeypatch, caplog, kind, left
):
    out, write, append, calls = tmp_path / "out", candidates.save_png, JsonlStore.append, []

    def killed() -> bool:
        calls.append(1)
        return len(calls) > left

    def write_or_die(image: torch.Tensor, file: Path) -> None:
        if killed():
            raise Killed
        write(image, file)

    def append_or_die(self: JsonlStore, rows: Any) -> None:
        append(self, rows)
        if killed():
            self.file.write_bytes(self.file.read_bytes()[:-9])  # the last line is incomplete
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        if kind == "image":
            patched.setattr(candidates, "save_png", write_or_die)
        else:
            patched.setattr(JsonlStore, "append", append_or_die)
        evaluate_run(request_for(run_folder, out))
    caplog.clear()
    evaluate_run(request_for(run_folder, out))
    before, after = contents(evaluated), contents(out)
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} <= {"report.html"}
    assert ("the last line was incomplete" in caplog.text) == (kind == "row")


def test_existing_results_are_reused(run_folder, evaluated, tmp_path, monkeypatch, caplog):
    """Also where the run was moved, or is named by a relative path."""
    caplog.set_level("INFO", logger="directalign")
    out = Path(shutil.copytree(evaluated, tmp_path / "out"))
    moved = Path(shutil.copytree(run_folder, tmp_path / "moved"))
    for name in (
        "candidates.load_run_model",
        "candidates.save_png",
        "candidate_scores.load_reward",
    ):
        monkeypatch.setattr(f"directalign.evaluation.{name}", lambda *_: pytest.fail("repeated"))
    monkeypatch.chdir(tmp_path)
    for folder in (run_folder, moved, Path("moved")):
        evaluate_run(request_for(folder, out))
    assert caplog.messages == [] and contents(out) == contents(evaluated)


def test_another_comparison_is_refused_by_name(run_folder, evaluated):
    for change, words in (
        ({"num_samples": 4}, r"prompts and seeds \(--prompts, --num-samples"),
        ({"rewards": ()}, r"metrics\.reward-light"),
        (
            {"rollout": {"num_inference_steps": 3}},
            r"models\.base\.rollout\.num_inference_steps was 2 and is now 3",
        ),
        ({"positive": ("a",), "negative": ("b",)}, r"control_phrases\.positive"),
    ):
        with pytest.raises(DirectAlignError, match=rf"--out .*holds another comparison: .*{words}"):
            evaluate_run(replace(request_for(run_folder, evaluated), **change))
    weights = run_folder / "lora.safetensors"
    before = weights.stat()
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # trained again
    try:
        with pytest.raises(DirectAlignError, match=r"models\.tuned\.files\.lora\.safetensors"):
            evaluate_run(request_for(run_folder, evaluated))
    finally:
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_runs_models_and_images_side_by_side(run_folder, pipelines, tmp_path, caplog):
    caplog.set_level("INFO", logger="directalign")
    prompts, seeds = ["a red star", "a red star", "soup"], [1, 2, 3]
    sample_images(run_folder, prompts, seeds, tmp_path / "samples")
    sources = (str(run_folder), f"Bare={pipelines['flux']}", f"Old={tmp_path / 'samples'}")
    request = Request(sources, tmp_path / "out", base=True)
    lines = lines_of(compare(request))
    assert [(line["prompt"], line["seed"]) for line in lines[:3]] == list(
        zip(prompts, seeds, strict=True)
    )
    distances = {
        key: [line["numbers"]["base_rmse"] for line in lines if line["model"] == key]
        for key in ("tiny", "old")
    }
    assert distances["old"] == pytest.approx(distances["tiny"], abs=2e-3)
    assert "diversity" in lines[0]["numbers"] and "diversity" not in lines[2]["numbers"]
    differing = ["rollout.num_inference_steps", "rollout.embedded_guidance"]
    assert f"not sampled alike: {', '.join(differing)} differ" in caplog.text
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert record["differing"] == differing and record["models"][3]["settings"] is None
    with pytest.raises(DirectAlignError, match=r"--prompts: .*holds images of its own prompts"):
        compare(replace(request, prompts="world", out=tmp_path / "other"))


def test_requests_are_refused_before_anything_is_loaded(run_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "load_run_model", lambda *_: pytest.fail("loaded"))
    for change, words in (
        ({"prompts": "gone.txt"}, r"gone\.txt: no such"),
        ({"judge": "world"}, r"--judge world: 'a .*' is no caption of the toy world"),
        ({"rewards": ("a=gone/reward/folder",)}, "gone/reward/folder"),
        ({"sources": ()}, "nothing to compare"),
        ({"positive": ("a",)}, "--positive and --negative"),
        ({"control_prompts": "gone.txt"}, r"gone\.txt: no such"),
    ):
        with pytest.raises(DirectAlignError, match=words):
            compare(replace(request_for(run_folder, tmp_path / "out"), **change))
    with pytest.raises(DirectAlignError, match="holds no run"):
        evaluate_run(request_for(tmp_path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    (tmp_path / "images" / "images").mkdir(parents=True)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "comparison.json").write_text("{")
    for out, words in (
        ("file", "is a file"),
        ("file/below", "cannot be created"),
        ("images", r"holds images and no comparison\.json"),
        ("odd", "not readable as JSON"),
    ):
        with pytest.raises(DirectAlignError, match=words):
            compare(request_for(run_folder, tmp_path / out))


def test_two_processes_do_not_write_to_one_folder(run_folder, evaluated):
    use = "at work on this comparison"
    with exclusive(evaluated, use), pytest.raises(DirectAlignError, match=f"process is {use}"):
        evaluate_run(request_for(run_folder, evaluated))
    evaluate_run(request_for(run_folder, evaluated))
