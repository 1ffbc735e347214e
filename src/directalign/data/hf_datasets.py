"""Rows of one split of a Hugging Face dataset, from the hub or from a folder.

An address is `hf:owner/name[:config][@split][#column]` on the hub, or `hf:folder[@split][#column]`
for a folder from `save_to_disk` or with data files (parquet, jsonl, csv, images). The `datasets`
library reads them; rows stay on disk. Not supported: streaming, and datasets with scripts.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..io import hub
from ..io.text import listed, prompt_key, table
from ..types import DirectAlignError

PREFIX = "hf:"

IMAGE_KEYS = ("image", "img", "jpg", "png", "webp", "picture", "photo")
"""Names of the image column if there are several, by priority; case is ignored."""

_SAVED = ("dataset_dict.json", "state.json")
"""Files that `DatasetDict.save_to_disk` and `Dataset.save_to_disk` write."""


_SHIFTED = "__index_level_0__"
"""Column that pandas makes of the first fields of rows with more fields than the header."""


@dataclass(frozen=True)
class Address:
    """A folder or a hub id (`owner/name`), with the requested config, split and column."""

    name: str
    config: str | None = None
    split: str | None = None
    column: str | None = None

    @property
    def folder(self) -> Path | None:
        """The folder, None for a dataset on the hub; an existing folder precedes a hub id."""
        path = Path(self.name).expanduser()
        return path if path.is_dir() or self.name.startswith(("/", ".", "~")) else None


@dataclass(frozen=True)
class Rows:
    """One split: `where` is its address, for errors; `table` is a `datasets.Dataset` on disk."""

    where: str
    table: Any
    column: str | None = None

    def texts(self) -> Iterator[tuple[int, str]]:
        """(row number from 0, unchecked prompt); a missing value is an empty prompt."""
        name = self._text_column()
        for number, row in enumerate(self.table.select_columns([name])):
            text = "" if row[name] is None else row[name]
            if not isinstance(text, str):
                raise DirectAlignError(
                    f"{self.where}: row {number}: {name} is {type(text).__name__} {text!r:.60}, "
                    "and text is needed"
                )
            yield number, text

    def image_column(self) -> str:
        """The name of the only column of images, or of the one in `IMAGE_KEYS`."""
        from datasets import Image

        names = [
            name for name, feature in self.table.features.items() if isinstance(feature, Image)
        ]
        if not names:
            raise DirectAlignError(
                f"{self.where}: no column of images among {listed(self.table.column_names)}; cast "
                "one with cast_column(name, Image())"
            )
        lowered = {name.lower(): name for name in reversed(names)}
        found = names if len(names) == 1 else [lowered[k] for k in IMAGE_KEYS if k in lowered]
        if not found:
            raise DirectAlignError(
                f"{self.where}: {len(names)} columns of images, {listed(names)}; rename the one to "
                "use to image (rename_column, save_to_disk)"
            )
        return found[0]

    def _text_column(self) -> str:
        names = self.table.column_names
        remedy = f"; name the one with the prompts: {self.where.split('#')[0]}#column"
        if self.column is None:
            return prompt_key(names, self.where, remedy=remedy)
        if self.column not in names:
            raise DirectAlignError(
                f"{self.where}: no column {self.column!r} among {listed(names)}{remedy}"
            )
        return self.column


def is_address(source: str | Path) -> bool:
    """Whether a source of prompts or images is a dataset, not a file or folder."""
    return str(source).startswith(PREFIX)


def parse(source: str) -> Address:
    """The parts of an address; marks in the name of an existing folder belong to its name."""
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
            f"{source}: not the address of a dataset; write "
            "hf:owner/name[:config][@split][#column], or hf:/folder[@split][#column]"
        )
    return address


def _cut(body: str, mark: str) -> tuple[str, str | None]:
    """The text before and after the last `mark`; (body, None) without one, or for a folder."""
    head, found, tail = body.rpartition(mark)
    return (head, tail) if found and not Path(body).is_dir() else (body, None)


def open_rows(source: str) -> Rows:
    """Open the dataset of an address; downloads it from the hub if needed.

    Raises:
        DirectAlignError: `datasets` is not installed, no such folder or dataset, gated or private
            without a token, hub unreachable, no readable data, no such split (lists the splits).
    """
    address = parse(source)
    splits = _load(source, address)
    split = _chosen_split(source, address, list(splits))
    return Rows(source, splits[split], address.column)


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
    """Every split by name; a single unnamed one is called train."""
    try:
        import datasets.config
    except ImportError as error:
        raise DirectAlignError(
            f"{source}: reading a dataset needs the datasets library; "
            "pip install 'directalign[data]'"
        ) from error
    folder = address.folder
    if folder is not None and not folder.is_dir():
        raise DirectAlignError(
            f"{source}: no such folder {folder}; a dataset on the hub is written hf:owner/name"
        )
    try:
        if folder is not None and any((folder / name).is_file() for name in _SAVED):
            loaded = datasets.load_from_disk(str(folder))
        elif folder is not None:
            loaded = datasets.load_dataset(str(folder), address.config)
        else:
            # the library asks a hub that does not answer for minutes
            with hub.offline(datasets.config, not hub.is_reachable()):
                loaded = datasets.load_dataset(address.name, address.config)
    except Exception as error:  # the library, its readers and the connection raise nearly anything
        if folder is not None:
            _check_tables(source, folder)
        raise DirectAlignError(f"{source}: {_why(error, address)}") from error
    splits = (
        {str(split): rows for split, rows in loaded.items()}
        if isinstance(loaded, dict)
        else {str(loaded.split or "train"): loaded}
    )
    builders = {rows.info.builder_name for rows in splits.values()}
    if folder is not None and builders & {"csv", "imagefolder"}:
        _check_tables(source, folder)
    for split, rows in splits.items():
        if "csv" in builders and _SHIFTED in rows.column_names:
            raise DirectAlignError(
                f"{source}: the first row of {split} has more fields than the header of its table; "
                "quote fields that hold a separator"
            )
    return splits


def _check_tables(source: str, folder: Path) -> None:
    """Raise for a table with a row longer than its header, whose columns pandas would shift."""
    for file in sorted(folder.rglob("*.[ct]sv")):
        try:
            for _ in table(file, quoted_tabs=True):
                pass
        except DirectAlignError as error:
            raise DirectAlignError(f"{source}: {error}") from error


def _why(error: Exception, address: Address) -> str:
    """Why a dataset cannot be opened, and the remedy, in one line."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled

    causes = list(_causes(error))
    if any(isinstance(each, GatedRepoError) for each in causes):
        page = f"https://huggingface.co/datasets/{address.name}"
        return (
            f"gated on the hub; accept its terms at {page}, then log in (hf auth login) or set "
            "HF_TOKEN"
        )
    if isinstance(error, DatasetNotFoundError):
        return (
            "no such dataset on the hub, or a private one; check owner/name, and for a private one "
            "log in (hf auth login) or set HF_TOKEN"
        )
    if any(isinstance(each, ConnectionError | OfflineModeIsEnabled) for each in causes):
        return (
            f"the hub cannot be reached ({_short(error)}); check the connection, or copy the "
            "dataset here (save_to_disk) and write hf:/folder"
        )
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
