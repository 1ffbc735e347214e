"""Read files of text: UTF-8, tables, JSON, prompts in rows; errors name file, line and remedy.

Also `isolated`: outside texts that run from right to left, beside numbers and other texts.
"""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DirectAlignError

MAX_CHARACTERS = 2000
"""Longest accepted prompt; no text encoder in use reads as much."""

PROMPT_KEYS = ("prompt", "caption", "text")
"""Names of the prompt column, by priority; case is ignored."""

_ISOLATED = re.compile("\u2068[^\u2066-\u2069]*\u2069")
_RIGHT_TO_LEFT = {"R", "AL", "AN", "RLE", "RLO", "LRE", "LRO", "PDF", "RLI", "LRI", "FSI", "PDI"}
_WITHOUT_ISOLATES = dict.fromkeys(range(0x2066, 0x206A))


def read_text(path: Path, what: str, max_bytes: int | None = None) -> str:
    """The file's text without a byte-order mark. `what` names the kind of file in errors.

    Raises DirectAlignError for a missing, unreadable or larger file, a pipe, a device or bytes that
    are not UTF-8.
    """
    if not path.exists():
        raise DirectAlignError(
            f"{path}: no such {what}; check the path (relative to the current folder, {Path.cwd()})"
        )
    if path.is_dir():
        raise DirectAlignError(f"{path}: is a folder, and a {what} is needed")
    if not path.is_file():
        raise DirectAlignError(f"{path}: is a pipe or a device; write the {what} to a file")
    if max_bytes is not None and (size := path.stat().st_size) > max_bytes:
        raise DirectAlignError(
            f"{path}: {size:,} bytes, and the limit of a {what} is {max_bytes:,}; is this the file?"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DirectAlignError(f"{path}: cannot read this {what}: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise DirectAlignError(
            f"{path}:{line}: not UTF-8: byte 0x{byte:02x} at offset {error.start}; save the {what} "
            "as UTF-8"
        ) from error


def numbered_lines(path: Path, what: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line); lines end in LF, CR LF or CR."""
    for number, line in enumerate(io.StringIO(read_text(path, what), newline=None), start=1):
        yield number, line.removesuffix("\n")


def table(path: Path, quoted_tabs: bool = False) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of a .csv or .tsv file, including the header.

    Comma-separated: a field that starts with a quote ends with the closing one. Tab-separated: one
    row a line, and quotes are literal unless they enclose the whole field; with `quoted_tabs`,
    quotes as in .csv. Raises DirectAlignError for an unreadable table, or a row with more fields
    than the header.
    """
    commas = path.suffix.lower() == ".csv"
    if commas or quoted_tabs:
        rows = _quoted(path, "," if commas else "\t")
    else:
        rows = (
            (line, [_unwrapped(field, f"{path}:{line}") for field in text.split("\t")])
            for line, text in numbered_lines(path, "prompt file")
        )
    width = None
    for line, row in rows:
        width = len(row) if width is None else width
        if len(row) > width:
            raise DirectAlignError(
                f"{path}:{line}: {len(row)} fields, and the header has {width}; quote fields that "
                "hold a separator, or name every column in the header"
            )
        yield line, row


def _quoted(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    text = io.StringIO(read_text(path, "prompt file"), newline="")
    reader = csv.reader(text, strict=True, delimiter=delimiter)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DirectAlignError(
            f"{path}:{reader.line_num}: not a table ({error}); quote fields that hold a separator"
        ) from error


def _unwrapped(field: str, where: str) -> str:
    """A field without the enclosing quotes of spreadsheets, which double those inside."""
    wrapped = re.fullmatch(r'"((?:[^"]|"")*)"', field)
    if wrapped:
        return wrapped[1].replace('""', '"')
    if field.startswith('"') and field.count('"') % 2:
        raise DirectAlignError(
            f"{where}: a quote opens a field and does not close on this line; write one row a "
            "line, or save the table as .csv"
        )
    return field


def json_rows(path: Path, what: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number from 1, object) of a JSON-lines file; blank lines are skipped."""
    for number, line in numbered_lines(path, what):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_each_once)
        except (ValueError, RecursionError) as error:
            raise DirectAlignError(
                f"{path}:{number}: not JSON ({error}); write one object a line, like "
                '{"prompt": "a red star"}'
            ) from error
        if not isinstance(row, dict):
            raise DirectAlignError(
                f"{path}:{number}: {type(row).__name__} instead of an object; write it like "
                '{"prompt": "a red star"}'
            )
        checked_unicode(json.dumps(row, ensure_ascii=False), f"{path}:{number}")
        yield number, row


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} twice")
    return made


def read_json(file: Path, remedy: str, shape: Any = dict[str, Any]) -> Any:
    """The content of a file, checked to be of the type `shape`, of which models may have more keys.

    Raises: DirectAlignError for a missing or unreadable file, or another shape; ends in `remedy`.
    """
    from pydantic import TypeAdapter, ValidationError  # slow, and the help of commands has no JSON

    try:
        content = file.read_bytes()
        TypeAdapter(shape).validate_json(content, strict=True)
        return json.loads(content)
    except FileNotFoundError as error:
        raise DirectAlignError(f"{file}: no such file; {remedy}") from error
    except (OSError, ValidationError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = ": ".join([*map(str, first["loc"][:1]), first["msg"]])
        raise DirectAlignError(f"{file}: not readable as JSON ({reason}); {remedy}") from error


def checked_unicode(text: str, where: str) -> str:
    """The text. Raises DirectAlignError for half a character: a lone surrogate, a stray byte."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        what = (
            f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"U+{code:04X} without"
        )
        what += "" if what.startswith("byte") else " its other half"
        raise DirectAlignError(
            f"{where}: not Unicode: {what} at character {error.start + 1}; correct it"
        ) from error
    return text


def checked_prompt(prompt: str, where: str) -> str:
    """The stripped prompt, empty if nothing in it is visible. Raises DirectAlignError if too long,
    with a control character or not Unicode.
    """
    prompt = checked_unicode(prompt.strip(), where)
    if all(unicodedata.category(character) == "Cf" for character in prompt):
        return ""
    if len(prompt) > MAX_CHARACTERS:
        raise DirectAlignError(
            f"{where}: prompt of {len(prompt):,} characters; the limit is {MAX_CHARACTERS:,}: one "
            "prompt a line, or shorten it"
        )
    for position, character in enumerate(prompt, start=1):
        if unicodedata.category(character) == "Cc" and character not in "\t\r\n":
            raise DirectAlignError(
                f"{where}: control character U+{ord(character):04X} at character {position}; "
                "remove it (is this a text file?)"
            )
    return prompt


def prompt_key(names: Sequence[str], where: str, kind: str = "column", remedy: str = "") -> str:
    """The name of the prompt column. Raises DirectAlignError, naming `where`, if there is none."""
    lowered: dict[str, list[str]] = {}
    for name in names:
        lowered.setdefault(name.strip().lower(), []).append(name)
    found = next((lowered[key] for key in PROMPT_KEYS if key in lowered), None)
    if found is None:
        raise DirectAlignError(
            f"{where}: no {kind} {', '.join(PROMPT_KEYS[:-1])} or {PROMPT_KEYS[-1]} among "
            f"{listed(names)}{remedy}"
        )
    if len(found) > 1:
        raise DirectAlignError(f"{where}: {len(found)} {kind}s {listed(found)}; keep one of them")
    return found[0]


def prompt_of_row(row: Mapping[str, Any], where: str) -> str:
    """The unchecked prompt of a row with named fields. Raises DirectAlignError if it has none."""
    key = prompt_key(list(row), where, "key")
    if not isinstance(row[key], str):
        raise DirectAlignError(
            f"{where}: {key} is {type(row[key]).__name__} {row[key]!r:.60}, and text is needed"
        )
    return row[key]


def listed(names: Sequence[str]) -> str:
    """Names in quotes for an error line, cut to 200 characters."""
    return ", ".join(map(repr, names))[:200] or "none"


def isolated(text: str) -> str:
    """The text between isolating marks if it has letters or marks of another direction.

    They would otherwise turn what stands beside them: "70.6 %" into "6.07 %" (Unicode annex 9).
    What is isolated already stays as it is.
    """
    outside = "" if text.isascii() else _ISOLATED.sub("", text)
    if not any(unicodedata.bidirectional(letter) in _RIGHT_TO_LEFT for letter in outside):
        return text
    return f"\u2068{text.translate(_WITHOUT_ISOLATES)}\u2069"
