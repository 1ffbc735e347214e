"""Comparisons of models that edit images: prompts with their sources, and these as a reference."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny_runs import recipe, write_run_folder

from directalign.config import RunConfig
from directalign.data.image_io import Source
from directalign.evaluation.compare import Request, compare, evaluate_run
from directalign.evaluation.eval_prompts import EvalSample, batches
from directalign.types import DirectAlignError
from tiny import SIZE, write_flux_kontext

LIGHT = "light={name: pixels, statistic: brightness}"


def write_edits(folder, name="edits.jsonl"):
    """One instruction for two sources, the second with a mask."""
    noise = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    rows = [{"prompt": "make it red", "source": f"{place}.png"} for place in range(2)]
    for place, pixels in enumerate(noise):
        Image.fromarray(pixels).save(folder / f"{place}.png")
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:, : SIZE // 2] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    rows[1]["mask"] = "mask.png"
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return folder / name


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edits")
    given = recipe("flux", write_flux_kontext(folder / "model"), "none").model_dump()
    given["model"]["architecture"] = "flux_kontext"
    given["data"] = {"edits": str(write_edits(folder))}
    redness = {"label": "red", "reward": {"name": "pixels", "statistic": "redness"}}
    kept = {"label": "kept", "reward": {"name": "preservation"}}
    given["reward"] = {"name": "mix", "members": [redness, kept]}
    given["evaluate"] |= {"num_samples": 4}
    return write_run_folder(folder / "run", RunConfig.model_validate(given))


def lines_of(out):
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def pixels_of(file):
    return np.array(Image.open(file), dtype=float) / 255


def test_a_run_that_edits_is_compared_with_its_base_and_with_what_was_edited(run_folder, tmp_path):
    request = Request((str(run_folder),), tmp_path / "out", base=True, rewards=(LIGHT,))
    out = evaluate_run(request)
    lines = lines_of(out)
    assert [line["model"] for line in lines] == ["base"] * 4 + ["tuned"] * 4 + ["sources"] * 4
    for line in lines:
        source = line["task"].split("\n")[1]
        changed = (pixels_of(out / line["file"]) - pixels_of(source)) ** 2
        outside = changed[:, SIZE // 2 :] if source.endswith("1.png") else changed
        assert line["numbers"]["score_kept"] == pytest.approx(-outside.mean(), abs=1e-5)
        assert (line["model"] == "sources") == (changed.max() == 0)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["models"]["tuned"]["score_kept"]["n"] == 4
    page = (out / "report.html").read_text()
    assert page.count("Unedited: make it red") >= 4
    before = {file: file.read_bytes() for file in out.rglob("*.jsonl")}
    assert evaluate_run(request) == out
    assert before == {file: file.read_bytes() for file in out.rglob("*.jsonl")}


def test_other_edits_and_changed_sources(run_folder, tmp_path):
    given = write_edits(tmp_path, "held_out.jsonl")
    out = tmp_path / "out"
    request = Request((str(run_folder),), out, prompts=str(given), num_samples=2)
    compare(request)
    assert {line["task"].split("\n")[1] for line in lines_of(out)} <= {
        str(tmp_path / f"{place}.png") for place in range(2)
    }
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "0.png")
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "1.png")
    with pytest.raises(DirectAlignError, match="holds another comparison: prompts and seeds"):
        compare(request)


def test_prompts_alone_and_models_of_both_kinds_are_refused(run_folder, pipelines, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red star")
    request = Request((str(run_folder),), tmp_path / "out")
    refused = {
        "prompts.txt": replace(request, prompts=str(tmp_path / "prompts.txt")),
        "--control-prompts: .*run edits images": replace(request, control_prompts="world"),
        "run edits images, and .*flux has none": replace(
            request, sources=(str(run_folder), str(pipelines["flux"]))
        ),
    }
    for message, each in refused.items():
        with pytest.raises(DirectAlignError, match=message):
            compare(each)
    assert not (tmp_path / "out").exists()


def test_images_of_one_prompt_and_other_sources_are_apart(tmp_path):
    samples = [
        EvalSample(place, "make it red", place, source=Source(tmp_path / f"{place % 2}.png"))
        for place in range(4)
    ]
    found = batches(samples, 2)
    assert [[each.index for each in batch] for batch in found] == [[0, 2], [1, 3]]
