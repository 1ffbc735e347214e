"""A ledger keeps what was whole, drops what was torn and says so, and writes nothing twice."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from directalign.io.jsonl import Ledger, write_whole
from directalign.types import DirectAlignError

ROWS = [
    {"model": key, "index": index, "numbers": {"é": 0.1 + index}}
    for key in ("a", "b")
    for index in range(3)
]


def filled(file: Path, rows: list[dict[str, object]]) -> bytes:
    Ledger(file, print).append(rows)
    return file.read_bytes()


def test_what_was_written_is_known_again_and_written_once(tmp_path: Path) -> None:
    whole = filled(tmp_path / "rows.jsonl", ROWS)
    again = Ledger(tmp_path / "rows.jsonl", print)
    assert again.rows["b", 2]["numbers"] == {"é": 2.1} and again.missing([("a", 1), ("c", 0)]) == [
        ("c", 0)
    ]
    again.append([*ROWS, ROWS[0]])
    assert (tmp_path / "rows.jsonl").read_bytes() == whole and whole.count(b"\n") == 6


def test_a_file_torn_anywhere_is_completed_to_the_same_bytes(tmp_path: Path) -> None:
    whole = filled(tmp_path / "whole.jsonl", ROWS)
    for cut in range(0, len(whole), 7):
        file, said = tmp_path / f"{cut}.jsonl", []
        file.write_bytes(whole[:cut])
        Ledger(file, said.append).append(ROWS)
        assert file.read_bytes() == whole
        torn = cut > 0 and whole[cut - 1 : cut] != b"\n"
        assert [line.split(": ")[1][:13] for line in said] == (["the last line"] if torn else [])


@pytest.mark.parametrize(
    "line", ["nonsense", "[]", '{"index": 0}', '{"model": "a", "index": "x"}', "null"]
)
def test_a_line_of_something_else_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "rows.jsonl").write_text(f'{{"model": "a", "index": 0}}\n{line}\n')
    with pytest.raises(DirectAlignError, match=r"rows\.jsonl:2: not a line of this comparison"):
        Ledger(tmp_path / "rows.jsonl", print)


def test_a_number_that_json_has_no_word_for_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        filled(
            tmp_path / "rows.jsonl", [{"model": "a", "index": 0, "numbers": {"x": float("nan")}}]
        )


def test_a_full_disk_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    ledger = Ledger(tmp_path / "rows.jsonl", print)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        DirectAlignError,
        match=r"rows\.jsonl: no space left on the disk; free some, then give the same command",
    ):
        ledger.append(ROWS)


def test_a_whole_file_is_there_or_not(tmp_path: Path) -> None:
    write_whole(tmp_path / "a.json", "{}")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
