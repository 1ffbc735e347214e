"""What a run stands beside: the base model asked in words, photographs, and whether it still obeys.

Through the real commands on the toy world's own FLUX, which obeys its phrases.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from directalign.cli import app
from directalign.config.load import load_run
from directalign.evaluation.in_training import generated_prompts

SIZE = (
    *("train.num_steps=2", "train.save_every=1", "train.sample_every=0", "data.batch_size=2"),
    *("method.anchor.reference_updates=1", "rollout.num_inference_steps=4", "evaluate.every=1"),
    *("evaluate.num_samples=6", "evaluate.num_samples_during=3", "evaluate.diversity_prompts=1"),
    "train.sample_prompts=[a red star on a navy background]",
)
WORDS = [word for each in SIZE for word in ("--set", each)]
ASKED = ["asked: Realistic photo.", "asked: Natural lighting."]
DRAWN = ["photographs", "photographs through the autoencoder"]


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    out = tmp_path_factory.mktemp("references") / "run"
    found = CliRunner().invoke(app, ["train", "world_srpo", "--out", str(out), *WORDS])
    assert found.exit_code == 0, found.output
    return out


@pytest.fixture
def trained(trained_once, tmp_path, monkeypatch):
    """A copy in the current folder."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(trained_once, Path("run"))


def records(folder: Path, event: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [each for each in map(json.loads, lines) if each["event"] == event]


def test_a_run_stands_beside_asking_and_photographs_on_equal_pairs(trained, command):
    (found,) = records(trained, "references")
    rows = {row["label"]: row for row in found["rows"]}
    assert [*rows] == ASKED + DRAWN
    assert found["best"] in ("Realistic photo", "Natural lighting")
    first, *_, last = records(trained, "evaluate")
    for row in rows.values():
        assert row["photo_rate"]["n"] == row["content"]["n"] == last["photo_rate"]["n"] == 6
        assert row["during"]["photo_rate"]["n"] == first["during"]["photo_rate"]["n"] == 3
        assert {"reward", "score_pos", "sharpness", "diversity", "photos_diversity"} <= row.keys()
    assert all(rows[label]["photo_rate"]["value"] == 1 for label in DRAWN)
    assert rows["photographs"]["color_drift"] == 0 < rows[DRAWN[1]]["color_drift"]
    asked = rows[ASKED[0]]
    assert asked["photo_rate"]["value"] > first["photo_rate"]["value"]  # of the unchanged prompt
    assert json.loads((trained / "summary.json").read_text())["references"] == found
    page = (trained / "report.html").read_text()
    assert "Asking the base model does" in page and f"{found['best']}. (best phrase found)" in page
    assert all(text in page for text in (*rows, "Detail kept", "Diversity kept", "n&nbsp;=&nbsp;6"))
    lines = (trained / "metrics.jsonl").read_text()  # a page of a run without them is complete
    kept = [line for line in lines.splitlines() if '"references"' not in line]
    (trained / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    assert command("report", trained).exit_code == 0
    assert "asked: " not in (trained / "report.html").read_text()


def test_style_control_is_measured_at_both_ends_with_each_unwanted_style(trained):
    before, during, after = records(trained, "evaluate")
    names = ["obeys", "obeys_cg", "obeys_painting", "obeys_anime"]
    for each in (before, after):
        assert [each[name]["n"] for name in names] == [6, 2, 2, 2]
        assert all(0 <= each[n]["low"] <= each[n]["value"] <= each[n]["high"] for n in names)
    assert not any(name.startswith("obeys") for name in during)
    assert before["obeys"]["value"] >= 0.5  # the base model does what it is told
    assert "Does it still obey the other phrases?" in (trained / "report.html").read_text()


def test_a_resume_measures_them_once_and_changes_nothing(trained, command):
    (found,) = records(trained, "references")
    (trained / "summary.json").unlink()
    more = command("train", "world_srpo", "--out", "run", "--resume", "--set", "train.num_steps=3")
    assert more.exit_code == 0, more.output
    assert records(trained, "references") == [found]


def test_compare_has_them_in_its_table_csv_latex_and_page(trained, command):
    words = ("--base", "--references", "--num-samples", "4", "--csv", "t.csv", "--latex", "t.tex")
    found = command("compare", trained, "--out", "c", *words)
    assert found.exit_code == 0, found.output
    assert "Asking the base model does" in found.stdout
    models = json.loads(Path("c/comparison.json").read_text())["models"]
    assert [model["label"] for model in models][2:] == ASKED + DRAWN
    kinds = ["base", "run", "asked", "asked", "photographs", "autoencoded"]
    assert [model["kind"] for model in models] == kinds
    for text in (Path(name).read_text() for name in ("t.csv", "t.tex", "c/report.html")):
        assert all(label in text for label in ASKED + DRAWN)
    lines = [json.loads(line) for line in Path("c/results.jsonl").read_text().splitlines()]
    assert not any("Realistic photo" in line["prompt"] for line in lines)
    again = command("compare", trained, "--out", "c", *words)
    assert again.exit_code == 0 and Path("c/results.jsonl").read_text().count("\n") == len(lines)
    refused = command("compare", trained, "--out", "c", "--base", "--num-samples", "4")
    assert refused.exit_code == 1 and "holds another comparison" in refused.stderr
    alone = command("compare", "world:flux", "--prompts", "world", "--references", "--out", "d")
    assert alone.exit_code == 1 and "--references: asks the model that a run" in alone.stderr


def test_a_model_outside_of_the_toy_world_is_asked_and_judged_by_its_reward(recipe, command):
    given = yaml.safe_load(recipe.read_text())
    given["reward"] = {"name": "clip", "path": "world:reward"}
    given["method"] |= {
        "control_phrases": {"positive": ["Realistic photo"], "negative": ["CG render"]}
    }
    given["evaluate"] = {"num_samples": 4}
    recipe.write_text(yaml.safe_dump(given))
    assert command("train", recipe, "--out", "run").exit_code == 0
    (found,) = records(Path("run"), "references")
    (row,) = found["rows"]
    before, after = records(Path("run"), "evaluate")
    for each in (row, before, after):
        assert each["judged"]["name"] == "score_pos" and each["judged"]["n"] == 4
        assert each["judged"]["low"] <= each["score_pos"] <= each["judged"]["high"]
    assert [each["obeys_gap"]["n"] for each in (before, after)] == [4, 4]
    page = Path("run/report.html").read_text()
    assert "score, wanted phrases" in page and "Obeys other phrases, by score" in page
    prompts = generated_prompts(load_run("run/run.yaml"))
    assert {"Realistic photo. a red star", "CG render. a red star"} <= {*prompts}
    off = command("train", recipe, "--out", "off", "--set", "evaluate.references=false")
    assert off.exit_code == 0 and records(Path("off"), "references") == []
    ours, theirs = (records(Path(name), "step") for name in ("run", "off"))
    assert [each["loss"] for each in ours] == [each["loss"] for each in theirs]
