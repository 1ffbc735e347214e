"""Rows become a document; what is stale, quick, missing or typed by hand is refused; and the shipped document is fresh."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from directalign.studies.running.records import read_rows, write_rows
from planted_costs import depths, runs

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "write_results", ROOT / "benchmarks" / "write_results.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, on a repository of its own."""
    module = load()
    monkeypatch.setattr(module, "ROOT", tmp_path / "repository")
    (module.ROOT / "docs" / "findings").mkdir(parents=True)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished full-size study."""
    return plant(tmp_path / "study_convergence", "convergence", "full")


def rows() -> list[dict[str, Any]]:
    return [*runs({"srpo": 2.0, "flow_grpo": 200.0}, {}), *depths("flux", 4, 1.2)]


def plant(folder: Path, study: str, size: str) -> Path:
    write_rows(rows(), folder / "results.jsonl")
    (folder / "study.json").write_text(json.dumps({"study": study, "size": size}))
    return folder


def text_of(module: ModuleType) -> str:
    return (module.ROOT / "docs/results.md").read_text(encoding="utf-8")


def test_without_records_the_document_says_so(results: ModuleType) -> None:
    results.main([])
    assert "No study has been recorded yet." in text_of(
        results
    ) and "`table1`, `tuning`, `convergence`" in text_of(results)
    results.main(["--check"])


def test_a_recorded_study_is_told(results: ModuleType, folder: Path) -> None:
    (results.ROOT / "docs/findings/convergence.md").write_text(
        "Policy gradients win\n\n# A heading\n\nwhere rewards are black boxes (arXiv 2505.05470).\n"
    )
    results.main(["--record", "convergence", str(folder)])
    assert read_rows(results.record_of("convergence")) == rows()
    text = text_of(results)
    assert (
        "[convergence](#convergence) | What it costs to reach the same judge level |" in text
        and "| 0, 1, 2 | 0123456789 |" in text
    )
    assert (
        "\n## What it costs to reach the same judge level\n" in text
        and "\n### The price of a level\n" in text
        and "\n## The price" not in text
    )
    assert (
        "| Flow-GRPO | 100.0 (100.0–100.0) |" in text
        and "2 CPU cores (x86_64)" in text
        and "`directalign study convergence`" in text
    )
    assert (
        "### Where it does not hold, and the likely reason\n\nPolicy gradients win\n\n### A heading"
        in text
    )
    assert "Not recorded yet: `table1`, `tuning`, `timesteps`" in text
    for what in ("curves", "cost", "depth"):
        assert f"![convergence, {what}](img/studies/convergence_{what}.png)" in text
        assert (results.ROOT / f"docs/img/studies/convergence_{what}.png").is_file()
    results.main(["--check"])


def test_figures_of_a_former_record_go(results: ModuleType, folder: Path) -> None:
    former = results.ROOT / "docs/img/studies"
    former.mkdir(parents=True)
    for name in ("convergence_former.png", "table1_trails.png"):
        (former / name).write_bytes(b"")
    results.main(["--record", "convergence", str(folder)])
    assert {file.name for file in former.iterdir()} == {
        "table1_trails.png",
        *(f"convergence_{what}.png" for what in ("curves", "cost", "depth")),
    }


def test_a_stale_document_is_seen_and_left_alone(results: ModuleType, folder: Path) -> None:
    results.main(["--record", "convergence", str(folder)])
    write_rows(
        [row | ({"seconds": 2 * row["seconds"]} if "seconds" in row else {}) for row in rows()],
        results.record_of("convergence"),
    )
    before = text_of(results)
    with pytest.raises(
        SystemExit, match=r"docs/results\.md differs from benchmarks/results/studies"
    ):
        results.main(["--check"])
    assert text_of(results) == before
    results.main([])
    results.main(["--check"])
    assert text_of(results) != before


def test_a_document_that_is_not_there_is_stale(results: ModuleType) -> None:
    with pytest.raises(SystemExit, match="differs"):
        results.main(["--check"])


@pytest.mark.parametrize(
    ("study", "size", "name", "message"),
    [
        (
            "convergence",
            "quick",
            "convergence",
            "holds the quick size of study convergence, and the full size of convergence",
        ),
        ("table1", "full", "convergence", "holds the full size of study table1"),
        ("convergence", "full", "convergances", "no study is called convergances"),
    ],
)
def test_what_cannot_be_recorded(
    results: ModuleType, tmp_path: Path, study: str, size: str, name: str, message: str
) -> None:
    given = plant(tmp_path / "given", study, size)
    with pytest.raises(SystemExit, match=message):
        results.main(["--record", name, str(given)])
    assert not results.record_of("convergence").exists()


def test_a_folder_without_a_study(results: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no study \(study\.json is missing\)"):
        results.main(["--record", "convergence", str(tmp_path)])


@pytest.mark.parametrize(
    "words",
    ["It is 3 times cheaper.", "Only 12 % are photos.", "A drift of 0.04 remains.", "75x less"],
)
def test_a_number_typed_by_hand_is_refused(results: ModuleType, words: str) -> None:
    write_rows(rows(), results.record_of("convergence"))
    (results.ROOT / "docs/img/studies").mkdir(parents=True)
    (results.ROOT / "docs/img/studies/convergence_curves.png").write_bytes(b"")
    (results.ROOT / "docs/findings/convergence.md").write_text(words)
    with pytest.raises(SystemExit, match=r"docs/findings/convergence\.md: .* is a number"):
        results.main([])


def test_a_record_without_figures_is_refused(results: ModuleType) -> None:
    write_rows(rows(), results.record_of("convergence"))
    with pytest.raises(SystemExit, match="no figure of study convergence"):
        results.main([])


def test_the_shipped_document_is_fresh() -> None:
    load().main(["--check"])
