"""Records become tables; the text outside the markers stays; the documents match the records."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from directalign.types import DirectAlignError
from tools import write_numbers

ROOT, RATES = Path(__file__).parents[2], "benchmarks/results/studies/learning_rates.jsonl"
FACTS: dict[str, Any] = {"seed": 3, "commit": "0123456789abcdef"}
FACTS["machine"] = {"gpu": None, "cores": 2, "processor": "x86_64"}
FACTS["versions"] = {"torch": "2.9.9", "diffusers": "0.39.9"}
COST = {"num_inference_steps": 25, "online_seconds": 1.0, "offline_seconds": 0.25}
COST |= {"ratio": 0.251, "ratio_low": 0.2, "ratio_high": 0.3, "pairs": 8}


@pytest.fixture
def numbers(tmp_path, monkeypatch):
    """The script, on a repository of its own with one recorded study."""
    monkeypatch.setattr(write_numbers, "ROOT", tmp_path)
    for folder in ("benchmarks/results/studies", "docs/findings", "docs/img/studies"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "README.md").write_text("")
    shutil.copy(ROOT / RATES, tmp_path / RATES)
    return write_numbers


def test_blocks_are_written_and_the_rest_stays(numbers):
    record = json.dumps({"rows": [COST], **FACTS})
    (numbers.ROOT / "benchmarks/results/offline_cost.json").write_text(record)
    head, page = numbers.ROOT / "README.md", numbers.ROOT / "docs/findings/learning_rates.md"
    head.write_text("# Head\n\n<!-- numbers: offline_cost -->\nold | 7\n<!-- /numbers -->\ntail 12")
    page.write_text("<!-- numbers: learning_rates.rates -->\n<!-- /numbers -->\n")
    message = r"README\.md, docs/findings/learning_rates\.md: numbers differ"
    with pytest.raises(SystemExit, match=message):
        numbers.main(["--check"])
    assert "old" in head.read_text()
    numbers.main([])
    written = head.read_text()
    assert "old" not in written and "0.25 (0.20-0.30)" in written
    assert numbers.BLOCK.sub("#", written) == "# Head\n\n#\ntail 12"
    assert "| SRPO, anchored | photo " in page.read_text()
    numbers.main(["--check"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cost", "no block is called cost: there are demo"),
        ("learning_rates.tabel", "study learning_rates has no table tabel: there are rates"),
        ("studdy.rates", "no study is called studdy"),
        ("table1.matched_reward", r"table1\.jsonl: no such file of results"),
    ],
)
def test_an_unknown_block_is_named(numbers, name, message):
    with pytest.raises(DirectAlignError, match=message):
        numbers.filled(f"<!-- numbers: {name} -->\n<!-- /numbers -->")


def test_a_finished_study_is_recorded_and_a_quick_one_is_not(numbers, tmp_path):
    folder, figures, kept = tmp_path / "study", tmp_path / "docs/img/studies", tmp_path / RATES
    folder.mkdir()
    for name in ("learning_rates_former.png", "table1_trails.png"):
        (figures / name).write_bytes(b"")
    kept.rename(folder / "results.jsonl")
    marks = [{"study": "learning_rates", "size": "quick"}, {"study": "table1", "size": "full"}]
    for mark in (None, *marks):
        if mark:
            (folder / "study.json").write_text(json.dumps(mark))
        message = "not the full size of learning_rates: run python -m experiments"
        with pytest.raises(SystemExit, match=message):
            numbers.main(["--record", "learning_rates", str(folder)])
    (folder / "study.json").write_text(json.dumps({"study": "learning_rates", "size": "full"}))
    numbers.main(["--record", "learning_rates", str(folder)])
    assert {file.name for file in figures.iterdir()} == {"learning_rates.png", "table1_trails.png"}
    assert kept.read_text() == (folder / "results.jsonl").read_text()


def test_the_documents_hold_what_was_recorded():
    texts = [file.read_text(encoding="utf-8") for file in write_numbers.documents()]
    assert sum(len(write_numbers.BLOCK.findall(text)) for text in texts) >= 6
    write_numbers.main(["--check"])


def test_a_readme_sentence_about_results_needs_its_claim(numbers):
    head = numbers.ROOT / "README.md"
    head.write_text("Aligned models\nkeep their content. Install it.")
    with pytest.raises(SystemExit, match="without a claim: 'Aligned models keep their content"):
        numbers.main(["--check"])
    link = "Models keep content ([claim](docs/claims.md#{})). Install it."
    head.write_text(link.format("anchor_keeps_content"))
    numbers.main(["--check"])
    head.write_text(link.format("anchor_keeps_all"))
    with pytest.raises(SystemExit, match=r"links claim anchor_keeps_all, which claims\.yaml lacks"):
        numbers.main(["--check"])
