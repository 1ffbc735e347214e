"""Adherence in a comparison: numbers in rows and summary, facts in their own file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from directalign.evaluation.compare import Request, compare
from directalign.types import DirectAlignError
from tiny_detectors import write_detector
from tiny_vlm import vlm_folder

__all__ = ["vlm_folder"]

GENEVAL = [
    {
        "tag": "two_object",
        "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1}],
        "prompt": "a dog and a cat",
    },
    {
        "tag": "counting",
        "include": [{"class": "dog", "count": 2}],
        "exclude": [{"class": "dog", "count": 3}],
        "prompt": "two dogs",
    },
]


@pytest.fixture
def geneval(tmp_path: Path) -> Path:
    file = tmp_path / "metadata.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in GENEVAL))
    return file


def write_images(folder: Path, seed: int) -> str:
    """Three random images with their prompts and seeds."""
    folder.mkdir()
    levels = np.random.default_rng(seed).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    for place, each in enumerate(levels):
        Image.fromarray(each).save(folder / f"{place}.png")
    lines = [
        {"file": f"{place}.png", "prompt": f"a {color} star", "seed": place}
        for place, color in enumerate(("red", "blue", "green"))
    ]
    (folder / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_images_of_anywhere_are_judged_by_questions(vlm_folder: Path, tmp_path: Path) -> None:
    sources = tuple(write_images(tmp_path / name, seed) for seed, name in enumerate(("a", "b")))
    request = Request(
        sources, tmp_path / "out", adherence=f"{{name: vlm, path: '{vlm_folder}', dtype: float32}}"
    )
    out = compare(request)
    lines, facts = read(out / "results.jsonl"), read(out / "scores" / "adherence_facts.jsonl")
    assert [line["numbers"]["adherence"] for line in lines] == [
        float(line["facts"][0]["right"]) for line in facts
    ]
    assert [line["facts"][0]["fact"] for line in facts] == [
        "a red star",
        "a blue star",
        "a green star",
    ] * 2
    summary = json.loads((out / "summary.json").read_text())
    assert (
        summary["names"]["adherence"]["role"] == "adherence"
        and summary["models"]["a"]["adherence"]["n"] == 3
    )
    assert [won["name"] for won in summary["wins"] if won["name"] == "adherence"] == ["adherence"]
    whole = (out / "scores" / "adherence_facts.jsonl").read_bytes()
    (out / "scores" / "adherence.jsonl").unlink()
    compare(request)
    assert (out / "scores" / "adherence_facts.jsonl").read_bytes() == whole


def test_a_geneval_set_is_judged_by_a_detector_tag_by_tag(
    pipelines: dict[str, Path], geneval: Path, tmp_path: Path
) -> None:
    detector = write_detector(tmp_path / "detector", "rt_detr")
    settings = f"{{name: detector, path: '{detector}', threshold: 0.0}}"
    out = compare(
        Request(
            (f"tiny={pipelines['sd']}",),
            tmp_path / "out",
            prompts=str(geneval),
            rollout={"num_inference_steps": 1},
            adherence=settings,
        )
    )
    lines = read(out / "results.jsonl")
    by_group = {
        line["group"]: sorted(name for name in line["numbers"] if name.startswith("adherence"))
        for line in lines
    }
    assert by_group == {
        "two_object": ["adherence", "adherence_two_object"],
        "counting": ["adherence", "adherence_counting"],
    }
    summary = json.loads((out / "summary.json").read_text())
    assert [
        summary["models"]["tiny"][name]["n"] for name in ("adherence", "adherence_counting")
    ] == [4, 2]
    assert "a detector" in summary["names"]["adherence"]["scale"]


def test_what_cannot_be_judged_is_refused_before_an_image_is_made(
    pipelines: dict[str, Path], geneval: Path, tmp_path: Path
) -> None:
    detector = write_detector(tmp_path / "detector", "rt_detr")
    source, out = (str(pipelines["sd"]),), tmp_path / "out"
    with pytest.raises(DirectAlignError, match="no such folder"):
        compare(Request(source, out, prompts=str(geneval), adherence=str(tmp_path / "missing")))
    with pytest.raises(DirectAlignError, match="comes without: give a GenEval file"):
        compare(Request(source, out, prompts="world", adherence=str(detector)))
    geneval.write_text(geneval.read_text().replace('"cat"', '"zebra"'))
    with pytest.raises(DirectAlignError, match="knows no zebra"):
        compare(Request(source, out, prompts=str(geneval), adherence=str(detector)))
    for wrong, words in (
        ("{name: vlm", "not YAML"),
        ("{name: oracle, path: x}", "section: .*write"),
        ("{name: detector, paht: x}", "path: .*write"),
    ):
        with pytest.raises(DirectAlignError, match=rf"--adherence.*{words}"):
            compare(Request(source, out, prompts=str(geneval), adherence=wrong))
    assert not out.exists()
