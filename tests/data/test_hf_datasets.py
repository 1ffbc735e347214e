"""Prompts and addresses of Hugging Face datasets, and every fault in one line."""

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
def quiet_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def table():
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
def test_an_address_says_what_is_meant(source, address):
    assert parse(source) == address


def test_a_folder_goes_before_marks_in_its_name(tmp_path):
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
def test_what_is_no_address_is_refused(source):
    with pytest.raises(DirectAlignError, match="not the address of a dataset; write hf:owner/name"):
        parse(source)


def test_prompts_of_saved_datasets_and_of_data_files(tmp_path, table):
    table.save_to_disk(tmp_path / "saved")
    splits(test=table.select([3]), train=table).save_to_disk(tmp_path / "splits")
    for name in ("files", "lines"):
        (tmp_path / name).mkdir()
    table.to_parquet(tmp_path / "files" / "train-00000-of-00001.parquet")
    table.select([3]).to_parquet(tmp_path / "files" / "test-00000-of-00001.parquet")
    (tmp_path / "lines" / "any.jsonl").write_text('{"title": "a sun"}\n{"title": "a sea"}\n')
    whole = ("saved", "saved#Prompt", "splits", "files")
    expected = {**dict.fromkeys(whole, GOOD), "splits@test": GOOD[1:], "files@test": GOOD[1:]}
    expected["lines#title"] = ["a sun", "a sea"]
    for source, prompts in expected.items():
        assert read_prompts(f"hf:{tmp_path}/{source}") == prompts, source


Table = Any
NOT_READABLE = "cannot be read as a dataset .*; check that it holds parquet, jsonl, csv or image"


def write_broken_file(folder: Path, table: Table) -> None:
    folder.mkdir()
    (folder / "a.parquet").write_bytes(b"PAR1 and no more")


def write_shifted_table(folder: Path, table: Table) -> None:
    folder.mkdir()
    (folder / "a.csv").write_text("prompt,id\nb,2\na, star,1\n")


BROKEN: list[tuple[Callable[[Path, Table], Any], str, str]] = [
    (
        lambda folder, table: splits(train=table, test=table).save_to_disk(folder),
        "@valid",
        "no split 'valid'; there are 'train', 'test': write hf:",
    ),
    (
        lambda folder, table: splits(val=table, test=table).save_to_disk(folder),
        "",
        "several splits and none is train; there are 'val', 'test': write hf:",
    ),
    (
        lambda folder, table: table.remove_columns("Prompt").save_to_disk(folder),
        "",
        "no column prompt, caption or text among 'id', 'lists'; name the one with .*#column",
    ),
    (
        lambda folder, table: table.save_to_disk(folder),
        "#title",
        "no column 'title' among 'id', 'Prompt', 'lists'; name the one with .*#column",
    ),
    (lambda folder, table: None, "", "no such folder .*; a dataset on the hub is written hf:owner"),
    (write_broken_file, "", NOT_READABLE),
    (write_shifted_table, "", r"a\.csv:3: 3 fields, and the header"),
]


@pytest.mark.parametrize(("write", "suffix", "complaint"), BROKEN)
def test_a_broken_dataset_is_one_line_that_names_it(tmp_path, table, write, suffix, complaint):
    write(tmp_path / "set", table)
    source = f"hf:{tmp_path / 'set'}{suffix}"
    with pytest.raises(DirectAlignError, match=complaint) as raised:
        read_prompts(source)
    assert str(raised.value).startswith(source) and "\n" not in str(raised.value)


MISSING = datasets.exceptions.DatasetNotFoundError
GATED = MISSING("Dataset 'owner/name' is a gated dataset on the Hub.")
GATED.__cause__ = GatedRepoError.__new__(GatedRepoError)  # made without the response it carries
HUB: dict[str, Exception] = {
    r"gated on the hub; accept its terms at https://huggingface\.co/datasets/owner/name": GATED,
    "no such dataset on the hub, or a private one; check owner/name": MISSING("doesn't exist"),
    r"the hub cannot be reached \(Couldn't reach it\)": ConnectionError("Couldn't reach\nit"),
    r"Please pick one: \['en'\]\); name its config.*hf:owner/name:config": ValueError(
        "Config name is missing.\nPlease pick one: ['en']"
    ),
    "cannot be read as a dataset .Dataset scripts": RuntimeError("Dataset scripts are no longer"),
}


@pytest.mark.parametrize("complaint", HUB)
def test_what_the_hub_refuses_is_named_with_its_remedy(monkeypatch, complaint):
    def refuse(*_: object) -> None:
        raise HUB[complaint]

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DirectAlignError, match=complaint) as raised:
        open_rows("hf:owner/name")
    assert str(raised.value).startswith("hf:owner/name: ") and "\n" not in str(raised.value)


def test_the_hub_is_loaded_for_name_and_config(monkeypatch, table):
    loaded: list[tuple[object, ...]] = []

    def load(*given: object) -> datasets.DatasetDict:
        loaded.append(given)
        return splits(train=table, test=table.select([3]))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert (
        read_prompts("hf:owner/name") == GOOD and read_prompts("hf:owner/name:en@test") == GOOD[1:]
    )
    assert loaded == [("owner/name", None), ("owner/name", "en")]


def test_a_table_of_the_hub_with_shifted_columns(monkeypatch, tmp_path):
    (tmp_path / "a.csv").write_text("prompt,id\na, star,1\n")
    shifted = datasets.load_dataset(str(tmp_path))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: shifted)
    with pytest.raises(DirectAlignError, match="the first row of train has more fields than the"):
        read_prompts("hf:owner/name")


def test_without_the_library_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        DirectAlignError, match=r"hf:owner/name: .*pip install 'directalign\[data\]'"
    ):
        read_prompts("hf:owner/name")
