"""Adherence in a comparison: its rows and summary, and the facts in their own file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from directalign.evaluation.compare import Request, compare
from directalign.types import DirectAlignError
from tiny_detectors import write_detector

DOG = {"class": "dog", "count": 1}
TWO_DOGS = {"include": [{**DOG, "count": 2}], "exclude": [{**DOG, "count": 3}]}
GENEVAL = [
    {"tag": "two_object", "include": [DOG, {**DOG, "class": "cat"}], "prompt": "a dog and a cat"},
    {"tag": "counting", **TWO_DOGS, "prompt": "two dogs"},
]


@pytest.fixture
def geneval(tmp_path):
    file = tmp_path / "metadata.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in GENEVAL))
    return file


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp("compared") / "detector", "rt_detr")


def write_images(folder: Path, seed: int) -> str:
    """Three random images with their prompts and seeds."""
    folder.mkdir()
    levels = np.random.default_rng(seed).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    rows = []
    for place, color in enumerate(("red", "blue", "green")):
        Image.fromarray(levels[place]).save(folder / f"{place}.png")
        rows.append({"file": f"{place}.png", "prompt": f"a {color} star", "seed": place})
    (folder / "images.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_any_images_are_judged_by_questions(vlm_folder, tmp_path):
    sources = tuple(write_images(tmp_path / name, seed) for seed, name in enumerate(("a", "b")))
    settings = f"{{name: vlm, path: '{vlm_folder}', dtype: float32}}"
    request = Request(sources, tmp_path / "out", adherence=settings)
    out = compare(request)
    file = out / "scores" / "adherence_facts.jsonl"
    lines, facts, whole = read(out / "results.jsonl"), read(file), file.read_bytes()
    (first, *_), *_ = [line["facts"] for line in facts]
    assert first.keys() == {"fact", "right", "saw"}
    adherence = [line["numbers"]["adherence"] for line in lines]
    assert adherence == [float(line["facts"][0]["right"]) for line in facts]
    texts = [line["facts"][0]["fact"] for line in facts]
    assert texts == ["a red star", "a blue star", "a green star"] * 2
    summary = json.loads((out / "summary.json").read_text())
    assert summary["names"]["adherence"]["role"] == "adherence"
    assert summary["models"]["a"]["adherence"]["n"] == 3
    assert [won["name"] for won in summary["wins"]].count("adherence") == 1
    (out / "scores" / "adherence.jsonl").unlink()
    compare(request)
    assert file.read_bytes() == whole


def test_a_detector_judges_a_geneval_set_by_tag(pipelines, detector, geneval, tmp_path):
    request = Request(
        (f"tiny={pipelines['sd']}",),
        tmp_path / "out",
        prompts=str(geneval),
        rollout={"num_inference_steps": 1},
        adherence=f"{{name: detector, path: '{detector}', threshold: 0.0}}",
    )
    out = compare(request)
    names = {
        line["group"]: {name for name in line["numbers"] if name.startswith("adherence")}
        for line in read(out / "results.jsonl")
    }
    assert names == {tag: {"adherence", f"adherence_{tag}"} for tag in ("two_object", "counting")}
    summary = json.loads((out / "summary.json").read_text())
    found = summary["models"]["tiny"]
    assert (found["adherence"]["n"], found["adherence_counting"]["n"]) == (4, 2)
    assert "a detector" in summary["names"]["adherence"]["scale"]


def test_prompts_and_settings_are_refused_before_an_image_is_made(
    pipelines, detector, geneval, tmp_path
):
    unknown = tmp_path / "unknown.jsonl"
    unknown.write_text(geneval.read_text().replace('"cat"', '"zebra"'))
    for prompts, adherence, words in (
        (geneval, tmp_path / "missing", "no such folder"),
        ("world", detector, "comes without: give a GenEval file"),
        (unknown, detector, "knows no zebra"),
        (geneval, "{name: vlm", "--adherence.*not YAML"),
        (geneval, "{name: oracle, path: x}", "--adherence.*section: .*write"),
        (geneval, "{name: detector, paht: x}", "--adherence.*path: .*write"),
    ):
        options = {"prompts": str(prompts), "adherence": str(adherence)}
        with pytest.raises(DirectAlignError, match=words):
            compare(Request((str(pipelines["sd"]),), tmp_path / "out", **options))
    assert not (tmp_path / "out").exists()
