"""From the database to what its owner reads: the result page and tables, also without a server (`directalign arena results`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .results import Results, gather
from .results_csv import csv_table, ratings_csv, summary_csv, votes_csv
from .results_page import results_page
from .store import Store

HISTORY = ("answer", "annotator", "request", "item", "model", "other", "axis", "said", "at")
ITEMS = ("item", "prompt", "seed")


def answers(store: Store) -> str:
    """The answers that count: the latest to each question."""
    return ratings_csv(store.ratings()) if store.mode == "rate" else votes_csv(store.votes())


def history(store: Store) -> str:
    """Every answer ever given, also those superseded or taken back."""
    return csv_table(HISTORY, [tuple(row[column] for column in HISTORY) for row in store.history()])


def items(store: Store) -> str:
    """Prompt and seed of each item."""
    return csv_table(ITEMS, [(item, prompt, seed) for item, (prompt, seed, _) in store.items().items()])


def numbers(store: Store) -> str:
    """Every number of the result page."""
    return summary_csv(gathered(store))


TABLES: dict[str, Callable[[Store], str]] = {"answers.csv": answers, "history.csv": history, "items.csv": items, "numbers.csv": numbers}
"""What can be downloaded and what `write_results` writes."""
LINKS = {
    "answers.csv": "The answers that count",
    "history.csv": "Every answer ever given",
    "items.csv": "The prompts",
    "numbers.csv": "The numbers of this page",
}


def gathered(store: Store) -> Results:
    """What the database says about its models."""
    return gather(store.ratings(), store.votes(), store.models())


def page(store: Store, folder: str) -> str:
    """The result page; its links to the tables lead into `folder`."""
    return results_page(gathered(store), store.title, [(words, f"{folder}{name}") for name, words in LINKS.items()])


def write_results(database: Path, out: Path) -> list[Path]:
    """Write results.html and the tables into the folder `out`; returns the files. A running arena is not disturbed."""
    store = Store(database)
    contents = {"results.html": page(store, ""), **{name: table(store) for name, table in TABLES.items()}}
    store.close()
    out.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (out / name).write_text(text, encoding="utf-8", newline="")
    return [out / name for name in contents]
