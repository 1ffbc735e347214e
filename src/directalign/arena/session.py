"""A running arena without HTTP: which task each annotator gets, and how answers are stored.

Browsers receive only what `Arena._view` returns: opaque tokens, the prompt and sizes; never a model
or a file name. Tokens, sides, orders and links are derived from one secret by HMAC (`TokenSigner`):
without a table, the same after a restart.
"""

from __future__ import annotations

import contextlib
import heapq
import hmac
import json
import random
import re
import secrets
import threading
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from ..web.security import Refused
from .records import AXES, ArenaError, Mode
from .sources import Collection, ImageCache, Size, common_size, read_sources
from .store import Answer, Store, create_store, lock

_LINK = re.compile(r"([0-9]{1,9})\.([0-9a-f]{32})", re.ASCII)


def new_secret() -> str:
    """A random secret in hexadecimal."""
    return secrets.token_hex(32)


@dataclass(frozen=True)
class TokenSigner:
    """The secret of an arena and the tokens derived from it; `repr` hides the secret."""

    secret: bytes = field(repr=False)

    def token(self, *parts: str | int) -> str:
        """32 hexadecimal digits that stand for `parts`."""
        return hmac.new(self.secret, json.dumps(parts).encode(), "sha256").hexdigest()[:32]

    def shuffled(self, models: Sequence[str], annotator: int, item: int) -> list[str]:
        """The models in the order of an annotator's screen: random, the same at every call."""
        return sorted(models, key=lambda model: self.token("side", annotator, item, *models, model))

    def link(self, annotator: int) -> str:
        """Value of an annotator's personal link and cookie."""
        return f"{annotator}.{self.token('annotator', annotator)}"

    def annotator(self, link: str) -> int | None:
        """Annotator of a link, None for a forged or malformed one. Compares in constant time."""
        found = _LINK.fullmatch(link)
        genuine = found and self._equal(found[2], "annotator", int(found[1]))
        return int(found[1]) if found and genuine else None

    def verifies(self, role: str, token: str) -> bool:
        """Whether `token` is that of a role: `owner` or `invitation`."""
        return self._equal(token, role)

    def _equal(self, token: str, *parts: str | int) -> bool:
        return hmac.compare_digest(token.encode(errors="replace"), self.token(*parts).encode())


TASKS_AHEAD = 5
"""Tasks sent in advance, so that the browser preloads their images."""
MAX_NAME_LENGTH = 60
MAX_ANNOTATORS = 1000

Question = tuple[str, str]
"""(model, axis) in rate mode, `VOTE_QUESTION` in vote mode."""
VOTE_QUESTION: Question = ("", "")


class Task(NamedTuple):
    """One screen: an item and its models, two in vote mode, all in rate mode."""

    item: int
    models: tuple[str, ...]


def tasks_of(mode: Mode, items: Sequence[int], models: Sequence[str]) -> list[Task]:
    """Every item once (rate), or every pair of models on every item (vote)."""
    screens = [tuple(models)] if mode == "rate" else list(combinations(models, 2))
    return [Task(item, screen) for item in items for screen in screens]


class TaskScheduler:
    """Choose the next tasks of each annotator: those with the fewest annotators first.

    Tasks that are handed out count like answered ones; otherwise people who start at the same
    moment would all get the same few. Equal tasks come in a random order per annotator. The state
    is in memory and rebuilt from the database at the start; after an annotator's first task, the
    cost does not depend on the number of tasks. Not thread-safe.
    """

    def __init__(self, mode: Mode, tasks: Sequence[Task], signer: TokenSigner) -> None:
        self.tasks = tasks
        self._signer = signer
        self._mode = mode
        self._answers: defaultdict[int, dict[Task, dict[Question, str]]] = defaultdict(dict)
        self._completed: defaultdict[int, dict[Task, None]] = defaultdict(dict)
        self._handed_out: defaultdict[int, dict[Task, None]] = defaultdict(dict)
        self._annotators: Counter[Task] = Counter()  # who completed it or have it; only rises
        self._queues: dict[int, tuple[list[Task], list[int]]] = {}
        self.unavailable: set[int] = set()
        """Items of which an image is missing; their tasks are not handed out."""

    def record(self, annotator: int, task: Task, question: Question, answer: str | None) -> None:
        """Set the answer to a question of a task; None takes it back."""
        answers = self._answers[annotator].setdefault(task, {})
        if answer is None:
            answers.pop(question, None)
        else:
            answers[question] = answer
        completed, handed_out = self._completed[annotator], self._handed_out[annotator]
        self._annotators[task] += task not in completed and task not in handed_out
        completed.pop(task, None)
        handed_out.pop(task, None)
        if len(answers) == (len(AXES) * len(task.models) if self._mode == "rate" else 1):
            completed[task] = None
        else:
            self._handed_out[annotator] = {task: None, **handed_out}

    def answers(self, annotator: int, task: Task) -> Mapping[Question, str]:
        """Answers of an annotator to a task so far."""
        return self._answers[annotator].get(task, {})

    def num_completed(self, annotator: int) -> int:
        """Number of tasks that the annotator has completed."""
        return len(self._completed[annotator])

    def total(self, annotator: int) -> int:
        """Number of tasks that the annotator has completed or can complete."""
        if not self.unavailable:
            return len(self.tasks)
        completed = self._completed[annotator]
        return sum(task in completed or self._is_available(task) for task in self.tasks)

    def has_answers(self, annotator: int) -> bool:
        """Whether the annotator has answered anything."""
        return any(self._answers[annotator].values())

    def last(self, annotator: int) -> Task | None:
        """The task completed most recently."""
        return next(reversed(self._completed[annotator]), None)

    def next(self, annotator: int, count: int) -> list[Task]:
        """Hand out up to `count` tasks: those begun, those handed out before, then the rarest."""
        handed_out = self._handed_out[annotator]
        line = [task for task in handed_out if self._is_available(task)]
        order, heap = self._queue(annotator)
        while len(line) < count and heap:
            annotators, place = divmod(heap[0], len(order))
            task = order[place]
            if self._annotators[task] > annotators:
                heapq.heapreplace(heap, self._annotators[task] * len(order) + place)
                continue
            heapq.heappop(heap)
            is_known = task in self._completed[annotator] or task in handed_out
            if not is_known and self._is_available(task):
                self._annotators[task] += 1
                handed_out[task] = None
                line.append(task)
        return line[:count]

    def _queue(self, annotator: int) -> tuple[list[Task], list[int]]:
        """The tasks in the annotator's order, and a heap of number of annotators × number of tasks
        + place; the former may have risen since."""
        if annotator not in self._queues:
            order = [*self.tasks]
            random.Random(self._signer.token("order", annotator)).shuffle(order)
            heap = [self._annotators[task] * len(order) + n for n, task in enumerate(order)]
            heapq.heapify(heap)
            self._queues[annotator] = order, heap
        return self._queues[annotator]

    def _is_available(self, task: Task) -> bool:
        return task.item not in self.unavailable


def open_arena(
    file: Path,
    sources: Sequence[Path],
    mode: Mode | None = None,
    num_items: int | None = None,
    title: str = "",
) -> Arena:
    """Open the database `file`, or create it (by default in vote mode, with all items).

    `title`: of the page of results; "" keeps the former one, at first the name of the source.

    Raises: ArenaError if it is in use, or of other images, another mode or number of items.
    """
    collection, file = read_sources(sources), file.resolve()
    with contextlib.ExitStack() as undo:
        locked = undo.enter_context(contextlib.closing(lock(file)))
        store, secret = None, new_secret()
        if file.exists():
            store = undo.enter_context(contextlib.closing(Store(file, locked)))
            _check_same(store, collection, mode, num_items)
            indices = [*store.items()]
        else:
            indices = _sampled(collection, num_items, TokenSigner(bytes.fromhex(secret)))
        items = {index: collection.items[index] for index in indices}
        sizes = {index: common_size(item) for index, item in items.items()}
        collection = replace(collection, items=items)
        if store is None:
            create_store(file, mode or "vote", collection, secret)
            store = Store(file, locked)
        undo.pop_all()
    store.describe(sources, " ".join(title.split()))
    return Arena(store, collection, sizes)


def _sampled(collection: Collection, count: int | None, signer: TokenSigner) -> list[int]:
    """Indices of `count` random items, or of all."""
    if count is not None and count > len(collection.items):
        available = f"only {len(collection.items)} prompts and seeds have an image of every model"
        raise ArenaError(f"--items {count}: {available}")
    return sorted(sorted(collection.items, key=lambda index: signer.token("drawn", index))[:count])


def _check_same(
    store: Store, collection: Collection, mode: Mode | None, num_items: int | None
) -> None:
    stored = store.items()
    stored_models, models = ", ".join(sorted(store.models())), ", ".join(sorted(collection.models))
    if stored_models != models:
        reason = f"compares {stored_models}, but the source holds {models}"
        raise ArenaError(f"{store.file}: {reason}; name another --out")
    for index, (_, _, digest) in stored.items():
        if index not in collection.items or collection.items[index].digest() != digest:
            reason = f"item {index} differs from that of the source"
            raise ArenaError(f"{store.file}: {reason}; give the original, or name another --out")
    if mode not in (None, store.mode) or num_items not in (None, len(stored)):
        created = f"was created with --mode {store.mode} --items {len(stored)}"
        raise ArenaError(f"{store.file}: {created}; omit these options, or name another --out")


class Arena:
    """State of a running arena; every method is thread-safe."""

    def __init__(self, store: Store, collection: Collection, sizes: Mapping[int, Size]) -> None:
        self.store, self.mode, self.signer = store, store.mode, TokenSigner(store.secret)
        self._collection, self._sizes = collection, sizes
        self._models = list(store.models())
        self._items_of_images = {
            self._image_token(index, key): (index, file)
            for index, item in collection.items.items()
            for key, file in item.files.items()
        }
        images = self._items_of_images.items()
        self._images = ImageCache({token: (file, sizes[index]) for token, (index, file) in images})
        tasks = tasks_of(self.mode, list(sizes), self._models)
        self._tasks = {self._task_token(task): task for task in tasks}
        self._scheduler = TaskScheduler(self.mode, tasks, self.signer)
        self._lock = threading.Lock()
        self.names, self.invited = store.annotators(), store.invited()
        for answer in store.counted():
            self._record(answer)

    def summary(self) -> str:
        """One line: what is asked and where the answers are stored."""
        number = self._collection.left_out
        left_out = f" ({number} without an image of every model)" if number else ""
        items = f"{self.mode}: {len(self._sizes)} prompts and seeds{left_out}"
        questions = f"{len(self._models)} models, {len(self._tasks)} questions per annotator"
        how = "stop with Ctrl-C, continue with the same command"
        return f"{items}, {questions}; answers are stored in {self.store.file}; {how}"

    def join(self, name: str, request: str, session: int | None = None) -> int:
        """Add an annotator, once per `request`; the one of the browser's `session` stays the same.

        Raises: Refused for an invalid or taken name, another name than the session's, and once
        there are `MAX_ANNOTATORS`.
        """
        name = normalized_name(name)
        if session is not None:
            if name.casefold() == self.names[session].casefold():
                return session
            remedy = "continue under this name, or choose to join as another person"
            raise Refused(409, f"this browser takes part as {self.names[session]}: {remedy}")
        if len(self.names) >= MAX_ANNOTATORS:
            raise Refused(
                403, f"{MAX_ANNOTATORS} people have joined already; ask who sent the link"
            )
        annotator = self.store.join(name, request)
        if annotator is None:
            remedy = "open your personal link to continue, or choose another name"
            raise Refused(409, f"the name {name} is in use: {remedy}")
        self.names = self.store.annotators()
        return annotator

    def annotator(self, link: str) -> int:
        """Annotator of a link. Raises: Refused for a link that this arena did not issue."""
        annotator = self.signer.annotator(link)
        if annotator is None or annotator not in self.names:
            remedy = "open your personal link or the invitation again"
            raise Refused(401, f"unknown link or session; {remedy}")
        if self.invited is not None and annotator not in self.invited:
            raise Refused(403, "you do not take part any more; ask whoever sent the link")
        return annotator

    def has_begun(self, annotator: int) -> bool:
        """Whether the annotator has answered anything."""
        with self._lock:
            return self._scheduler.has_answers(annotator)

    def image(self, token: str) -> bytes | None:
        """An image as PNG, None for an unknown token.

        Raises: ArenaError if it is missing or was replaced; tasks of its item are then set aside.
        """
        try:
            return self._images.png(token)
        except ArenaError:
            with self._lock:
                self._scheduler.unavailable.add(self._items_of_images[token][0])
            raise

    def invite(self, names: Sequence[str], everybody: bool = False) -> dict[str, str]:
        """Let only `names` take part, or `everybody`, or those invited before; adds annotators as
        needed. Returns the personal link of each invited name. Raises: ArenaError."""
        known = {name.casefold(): annotator for annotator, name in self.names.items()}
        try:
            folded = [normalized_name(name).casefold() for name in names]
            if len(set(folded)) < len(folded):
                raise Refused(422, "a name is given twice; give each once")
            if everybody and names:
                raise Refused(422, "only these, or everybody with --open; give one of both")
            joined = [
                known[key] if key in known else self.join(name, new_secret())
                for name, key in zip(names, folded, strict=True)
            ]
        except Refused as error:
            raise ArenaError(f"--annotators {', '.join(names)}: {error.reason}") from None
        if names or everybody:
            self.store.invite(joined or None)
            self.invited = self.store.invited()
        return {self.names[each]: self.signer.link(each) for each in self.invited or ()}

    def state(self, annotator: int) -> dict[str, Any]:
        """What an annotator's page needs: progress, the next tasks (assigned by this call), and
        the previous one."""
        with self._lock:
            last = self._scheduler.last(annotator)
            upcoming = self._scheduler.next(annotator, TASKS_AHEAD)
            return {
                "name": self.names[annotator],
                "link": self.signer.link(annotator),
                "done": self._scheduler.num_completed(annotator),
                "total": self._scheduler.total(annotator),
                "next": [self._view(annotator, task) for task in upcoming],
                "last": None if last is None else self._view(annotator, last),
            }

    def rate(
        self, annotator: int, request: str, task: str, image: str, axis: str, level: str | None
    ) -> dict[str, Any]:
        """Store the level of an image on an axis, None to take it back; returns the new state."""
        found = self._task(task, "rate")
        models = {self._image_token(found.item, model): model for model in found.models}
        if image not in models:
            raise Refused(422, "the image is not part of the task")
        return self._append(
            Answer(annotator, found.item, models[image], None, axis, level), request
        )

    def vote(self, annotator: int, request: str, task: str, choice: str | None) -> dict[str, Any]:
        """Store the better side (left, right or tie), None to take it back; returns the state."""
        found = self._task(task, "vote")
        left, right = self.signer.shuffled(found.models, annotator, found.item)
        return self._append(Answer(annotator, found.item, left, right, None, choice), request)

    def _append(self, answer: Answer, request: str) -> dict[str, Any]:
        with self._lock:  # memory and disk keep the same order
            try:
                is_new = self.store.append(answer, request)
            except ArenaError as error:
                raise Refused(409, str(error)) from None
            if is_new:
                self._record(answer)
        return self.state(answer.annotator)

    def _record(self, answer: Answer) -> None:
        models = self._models if answer.other is None else (answer.model, answer.other)
        task = Task(answer.item, tuple(model for model in self._models if model in models))
        question = VOTE_QUESTION if answer.axis is None else (answer.model, answer.axis)
        self._scheduler.record(answer.annotator, task, question, answer.said)

    def _task(self, token: str, mode: Mode) -> Task:
        if mode != self.mode or token not in self._tasks:
            raise Refused(422, "unknown task; reload the page")
        return self._tasks[token]

    def _view(self, annotator: int, task: Task) -> dict[str, Any]:
        width, height = self._sizes[task.item]
        models = self.signer.shuffled(task.models, annotator, task.item)
        images = {model: self._image_token(task.item, model) for model in models}
        answers: dict[str, dict[str, str]] = {image: {} for image in images.values()}
        if self.mode == "rate":  # a vote is not displayed again
            for (model, axis), level in self._scheduler.answers(annotator, task).items():
                answers[images[model]][axis] = level
        prompt = self._collection.items[task.item].prompt
        view = {"task": self._task_token(task), "prompt": prompt, "width": width, "height": height}
        return view | {"images": list(images.values()), "answers": answers}

    def _image_token(self, item: int, model: str) -> str:
        return self.signer.token("image", item, model)

    def _task_token(self, task: Task) -> str:
        return self.signer.token("task", task.item, *task.models)


def normalized_name(name: str) -> str:
    """A name in NFKC with single spaces. Raises: Refused for an invalid one."""
    found = " ".join(unicodedata.normalize("NFKC", name).split())
    if not found or len(found) > MAX_NAME_LENGTH:
        raise Refused(422, f"a name must have 1 to {MAX_NAME_LENGTH} characters")
    if any(unicodedata.category(letter).startswith("C") for letter in found):
        raise Refused(422, "a name must not contain invisible or control characters")
    if not found[0].isalnum():  # a spreadsheet would take = or @ for a formula
        raise Refused(422, "a name must begin with a letter or a digit")
    return found
