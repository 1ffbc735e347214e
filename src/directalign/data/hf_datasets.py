"""Rows of a Hugging Face dataset, from the hub or from a folder: opened, one split and its columns chosen, every fault named.

An address is `hf:owner/name[:config][@split][#column]` on the hub, or `hf:folder[@split][#column]` for a folder that
`save_to_disk` wrote or that holds data files (parquet, jsonl, csv, images). The `datasets` library reads them and keeps
the rows on disk. Left out: streaming, and datasets that are programs, which the library no longer runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..types import DirectAlignError
from .text_files import PROMPT_KEYS, prompt_key

PREFIX = "hf:"

IMAGE_KEYS = ("image", "img", "jpg", "png", "webp", "picture", "photo")
"""Names under which an image is looked up where several columns hold images, first match wins, case ignored."""

_SAVED = ("dataset_dict.json", "state.json")
"""Files that mark what `DatasetDict.save_to_disk` and `Dataset.save_to_disk` wrote."""


@dataclass(frozen=True)
class Address:
    """Where a dataset is: a folder or a hub id (`owner/name`), and what of it is meant."""

    name: str
    config: str | None = None
    split: str | None = None
    column: str | None = None

    @property
    def folder(self) -> Path | None:
        """The folder meant, None for a dataset on the hub; a folder that exists goes before a hub id of the same name."""
        path = Path(self.name).expanduser()
        return path if path.is_dir() or self.name.startswith(("/", ".", "~")) else None


@dataclass(frozen=True)
class Rows:
    """One split, opened; `where` is its address, for errors. `table` is a `datasets.Dataset`: its rows are read from disk one by one."""

    where: str
    table: Any
    column: str | None = None

    def texts(self) -> Iterator[tuple[int, str]]:
        """(row number from 0, prompt), not yet checked; a missing value is an empty prompt. Decodes no other column."""
        name = self._text_column()
        for number, row in enumerate(self.table.select_columns([name])):
            text = "" if row[name] is None else row[name]
            if not isinstance(text, str):
                raise DirectAlignError(
                    f"{self.where}: row {number}: {name} is {type(text).__name__} {text!r:.60}, and text is needed"
                )
            yield number, text

    def image_column(self) -> str:
        """The column that holds images: the only one, or the one with a usual name."""
        from datasets import Image

        names = [
            name for name, feature in self.table.features.items() if isinstance(feature, Image)
        ]
        if not names:
            raise DirectAlignError(
                f"{self.where}: no column of images among {listed(self.table.column_names)}; cast one with cast_column(name, Image())"
            )
        lowered = {name.lower(): name for name in reversed(names)}
        chosen = (
            names[0]
            if len(names) == 1
            else next((lowered[key] for key in IMAGE_KEYS if key in lowered), None)
        )
        if chosen is None:
            raise DirectAlignError(
                f"{self.where}: {len(names)} columns of images, {listed(names)}; rename the one to take to image (rename_column, save_to_disk)"
            )
        return chosen

    def _text_column(self) -> str:
        names = self.table.column_names
        found = prompt_key(names) if self.column is None else self.column
        if found is not None and found in names:
            return found
        wanted = " or ".join(PROMPT_KEYS) if self.column is None else repr(self.column)
        raise DirectAlignError(
            f"{self.where}: no column {wanted} among {listed(names)}; name the one with the prompts: {self.where.split('#')[0]}#column"
        )


def is_address(source: str | Path) -> bool:
    """Whether a source of prompts or images names a dataset, and not a file or folder of ours."""
    return str(source).startswith(PREFIX)


def parse(source: str) -> Address:
    """The parts of an address; marks in the name of a folder that exists belong to its name."""
    body, column = _cut(source.removeprefix(PREFIX), "#")
    body, split = _cut(body, "@")
    address = Address(body, None, split, column)
    if address.folder is None:
        name, config = _cut(body, ":")
        address = replace(address, name=name, config=config)
    if not address.name or (
        address.folder is None and not re.fullmatch(r"[^/\s]+/[^/\s]+", address.name)
    ):
        raise DirectAlignError(
            f"{source}: not the address of a dataset; write hf:owner/name[:config][@split][#column], or hf:/folder[@split][#column]"
        )
    return address


def _cut(body: str, mark: str) -> tuple[str, str | None]:
    """What stands before and after the last `mark`; all of it before, if there is none or if that is a folder."""
    head, found, tail = body.rpartition(mark)
    return (head, tail) if found and not Path(body).is_dir() else (body, None)


def open_rows(source: str) -> Rows:
    """Open the dataset that an address names, downloading it if it is on the hub and not there yet.

    Raises:
        DirectAlignError: `datasets` is missing, no such folder or dataset, gated or private without a token, hub out of
            reach, nothing readable in it, no such split (those that are there are named).
    """
    address = parse(source)
    splits = _load(source, address)
    split = _chosen_split(source, address, list(splits))
    return Rows(source, splits[split], address.column)


def listed(names: Sequence[str]) -> str:
    """Names in quotes for an error line, cut where they would fill the screen."""
    return ", ".join(map(repr, names))[:200] or "none"


def _chosen_split(source: str, address: Address, names: list[str]) -> str:
    if address.split is None and ("train" in names or len(names) == 1):
        return "train" if "train" in names else names[0]
    if address.split in names:
        return address.split
    missing = (
        "several splits and none is train"
        if address.split is None
        else f"no split {address.split!r}"
    )
    raise DirectAlignError(
        f"{source}: {missing}; there are {listed(names)}: write {PREFIX}{address.name}@{names[0]}"
    )


def _load(source: str, address: Address) -> dict[str, Any]:
    """Every split by name, on disk; a single unnamed one is called train."""
    try:
        import datasets
    except ImportError as error:
        raise DirectAlignError(
            f"{source}: reading a dataset needs the datasets library; pip install 'directalign[data]'"
        ) from error
    folder = address.folder
    if folder is not None and not folder.is_dir():
        raise DirectAlignError(
            f"{source}: no such folder {folder}; a dataset on the hub is written hf:owner/name"
        )
    try:
        if folder is not None and any((folder / name).is_file() for name in _SAVED):
            loaded = datasets.load_from_disk(str(folder))
        else:
            loaded = datasets.load_dataset(str(folder or address.name), address.config)
    except Exception as error:  # the library, its readers and the connection raise nearly anything
        raise DirectAlignError(f"{source}: {_why(error, address)}") from error
    return (
        {str(split): table for split, table in loaded.items()}
        if isinstance(loaded, dict)
        else {str(loaded.split or "train"): loaded}
    )


def _why(error: Exception, address: Address) -> str:
    """What went wrong while a dataset was opened, and the remedy, in one line."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled

    causes = list(_causes(error))
    if any(isinstance(each, GatedRepoError) for each in causes):
        page = f"https://huggingface.co/datasets/{address.name}"
        return f"gated on the hub; accept its terms at {page}, then log in (hf auth login) or set HF_TOKEN"
    if isinstance(error, DatasetNotFoundError):
        return "no such dataset on the hub, or a private one; check owner/name, and for a private one log in (hf auth login) or set HF_TOKEN"
    if any(isinstance(each, ConnectionError | OfflineModeIsEnabled) for each in causes):
        return f"the hub cannot be reached ({_short(error)}); mend the connection, or copy the dataset here (save_to_disk) and write hf:/folder"
    remedy = (
        "check that it holds parquet, jsonl, csv or image files"
        if address.folder
        else "name its config if it has several: hf:owner/name:config"
    )
    return f"cannot be read as a dataset ({_short(error)}); {remedy}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
