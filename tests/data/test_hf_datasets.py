"""Prompts and addresses of Hugging Face datasets, and every fault in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import GatedRepoError

from directalign.data.hf_datasets import Address, open_rows, parse
from directalign.data.prompts import read_prompts
from directalign.types import DirectAlignError

datasets = pytest.importorskip("datasets", reason="datasets are an extra: directalign[data]")

TABLE = {
    "id": [1, 2, 3, 4],
    "Prompt": ["a red star", None, "  ", " a blue moon "],
    "lists": [["a"]] * 4,
}
GOOD = ["a red star", "a blue moon"]


@pytest.fixture(autouse=True)
def quiet_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def table() -> datasets.Dataset:
    return datasets.Dataset.from_dict(TABLE)


def splits(**tables: datasets.Dataset) -> datasets.DatasetDict:
    return datasets.DatasetDict(tables)


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("hf:owner/name", Address("owner/name")),
        ("hf:owner/name@test#text", Address("owner/name", split="test", column="text")),
        ("hf:owner/name:en@test", Address("owner/name", config="en", split="test")),
        ("hf:owner/name#a@b", Address("owner/name", column="a@b")),
        ("hf:/no/folder@test", Address("/no/folder", split="test")),
        ("hf:./folder#text", Address("./folder", column="text")),
    ],
)
def test_an_address_says_what_is_meant(source: str, address: Address) -> None:
    assert parse(source) == address


def test_a_folder_goes_before_marks_in_its_name(tmp_path: Path) -> None:
    for odd in (tmp_path / "a@b", tmp_path / "a#b"):
        odd.mkdir()
        assert parse(f"hf:{odd}") == Address(str(odd)) and parse(f"hf:{odd}#text") == Address(
            str(odd), column="text"
        )
    assert parse(f"hf:{tmp_path / 'a@b'}@test#text") == Address(
        str(tmp_path / "a@b"), split="test", column="text"
    )


@pytest.mark.parametrize(
    "source", ["hf:", "hf:name", "hf:a/b/c", "hf:owner/", "hf:two words/name", "hf:@train"]
)
def test_what_is_no_address_is_refused(source: str) -> None:
    with pytest.raises(DirectAlignError, match="not the address of a dataset; write hf:owner/name"):
        parse(source)


def test_prompts_of_a_saved_dataset(tmp_path: Path, table: datasets.Dataset) -> None:
    table.save_to_disk(tmp_path / "saved")
    assert read_prompts(f"hf:{tmp_path / 'saved'}") == GOOD
    assert read_prompts(f"hf:{tmp_path / 'saved'}#Prompt") == GOOD


def test_prompts_of_saved_splits(tmp_path: Path, table: datasets.Dataset) -> None:
    splits(test=table.select([0]), train=table).save_to_disk(tmp_path / "saved")
    assert read_prompts(f"hf:{tmp_path / 'saved'}") == GOOD
    assert read_prompts(f"hf:{tmp_path / 'saved'}@test") == GOOD[:1]


def test_prompts_of_data_files(tmp_path: Path, table: datasets.Dataset) -> None:
    (tmp_path / "files").mkdir()
    table.to_parquet(tmp_path / "files" / "train-00000-of-00001.parquet")
    table.select([3]).to_parquet(tmp_path / "files" / "test-00000-of-00001.parquet")
    assert read_prompts(f"hf:{tmp_path / 'files'}") == GOOD
    assert read_prompts(f"hf:{tmp_path / 'files'}@test") == GOOD[1:]
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "any.jsonl").write_text('{"title": "a sun"}\n{"title": "a sea"}\n')
    assert read_prompts(f"hf:{tmp_path / 'lines'}#title") == ["a sun", "a sea"]


Table = Any
NOT_READABLE = "cannot be read as a dataset .*; check that it holds parquet, jsonl, csv or image"
BROKEN: dict[str, tuple[Callable[[Path, Table], Any], str, str]] = {
    "no such split": (
        lambda folder, table: splits(train=table, test=table).save_to_disk(folder),
        "@valid",
        "no split 'valid'; there are 'train', 'test': write hf:",
    ),
    "no train split": (
        lambda folder, table: splits(val=table, test=table).save_to_disk(folder),
        "",
        "several splits and none is train; there are 'val', 'test': write hf:",
    ),
    "no prompt column": (
        lambda folder, table: table.remove_columns("Prompt").save_to_disk(folder),
        "",
        "no column prompt, caption or text among 'id', 'lists'; name the one with .*#column",
    ),
    "no such column": (
        lambda folder, table: table.save_to_disk(folder),
        "#title",
        "no column 'title' among 'id', 'Prompt', 'lists'; name the one with .*#column",
    ),
    "a column of lists": (
        lambda folder, table: table.save_to_disk(folder),
        "#lists",
        r"row 0: lists is list \['a'\], and text is needed",
    ),
    "blank rows": (
        lambda folder, table: table.select([1, 2]).save_to_disk(folder),
        "",
        "no prompts in it",
    ),
    "a control character": (
        lambda folder, table: datasets.Dataset.from_dict({"text": ["a", "b\0"]}).save_to_disk(
            folder
        ),
        "",
        r"row 1: control character U\+0000",
    ),
    "no folder": (
        lambda folder, table: None,
        "",
        "no such folder .*; a dataset on the hub is written hf:owner/name",
    ),
    "no files": (lambda folder, table: folder.mkdir(), "", NOT_READABLE),
    "a broken file": (
        lambda folder, table: (
            folder.mkdir(),
            (folder / "a.parquet").write_bytes(b"PAR1 and no more"),
        ),
        "",
        NOT_READABLE,
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_dataset_is_one_line_that_names_it(
    tmp_path: Path, table: datasets.Dataset, case: str
) -> None:
    write, suffix, complaint = BROKEN[case]
    write(tmp_path / "set", table)
    source = f"hf:{tmp_path / 'set'}{suffix}"
    with pytest.raises(DirectAlignError, match=complaint) as raised:
        read_prompts(source)
    assert str(raised.value).startswith(source) and "\n" not in str(raised.value)


def gated() -> Exception:
    error = datasets.exceptions.DatasetNotFoundError(
        "Dataset 'owner/name' is a gated dataset on the Hub."
    )
    error.__cause__ = GatedRepoError.__new__(GatedRepoError)  # made without the response it carries
    return error


HUB = [
    (
        gated(),
        r"gated on the hub; accept its terms at https://huggingface\.co/datasets/owner/name, then ",
    ),
    (
        datasets.exceptions.DatasetNotFoundError("Dataset 'owner/name' doesn't exist"),
        "no such dataset on the hub, or a private one; check owner/name",
    ),
    (
        ConnectionError("Couldn't reach\n'owner/name'"),
        r"the hub cannot be reached \(Couldn't reach 'owner/name'\); check the connection",
    ),
    (
        ValueError("Config name is missing.\nPlease pick one among: ['en', 'de']"),
        r"Please pick one among: \['en', 'de'\]\); name its config.*hf:owner/name:config",
    ),
    (
        RuntimeError("Dataset scripts are no longer supported, but found name.py"),
        "cannot be read as a dataset .Dataset scripts are no longer supported",
    ),
]


@pytest.mark.parametrize(("error", "complaint"), HUB, ids=range(len(HUB)))
def test_what_the_hub_refuses_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, error: Exception, complaint: str
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DirectAlignError, match=complaint) as raised:
        open_rows("hf:owner/name")
    assert str(raised.value).startswith("hf:owner/name: ") and "\n" not in str(raised.value)


def test_the_hub_is_loaded_for_name_and_config(
    monkeypatch: pytest.MonkeyPatch, table: datasets.Dataset
) -> None:
    loaded: list[tuple[object, ...]] = []

    def load(*given: object) -> datasets.DatasetDict:
        loaded.append(given)
        return splits(train=table, test=table.select([3]))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert (
        read_prompts("hf:owner/name") == GOOD and read_prompts("hf:owner/name:en@test") == GOOD[1:]
    )
    assert loaded == [("owner/name", None), ("owner/name", "en")]


def test_without_the_library_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        DirectAlignError, match=r"hf:owner/name: .*pip install 'directalign\[data\]'"
    ):
        read_prompts("hf:owner/name")
