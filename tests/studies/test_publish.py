"""A study's folder: it belongs to one study in one size, and its page says what was asked, measured and on what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from planted import run

from directalign import studies
from directalign.studies.showing import publish
from directalign.types import DirectAlignError


class Toy:
    """A study of one arm that counts how often it is measured."""

    NAME, TITLE, QUESTION = "table1", "A toy", "Does it work? It does."

    def __init__(self) -> None:
        self.calls: list[tuple[Path, bool, Path]] = []

    def measure(self, out: Path, quick: bool, recipes: Path) -> list[dict[str, Any]]:
        self.calls.append((out, quick, recipes))
        return run("srpo", 1, [0.1, 0.2], 10)

    def tell(self, rows: list[dict[str, Any]]) -> str:
        return f"There are {len(rows)} rows."

    def draw(self, rows: list[dict[str, Any]], folder: Path) -> list[Path]:
        file = folder / "table1_curve.png"
        file.write_bytes(b"")
        return [file]


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Toy:
    study = Toy()
    monkeypatch.setattr(studies, "load_study", lambda name: study)
    return study


def test_the_page_holds_question_text_figures_and_what_it_was_measured_on(
    toy: Toy, tmp_path: Path
) -> None:
    page = studies.run_study("table1", tmp_path / "out", False, Path("recipes"))
    text = page.read_text(encoding="utf-8")
    assert page == tmp_path / "out" / "README.md" and toy.calls == [
        (tmp_path / "out", False, Path("recipes"))
    ]
    assert text.startswith(
        "# A toy\n\nDoes it work? It does.\n\nThere are 2 rows.\n\n![table1_curve](table1_curve.png)\n"
    )
    for fact in (
        "`directalign study table1`",
        "Seeds: 1.",
        "Commit: 0123abc.",
        "2 CPU cores (x86_64), 1 thread(s) of torch",
        "torch 2.13",
    ):
        assert fact in text
    assert [
        json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    ] == run("srpo", 1, [0.1, 0.2], 10)


def test_a_quick_result_says_so_in_its_first_line(toy: Toy, tmp_path: Path) -> None:
    lines = (
        studies.run_study("table1", tmp_path / "out", True, Path("recipes"))
        .read_text(encoding="utf-8")
        .splitlines()
    )
    assert "Quick size: it shows that the wiring works" in lines[0] and lines[2] == "# A toy"
    assert any("`directalign study table1 --quick`" in line for line in lines)


def test_a_second_call_goes_on_in_the_same_folder(toy: Toy, tmp_path: Path) -> None:
    pages = [studies.run_study("table1", tmp_path, False, Path("recipes")) for _ in range(2)]
    assert pages[0] == pages[1] and len(toy.calls) == 2


def test_the_other_size_and_another_study_are_refused_by_name(toy: Toy, tmp_path: Path) -> None:
    studies.run_study("table1", tmp_path, False, Path("recipes"))
    before = (tmp_path / "README.md").read_bytes()
    with pytest.raises(
        DirectAlignError,
        match=r"holds the full size of study table1, not the quick size of table1: choose another --out",
    ):
        studies.run_study("table1", tmp_path, True, Path("recipes"))
    with pytest.raises(
        DirectAlignError, match=r"holds the full size of study table1, not the full size of words"
    ):
        publish.claim(tmp_path, "words", quick=False)
    assert (tmp_path / "README.md").read_bytes() == before and len(toy.calls) == 1


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    for taken in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(DirectAlignError, match="holds something that is no study"):
            publish.claim(taken, "table1", quick=True)


def test_an_unknown_study_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(
        DirectAlignError, match="no study is called tabel1; there are table1, tuning, convergence"
    ):
        studies.load_study("tabel1")


@pytest.mark.parametrize(("name", "title"), studies.STUDIES.items())
def test_every_study_is_there_under_its_name_and_title(name: str, title: str) -> None:
    study = studies.load_study(name)
    assert isinstance(study, studies.Study) and (name, title) == (study.NAME, study.TITLE)
    assert 2 <= study.QUESTION.count(". ") + 1 <= 5
