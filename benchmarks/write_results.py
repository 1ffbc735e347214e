"""Write docs/results.md: every study that is recorded, what the paper claims, what was measured, where it does not hold.

    python benchmarks/write_results.py [--check]
    python benchmarks/write_results.py --record NAME FOLDER

`--record` takes the rows of a finished `directalign study NAME` from FOLDER into benchmarks/results/studies/NAME.jsonl, draws
its figures into docs/img/studies and writes the document. With --check nothing is written, and a document that differs from
its records ends the command with 1. Words that no row can say, on likely reasons, stand in docs/findings/NAME.md; numbers
have no place there.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from directalign.studies import STUDIES, load_study
from directalign.studies.running.records import Row, arms_of, read_rows, seeds_of, write_rows
from directalign.studies.showing.publish import MARK, facts
from directalign.studies.showing.tables import markdown
from directalign.types import DirectAlignError

ROOT = Path(__file__).parent.parent
RECORDS, DOCUMENT = Path("benchmarks/results/studies"), Path("docs/results.md")
PICTURES, FINDINGS = Path("docs/img/studies"), Path("docs/findings")
HEAD = """# Results

Every study is one command, `directalign study NAME`, on the embedded world: tiny FLUX and Stable Diffusion models, a reward with known
biases, and judges that no method is trained on. The text, tables and figures below are written from recorded rows by
`benchmarks/write_results.py`; the only words by hand are under "Where it does not hold". Intervals are 95 %, over seeds unless another
sample is named."""
NUMBER = re.compile(r"\d+(\.\d+)?\s*%|\b\d+\.\d+\b|\b\d+\s*(x|×|times)\b")
ARXIV = re.compile(r"arXiv[: ]\d{4}\.\d{5}")


def document() -> str:
    """The whole of docs/results.md, from the records."""
    recorded = {name: read_rows(record_of(name)) for name in STUDIES if record_of(name).is_file()}
    parts = [HEAD, overview(recorded), *(section(name, rows) for name, rows in recorded.items())]
    return "\n\n".join(parts) + "\n"


def record_of(name: str) -> Path:
    """Where the rows of a study are kept."""
    return ROOT / RECORDS / f"{name}.jsonl"


def overview(recorded: dict[str, list[Row]]) -> str:
    """Which studies are recorded, at which seeds and commits, and which are not."""
    lines = [
        [
            f"[{name}](#{name})",
            STUDIES[name],
            str(len(arms_of(rows))),
            _seeds(rows),
            ", ".join(_commits(rows)),
        ]
        for name, rows in recorded.items()
    ]
    missing = [f"`{name}`" for name in STUDIES if name not in recorded]
    parts = (
        [markdown(["study", "what it asks", "arms", "seeds", "commit"], lines)]
        if lines
        else ["No study has been recorded yet."]
    )
    return "\n\n".join([*parts, *([f"Not recorded yet: {', '.join(missing)}."] if missing else [])])


def section(name: str, rows: list[Row]) -> str:
    """One study: the question, what was measured, figures, where it does not hold, how to repeat it.

    Raises: DirectAlignError for a record without figures, or findings with numbers in them.
    """
    study = load_study(name)
    parts = [
        f'<a id="{name}"></a>\n\n## {study.TITLE}',
        study.QUESTION,
        lowered(study.tell(rows)),
        _figures(name),
        _findings(name),
        f"### How to repeat it\n\n`directalign study {name}` trains and measures all of it again, and goes on where it was stopped.",
        facts(rows),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip())


def lowered(text: str) -> str:
    """Markdown with its headings one level down."""
    return re.sub(r"^(#{1,5} )", r"#\1", text, flags=re.MULTILINE)


def pictures_of(name: str) -> list[Path]:
    """The figures of a study that are there, by name."""
    folder = ROOT / PICTURES
    return sorted([*folder.glob(f"{name}.png"), *folder.glob(f"{name}_*.png")])


def _figures(name: str) -> str:
    files = pictures_of(name)
    if not files:
        raise DirectAlignError(
            f"{PICTURES}: no figure of study {name}; record it with --record {name} FOLDER"
        )
    return "\n\n".join(
        f"![{file.stem.replace('_', ', ')}]({file.relative_to((ROOT / DOCUMENT).parent).as_posix()})"
        for file in files
    )


def _findings(name: str) -> str:
    file = ROOT / FINDINGS / f"{name}.md"
    if not file.is_file():
        return ""
    text = file.read_text(encoding="utf-8").strip()
    found = NUMBER.search(ARXIV.sub("", text))
    if found is not None:
        raise DirectAlignError(
            f"{FINDINGS / file.name}: {found[0]!r} is a number; numbers come from rows: say it in words, or let the study's tell() say it"
        )
    return f"### Where it does not hold, and the likely reason\n\n{lowered(lowered(text))}"


def _seeds(rows: Sequence[Row]) -> str:
    return ", ".join(map(str, seeds_of(rows)))


def _commits(rows: Sequence[Row]) -> list[str]:
    return list(
        dict.fromkeys(str(row["commit"])[:10] for row in rows if row.get("commit") is not None)
    )


# --- taking a record --------------------------------------------------------------------------------------------------


def record(name: str, folder: Path) -> None:
    """Keep the rows of a finished study, and draw its figures anew in the place of former ones.

    Raises: DirectAlignError for a folder of another study, of a quick one, or without results.
    """
    study = load_study(name)
    found = _mark(folder)
    if found != {"study": name, "size": "full"}:
        said = (
            f"{found['size']} size of study {found['study']}"
            if found
            else f"no study ({MARK} is missing)"
        )
        raise DirectAlignError(
            f"{folder} holds the {said}, and the full size of {name} is to be recorded: run directalign study {name} --out {folder}"
        )
    rows = read_rows(folder / "results.jsonl")
    for former in pictures_of(name):
        former.unlink()
    study.draw(rows, ROOT / PICTURES)
    write_rows(rows, record_of(name))


def _mark(folder: Path) -> dict[str, Any]:
    file = folder / MARK
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; end with 1 when the document is stale"
    )
    parser.add_argument(
        "--record",
        nargs=2,
        metavar=("NAME", "FOLDER"),
        help="keep the rows of a finished study first",
    )
    arguments = parser.parse_args(words)
    try:
        if arguments.record:
            record(arguments.record[0], Path(arguments.record[1]))
        text = document()
    except DirectAlignError as error:
        sys.exit(str(error))
    file = ROOT / DOCUMENT
    if arguments.check:
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            sys.exit(f"{DOCUMENT} differs from {RECORDS}; run python benchmarks/write_results.py")
    else:
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
