"""Reference rows on pages: what the sentence says, and that no other number of pairs is beside."""

import json

import pytest

from directalign.report import write_page
from directalign.report.read import read_run
from directalign.report.reference_rows import verdict
from directalign.report.run_page import judge_of, reference_columns, run_table
from synthetic_run import add_references, write_demo, write_run

SAYS = {
    0.50: "Training reaches more than asking the base model",
    0.88: "Asking the base model does as well here",
    1.00: "Asking the base model does better here",
}


def table(folder):
    run = read_run(folder)
    return run_table(run, reference_columns(run), judge_of([run]))


@pytest.mark.parametrize(("asked", "says"), SAYS.items())
def test_one_sentence_says_whether_asking_does_as_well(tmp_path, asked, says):
    folder = add_references(write_run(tmp_path / "run", final_photo=0.9), asked)
    found = table(folder)
    assert found["says"].startswith(f"{says}: photo rate {asked:.0%}".replace("%", "\u00a0%"))
    assert "with “Realistic photo.” before the prompt, 90\u00a0% (85–94)" in found["says"]
    labels = [label for _, label, _ in found["rows"]]
    assert labels[:3] == [
        "Base model",
        "asked: Natural lighting.",
        "asked: Realistic photo. (best phrase found)",
    ]
    assert labels[3:] == ["photographs", "Trained model"]
    page = write_page(folder).read_text(encoding="utf-8")
    assert page.count(f"<strong>{says}") == 1


def test_rows_of_another_number_of_pairs_are_not_beside_the_run(tmp_path):
    folder = add_references(write_run(tmp_path / "run"), n=64)
    assert table(folder) == {}
    assert "asked: " not in write_page(folder).read_text(encoding="utf-8")


def test_a_table_of_runs_has_the_rows_once_and_a_sentence_for_each_run(tmp_path):
    demo = write_demo(tmp_path / "demo")
    page = write_page(demo).read_text(encoding="utf-8")
    assert page.count("asked: Realistic photo.</th>") == page.count(">photographs</th>") == 1
    assert page.count("Asking the base model does as well here:") >= 1
    assert page.count("Asking the base model does better here:") >= 1  # plain Direct-Align: 45 %


def test_a_score_is_judged_by_its_interval_on_the_same_samples(tmp_path):
    folder = write_run(tmp_path / "run")
    judge = judge_of([read_run(folder)])
    assert judge is not None
    name, own = judge.name, {"name": judge.name, "low": 0.4, "high": 0.6, "n": 8}
    after = {name: 0.5, "judged": own | {"value": 0.5}}
    asked = {"kind": "asked", "phrase": "Realistic photo", **after}
    assert verdict(after, [asked], judge).startswith(SAYS[0.88])
    of_more = {**after, "judged": own | {"value": 0.52}}
    assert verdict(of_more, [asked], judge) == verdict(after, [], judge) == ""


def test_malformed_rows_do_not_break_a_page(tmp_path):
    folder = write_run(tmp_path / "run")
    rows = [None, 3, {"label": ["x"], "kind": 4, "photo_rate": {"n": 256}}, {"phrase": {}}]
    record = {"event": "references", "step": 0, "rows": rows}
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")
    assert "Base model" in write_page(folder).read_text(encoding="utf-8")
