"""The arena without HTTP: who is asked what, and what is done with an answer. One `Arena` holds database, agenda and pictures.

All that a browser may know of a task is made in `_view`: opaque tokens, the prompt and sizes. No model and no file name is in it.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .agenda import Agenda, Mode, Question, Task, tasks_of
from .blind import Blind, new_secret
from .pictures import Picture, Pictures, Size, shown_size
from .records import ArenaError
from .security import Refused
from .sources import Collection, Item, read_sources
from .store import Answer, NameTaken, Store, claim, create_store

AHEAD = 5
"""Tasks told in advance, so that their images are there when they are asked."""
LONGEST_NAME = 60
ONLY_QUESTION: Question = ("", "")


def open_arena(file: Path, sources: Sequence[Path], mode: Mode | None = None, num_items: int | None = None) -> Arena:
    """The arena of a database, which is made where there is none: `mode` vote if none is said, `num_items` drawn of all.

    Raises: ArenaError where the database is of other images, another mode or number of items.
    """
    collection = read_sources(sources)
    with contextlib.ExitStack() as undo:
        claimed = undo.enter_context(contextlib.closing(claim(file)))
        if file.exists():
            store = Store(file)
            undo.callback(store.close)
            _check_same(store, collection, mode, num_items)
            items = {index: collection.items[index] for index in store.items()}
            sizes = _sizes(items)
        else:
            secret = new_secret()
            items = _drawn(collection, num_items, Blind(bytes.fromhex(secret)))
            sizes = _sizes(items)  # before there is a database, which would hold on to images that are wrong
            store = create_store(file, mode or "vote", collection.title, collection.models, items, secret)
        undo.pop_all()
    return Arena(store, items, sizes, claimed, collection.left_out)


def _sizes(items: Mapping[int, Item]) -> dict[int, Size]:
    return {index: shown_size(item) for index, item in items.items()}


def _drawn(collection: Collection, num_items: int | None, blind: Blind) -> dict[int, Item]:
    """`num_items` of the items by lot, so that they are no one's choice."""
    if num_items is not None and num_items > len(collection.items):
        raise ArenaError(f"--items {num_items}: only {len(collection.items)} prompts and seeds have an image of every model")
    drawn = sorted(collection.items, key=lambda index: blind.token("drawn", index))[:num_items]
    return {index: collection.items[index] for index in sorted(drawn)}


def _check_same(store: Store, collection: Collection, mode: Mode | None, num_items: int | None) -> None:
    stored = store.items()
    if set(store.models()) != set(collection.models):
        raise ArenaError(f"{store.file}: compares {', '.join(store.models())}, and the source holds {', '.join(collection.models)}; name another --out")
    changed = [index for index, (_, _, digest) in stored.items() if index not in collection.items or collection.items[index].digest() != digest]
    if changed:
        raise ArenaError(f"{store.file}: item {changed[0]} is not the same in the source any more; give the source it was made from, or name another --out")
    if mode not in (None, store.mode) or num_items not in (None, len(stored)):
        raise ArenaError(f"{store.file}: was made with --mode {store.mode} --items {len(stored)}; leave them out, or name another --out")


class Arena:
    """State of a running arena; every method is safe among threads."""

    def __init__(self, store: Store, items: Mapping[int, Item], sizes: Mapping[int, Size], claimed: sqlite3.Connection, left_out: int) -> None:
        self.store = store
        self._claimed, self._left_out = claimed, left_out
        self.mode: Mode = store.mode
        self.blind = Blind(store.secret)
        self._prompts = {index: item.prompt for index, item in items.items()}
        self._sizes = sizes
        self._models = list(store.models())
        files = {self._image(index, key): Picture(item.files[key], self._sizes[index]) for index, item in items.items() for key in self._models}
        self.pictures = Pictures(files)
        tasks = tasks_of(self.mode, list(items), self._models)
        self._tasks = {self._token(task): task for task in tasks}
        self._agenda = Agenda(self.mode, tasks, self.blind)
        self._lock = threading.Lock()
        self._names = store.annotators()
        for answer in store.counted():
            self._count(answer)

    def summary(self) -> str:
        """What is asked, and where the answers go, in a line."""
        left_out = f" ({self._left_out} left out that a model lacks)" if self._left_out else ""
        asked = f"{len(self._prompts)} prompts and seeds{left_out}, {len(self._models)} models, {len(self._tasks)} questions"
        return f"{self.mode}: {asked} to everybody; the answers are in {self.store.file}; Ctrl-C ends, the same command goes on"

    def close(self) -> None:
        """Give the database back, all of it in its one file."""
        self.store.close()
        self._claimed.close()

    def join(self, name: str, request: str) -> int:
        """A new annotator, the same again for the same request. Raises: Refused for a name that is in use, too long or not text."""
        try:
            annotator = self.store.join(checked_name(name), request)
        except NameTaken as error:
            raise Refused(409, str(error)) from None
        self._names = self.store.annotators()
        return annotator

    def annotator(self, link: str) -> int:
        """Whose link it is. Raises: Refused for a link that this arena did not give."""
        annotator = self.blind.annotator(link)
        if annotator is None or annotator not in self._names:
            raise Refused(401, "this link or session is not known here; open your own link or the invitation again")
        return annotator

    def name(self, annotator: int) -> str:
        """The name under which someone joined."""
        return self._names[annotator]

    def links(self, names: Sequence[str]) -> dict[str, str]:
        """The link of each name; who has not joined yet does so now. Raises: ArenaError for what is no name."""
        known = {name.casefold(): annotator for annotator, name in self._names.items()}
        try:
            folded = [checked_name(name).casefold() for name in names]
            if len(set(folded)) < len(folded):
                raise Refused(422, "a name is given twice; give each once")
            joined = {name: known.get(folded[place]) for place, name in enumerate(names)}
            return {name: self.blind.link(self.join(name, new_secret()) if annotator is None else annotator) for name, annotator in joined.items()}
        except Refused as error:
            raise ArenaError(f"--annotators {', '.join(names)}: {error.reason}") from None

    def state(self, annotator: int) -> dict[str, Any]:
        """What an annotator's page needs: progress, the tasks that come next (handed out by this call) and the one before."""
        with self._lock:
            last = self._agenda.last(annotator)
            return {
                "name": self.name(annotator),
                "link": self.blind.link(annotator),
                "mode": self.mode,
                "done": self._agenda.done(annotator),
                "total": len(self._tasks),
                "next": [self._view(annotator, task) for task in self._agenda.next(annotator, AHEAD)],
                "last": None if last is None else self._view(annotator, last),
            }

    def rate(self, annotator: int, request: str, task: str, image: str, axis: str, level: str | None) -> dict[str, Any]:
        """Store a level of one image on one axis, None to take it back; returns the state after it."""
        asked = self._task(task, "rate")
        model = next((model for model in asked.models if self._image(asked.item, model) == image), None)
        if model is None:
            raise Refused(422, "that image is not part of that task")
        return self._append(Answer(annotator, asked.item, model, None, axis, level), request)

    def vote(self, annotator: int, request: str, task: str, choice: str | None) -> dict[str, Any]:
        """Store the better side as this annotator sees it, or tie, None to take it back; returns the state after it."""
        asked = self._task(task, "vote")
        left, right = self.blind.shuffled(asked.models, annotator, asked.item)
        return self._append(Answer(annotator, asked.item, left, right, None, choice), request)

    def _append(self, answer: Answer, request: str) -> dict[str, Any]:
        with self._lock:  # the order in memory is the order on the disk
            if self.store.append(answer, request):
                self._count(answer)
        return self.state(answer.annotator)

    def _count(self, answer: Answer) -> None:
        shown = {answer.model, answer.other}
        models = tuple(self._models) if answer.other is None else tuple(model for model in self._models if model in shown)
        question = ONLY_QUESTION if answer.axis is None else (answer.model, answer.axis)
        self._agenda.take(answer.annotator, Task(answer.item, models), question, answer.said)

    def _task(self, token: str, mode: Mode) -> Task:
        if mode != self.mode or token not in self._tasks:
            raise Refused(422, "there is no such task here; load the page again")
        return self._tasks[token]

    def _view(self, annotator: int, task: Task) -> dict[str, Any]:
        width, height = self._sizes[task.item]
        answers = self._agenda.answers(annotator, task)
        images = [self._image(task.item, model) for model in self.blind.shuffled(task.models, annotator, task.item)]
        given: dict[str, dict[str, str]] = {image: {} for image in images}
        for (model, axis), said in answers.items():
            if self.mode == "rate":  # a vote is not shown again: it is taken back or stands
                given[self._image(task.item, model)][axis] = said
        return {"task": self._token(task), "prompt": self._prompts[task.item], "width": width, "height": height, "images": images, "answers": given}

    def _image(self, item: int, model: str) -> str:
        return self.blind.token("image", item, model)

    def _token(self, task: Task) -> str:
        return self.blind.token("task", task.item, *task.models)


def checked_name(name: str) -> str:
    """A name as it is kept: composed, without surrounding or double spaces. Raises: Refused."""
    kept = " ".join(unicodedata.normalize("NFKC", name).split())
    if not kept or len(kept) > LONGEST_NAME:
        raise Refused(422, f"a name has 1 to {LONGEST_NAME} letters")
    if any(unicodedata.category(letter).startswith("C") for letter in kept):
        raise Refused(422, "a name has no invisible or control characters")
    if not kept[0].isalnum():  # a spreadsheet would take = or @ for a formula
        raise Refused(422, "a name begins with a letter or a digit")
    return kept
