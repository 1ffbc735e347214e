"""A JSONL store keeps complete lines, removes an incomplete one with a warning, and writes nothing
twice."""

import errno
import os

import pytest

from directalign.evaluation.candidate_scores import JsonlStore
from directalign.types import DirectAlignError

KEYS = [(key, index) for key in ("a", "b") for index in range(3)]
ROWS = [{"model": key, "index": index, "numbers": {"é": 0.1 + index}} for key, index in KEYS]


def test_a_file_cut_anywhere_is_completed_to_the_same_bytes(tmp_path, caplog):
    file = tmp_path / "rows.jsonl"
    JsonlStore(file).append(ROWS)
    whole, again = file.read_bytes(), JsonlStore(file)
    assert again.rows["b", 2]["numbers"] == {"é": 2.1}
    assert again.missing([("a", 1), ("c", 0)]) == [("c", 0)]
    again.append([*ROWS, ROWS[0]])
    assert file.read_bytes() == whole and whole.count(b"\n") == 6
    for cut in range(0, len(whole), 17):
        caplog.clear()
        file.write_bytes(whole[:cut])
        JsonlStore(file).append(ROWS)
        assert file.read_bytes() == whole
        is_incomplete = cut > 0 and whole[cut - 1 : cut] != b"\n"
        assert ("the last line was incomplete" in caplog.text) == is_incomplete


def test_lines_that_are_no_row_nan_and_a_full_disk_are_errors(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "rows.jsonl"
    for line in ("nonsense", "[]", '{"index": 0}', '{"model": "a", "index": "x"}', "null"):
        file.write_text(f'{{"model": "a", "index": 0}}\n{line}\n')
        with pytest.raises(DirectAlignError, match=r"rows\.jsonl:2: not a line of this comparison"):
            JsonlStore(file)
    store = JsonlStore(tmp_path / "new.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        store.append([{"model": "a", "index": 0, "numbers": {"x": float("nan")}}])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DirectAlignError, match=r"new\.jsonl: no space left on the disk; free some"):
        store.append(ROWS)
