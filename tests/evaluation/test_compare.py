"""A whole comparison on tiny models: its folder, its resumption after a kill, its refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_runs import recipe, trained, write_run_folder

from directalign.evaluation import candidates, image_metrics
from directalign.evaluation.compare import Request, compare, evaluate_run, exclusive
from directalign.evaluation.generate import generate, sample_images
from directalign.io.jsonl import JsonlStore
from directalign.types import DirectAlignError

LIGHT = "light={name: pixels, statistic: brightness}"


@pytest.fixture(scope="session")
def run_folder(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, measured on three prompts, with two control prompts."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "prompts.txt").write_text("a red star\na blue circle\na green square\n")
    (folder / "others.txt").write_text("a map\nsoup\n")
    run = recipe("flux", pipelines["flux"], folder / "prompts.txt")
    run = run.model_copy(
        update={
            "evaluate": run.evaluate.model_copy(
                update={"num_samples": 6, "control_prompts": str(folder / "others.txt")}
            )
        }
    )
    return write_run_folder(folder / "run", run)


@pytest.fixture(scope="session")
def evaluated(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`directalign evaluate` of it, undisturbed."""
    return evaluate_run(request_for(run_folder, tmp_path_factory.mktemp("evaluated") / "out"))


def request_for(run_folder: Path, out: Path, **more: Any) -> Request:
    return Request(
        (str(run_folder),),
        out,
        base=True,
        **{"rewards": (LIGHT,), "batch_size": 4, "command": "directalign evaluate run", **more},
    )


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def contents(out: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(out)): file.read_bytes()
        for file in sorted(out.rglob("*"))
        if file.is_file()
    }


def test_a_run_is_held_against_its_base(run_folder: Path, evaluated: Path) -> None:
    lines, comparison = lines_of(evaluated), json.loads((evaluated / "comparison.json").read_text())
    assert [(line["model"], line["index"]) for line in lines] == [
        (key, index) for key in ("base", "tuned") for index in range(12)
    ]
    base, tuned = lines[:12], lines[12:]
    for one, other in zip(base, tuned, strict=True):
        assert {name: one[name] for name in ("prompt", "seed", "group")} == {
            name: other[name] for name in ("prompt", "seed", "group")
        }
    assert [line["group"] for line in base] == [None] * 6 + ["control_prompts"] * 6 and len(
        {line["seed"] for line in base}
    ) == 12
    assert comparison["prompts"] == {
        "source": str(run_folder.parent / "prompts.txt"),
        "count": 3,
        "images": 6,
        "control_prompts": 6,
    }
    assert [(each["key"], each["kind"], each["base"]) for each in comparison["models"]] == [
        ("base", "base", None),
        ("tuned", "run", "base"),
    ]
    assert [each["trained_on"] for each in comparison["models"]] == [
        [],
        ["score_redness", "sgp_redness"],
    ]
    assert (
        comparison["models"][1]["settings"]["train.num_steps"] == 1
        and "train.num_steps" not in comparison["models"][0]["settings"]
    )
    assert "<title>" in (evaluated / "report.html").read_text()


def test_every_number_is_of_the_stored_image(run_folder: Path, evaluated: Path) -> None:
    lines = lines_of(evaluated)
    for line in (lines[3], lines[15]):
        image = (
            torch.tensor(list(Image.open(evaluated / line["file"]).get_flattened_data()))
            .float()
            .reshape(1, 32, 32, 3)
            .permute(0, 3, 1, 2)
            / 255
        )
        assert line["numbers"]["entropy"] == pytest.approx(
            image_metrics.entropy(image).item(), rel=1e-5
        )
        assert line["numbers"]["score_light"] == pytest.approx(image.mean().item(), abs=0.1)
    assert lines[15]["numbers"].keys() - lines[3]["numbers"].keys() == {
        "base_rmse",
        "base_color_shift",
    }
    assert set(lines[6]["numbers"]) == {"off_topic_score_redness", "off_topic_score_light"}
    assert set(lines[18]["numbers"]) == set(lines[6]["numbers"]) | {
        "off_topic_base_rmse",
        "off_topic_base_color_shift",
    }
    summary = json.loads((evaluated / "summary.json").read_text())
    gained = (
        sum(
            other["numbers"]["score_redness"] - one["numbers"]["score_redness"]
            for one, other in zip(lines[:6], lines[12:18], strict=True)
        )
        / 6
    )
    (difference,) = [each for each in summary["differences"] if each["name"] == "score_redness"]
    assert (difference["a"], difference["b"], difference["n"]) == (
        "base",
        "tuned",
        6,
    ) and difference["value"] == pytest.approx(gained, abs=1e-9)
    assert {
        name: about["role"] for name, about in summary["names"].items() if name.startswith("score_")
    } == {
        "score_redness": "trained",
        "score_light": "held_out",
    }


def test_images_are_those_of_the_models(
    run_folder: Path, evaluated: Path, pipelines: dict[str, Path]
) -> None:
    line, run = lines_of(evaluated)[14], recipe("flux", pipelines["flux"], "none")
    image = generate(trained(run), [line["prompt"]], [line["seed"]], run.rollout)[0]
    stored = (
        torch.tensor(list(Image.open(evaluated / line["file"]).get_flattened_data()))
        .float()
        .reshape(32, 32, 3)
        .permute(2, 0, 1)
        / 255
    )
    assert (image - stored).abs().max() < 1.01 / 255


class Killed(BaseException):
    """As SIGKILL: nothing after it runs."""


@pytest.mark.parametrize(
    "moment", [("image", 3), ("image", 17), ("row", 1), ("row", 7), ("row", 12)]
)
def test_killed_at_any_moment_it_ends_with_the_same_bytes(
    run_folder: Path,
    evaluated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    moment: tuple[str, int],
) -> None:
    kind, left = moment
    out, real = tmp_path / "out", (candidates._write, JsonlStore.append)
    left_ = [left]

    def count() -> None:
        left_[0] -= 1
        if left_[0] < 0:
            raise Killed

    def keep(image: torch.Tensor, file: Path) -> None:
        count()
        real[0](image, file)

    def append(self: JsonlStore, rows: Any) -> None:
        real[1](self, rows)
        try:
            count()
        except Killed:
            self.file.write_bytes(self.file.read_bytes()[:-9])  # the last line was under way
            raise

    with monkeypatch.context() as patched:
        patched.setattr(candidates, "_write", keep) if kind == "image" else patched.setattr(
            JsonlStore, "append", append
        )
        with pytest.raises(Killed):
            evaluate_run(request_for(run_folder, out))
    caplog.clear()
    evaluate_run(request_for(run_folder, out))
    before, after = contents(evaluated), contents(out)
    assert {name for name in before if before[name] != after.get(name)} <= {
        "report.html"
    } and before.keys() == after.keys()
    assert ("the last line was incomplete" in caplog.text) == (kind == "row")


def test_what_is_done_is_not_done_again(
    run_folder: Path,
    evaluated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="directalign")
    shutil.copytree(evaluated, tmp_path / "out")
    for name in ("load_run_model", "save_png"):
        monkeypatch.setattr(candidates, name, lambda *_: pytest.fail("made again"))
    monkeypatch.setattr(
        "directalign.evaluation.candidate_scores.load_reward",
        lambda *_: pytest.fail("loaded again"),
    )
    evaluate_run(request_for(run_folder, tmp_path / "out"))
    assert (
        caplog.messages == []
        and contents(tmp_path / "out")["results.jsonl"] == contents(evaluated)["results.jsonl"]
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_samples": 4}, "prompts and seeds was"),
        ({"rewards": ()}, r"metrics\.reward-light"),
        (
            {"rollout": {"num_inference_steps": 3}},
            r"models\.base\.rollout\.num_inference_steps was 2 and is now 3",
        ),
        ({"positive": ("a",), "negative": ("b",)}, r"control_phrases\.positive"),
    ],
)
def test_another_comparison_is_refused_by_name(
    run_folder: Path, evaluated: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(DirectAlignError, match=rf"--out .*holds another comparison: .*{words}"):
        evaluate_run(replace(request_for(run_folder, evaluated), **change))


def test_a_run_that_was_moved_is_the_same(
    run_folder: Path, tmp_path: Path, evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, out = (
        Path(shutil.copytree(run_folder, tmp_path / "moved")),
        Path(shutil.copytree(evaluated, tmp_path / "out")),
    )
    evaluate_run(request_for(moved, out))
    assert contents(out) == contents(evaluated)
    monkeypatch.chdir(tmp_path)
    assert lines_of(evaluate_run(request_for(Path("moved"), out))) == lines_of(evaluated)


def test_a_run_that_was_trained_again_is_another_model(
    run_folder: Path, tmp_path: Path, evaluated: Path
) -> None:
    weights = run_folder / "lora.safetensors"
    kept, stat = weights.read_bytes(), weights.stat()
    try:
        weights.write_bytes(kept)
        with pytest.raises(DirectAlignError, match=r"models\.tuned\.files\.lora\.safetensors"):
            evaluate_run(request_for(run_folder, evaluated))
    finally:
        import os

        os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_runs_models_and_images_side_by_side(
    run_folder: Path, pipelines: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="directalign")
    prompts, seeds = ["a red star", "a red star", "soup"], [1, 2, 3]
    sample_images(run_folder, prompts, seeds, tmp_path / "samples")
    request = Request(
        (str(run_folder), f"Bare={pipelines['flux']}", f"Once made={tmp_path / 'samples'}"),
        tmp_path / "out",
        base=True,
    )
    lines = lines_of(compare(request))
    assert [line["prompt"] for line in lines[:3]] == prompts and [
        line["seed"] for line in lines[:3]
    ] == seeds
    by = {
        key: [line for line in lines if line["model"] == key]
        for key in ("base", "tiny", "bare", "once_made")
    }
    for made, again in zip(by["once_made"], by["tiny"], strict=True):
        assert made["numbers"]["base_rmse"] == pytest.approx(
            again["numbers"]["base_rmse"], abs=2e-3
        )
    assert "diversity" in lines[0]["numbers"] and "diversity" not in lines[2]["numbers"]
    differ = "not sampled alike: rollout.num_inference_steps, rollout.embedded_guidance differ"
    assert differ in caplog.text
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (
        comparison["differing"] == ["rollout.num_inference_steps", "rollout.embedded_guidance"]
        and comparison["models"][3]["settings"] is None
    )
    with pytest.raises(DirectAlignError, match=r"--prompts: .*holds images of its own prompts"):
        compare(replace(request, prompts="world", out=tmp_path / "other"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": "gone.txt"}, r"gone\.txt: no such"),
        ({"judge": "world"}, r"--judge world: 'a .*' is no caption of the embedded world"),
        ({"rewards": ("a=gone/reward/folder",)}, "gone/reward/folder"),
        ({"sources": ()}, "nothing to compare"),
        ({"positive": ("a",)}, "--positive and --negative"),
        ({"control_prompts": "gone.txt"}, r"gone\.txt: no such"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    words: str,
) -> None:
    monkeypatch.setattr(candidates, "load_run_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(DirectAlignError, match=words):
        compare(replace(request_for(run_folder, tmp_path / "out"), **change))
    assert not (tmp_path / "out").exists()


def test_an_out_that_cannot_be_is_refused(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "load_run_model", lambda *_: pytest.fail("loaded"))
    (tmp_path / "file").write_text("")
    (tmp_path / "images" / "images").mkdir(parents=True)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "comparison.json").write_text("{")
    for out, words in (
        ("file", "is a file"),
        ("file/below", "cannot be made"),
        ("images", r"holds images and no comparison\.json"),
        ("odd", "not JSON"),
    ):
        with pytest.raises(DirectAlignError, match=words):
            compare(request_for(run_folder, tmp_path / out))
    with pytest.raises(DirectAlignError, match="holds no run"):
        evaluate_run(request_for(tmp_path, tmp_path / "out"))


def test_two_processes_do_not_write_to_one_folder(run_folder: Path, evaluated: Path) -> None:
    with (
        exclusive(evaluated),
        pytest.raises(DirectAlignError, match="another process is at work on this comparison"),
    ):
        evaluate_run(request_for(run_folder, evaluated))
    evaluate_run(request_for(run_folder, evaluated))
