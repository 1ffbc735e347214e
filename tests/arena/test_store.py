"""The database counts each question once in any order of answers, and keeps the history."""

import contextlib
import os
import shutil
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest
from arena_servers import write_comparison
from hypothesis import given, settings
from hypothesis import strategies as st

from directalign.arena.records import AXES, LEVELS, ArenaError, Mode
from directalign.arena.results import write_results
from directalign.arena.session import (
    VOTE_QUESTION,
    Arena,
    TaskScheduler,
    TokenSigner,
    new_secret,
    open_arena,
    tasks_of,
)
from directalign.arena.sources import read_sources
from directalign.arena.store import SIDES, Answer, Store, create_store, lock

MODELS = ("x", "y", "z")
ANNOTATORS, ITEMS = st.integers(1, 3), st.integers(0, 3)
PAIRS = st.sampled_from([("x", "y"), ("x", "z"), ("z", "y")])
ANSWERS = st.one_of(
    st.builds(
        lambda annotator, item, pair, said: Answer(annotator, item, *pair, None, said),
        *(ANNOTATORS, ITEMS, PAIRS, st.sampled_from([*SIDES, None])),
    ),
    st.builds(
        lambda annotator, item, model, axis, said: Answer(annotator, item, model, None, axis, said),
        *(ANNOTATORS, ITEMS, st.sampled_from(MODELS)),
        *(st.sampled_from(AXES), st.sampled_from([*LEVELS, None])),
    ),
)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A comparison of three models on four prompts."""
    return compared(tmp_path_factory.mktemp("store") / "source", 4)


def compared(folder: Path, prompts: int, **options: Any) -> Path:
    return write_comparison(folder, [f"prompt {n}" for n in range(prompts)], MODELS, **options)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "a.sqlite"


def new_store(source: Path, file: Path, mode: Mode = "vote") -> Store:
    for old in file.parent.glob(f"{file.name}*"):
        old.unlink()
    create_store(file, mode, read_sources([source]), "00" * 32)
    store = Store(file)
    for name in ("Ann", "Ben", "Cem"):
        store.join(name, f"joining-{name}")
    return store


@settings(max_examples=10)
@given(steps=st.lists(st.tuples(ANSWERS, st.integers(0, 2)), max_size=20))
def test_any_order_of_answers_counts_each_question_once_and_keeps_everything(
    tmp_path_factory, three, steps
):
    store = new_store(three, tmp_path_factory.getbasetemp() / "interleaved.sqlite")
    expected: dict[tuple, Answer] = {}
    for number, (answer, repeats) in enumerate(steps):
        assert store.append(answer, f"request-{number}")
        question = answer.annotator, answer.item, answer.model, answer.other, answer.axis
        expected[question] = answer
        for _ in range(repeats):
            assert not store.append(answer, f"request-{number}")
        if repeats:  # an old request that arrives again changes nothing
            assert not store.append(steps[0][0], "request-0")
    counted = store.counted()
    assert len(counted) == len(set(counted))
    assert set(counted) == {answer for answer in expected.values() if answer.said is not None}
    history = store.history()
    assert [row["request"] for row in history] == [f"request-{n}" for n in range(len(steps))]
    assert [row["said"] for row in history] == [answer.said for answer, _ in steps]
    assert len(store.ratings()) + len(store.votes()) == len(counted)
    store.close()


@pytest.mark.usefixtures("durable")
def test_rows_and_names_are_unique_private_and_durable(three, file):
    store = new_store(three, file)
    for annotator in (1, 2):  # an equal request of another annotator is another answer
        assert store.append(Answer(annotator, 0, "x", "y", None, "left"), "same-request")
    assert [(vote.annotator, vote.winner) for vote in store.votes()] == [("Ann", "x"), ("Ben", "x")]
    assert store.join("ANN", "joining-ANN") is None
    names = ("journal_mode", "synchronous", "foreign_keys")
    settings_of = [store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
    assert settings_of == ["wal", 2, 1]
    assert os.name == "nt" or stat.S_IMODE(file.stat().st_mode) == 0o600
    connection = sqlite3.connect(file)
    for statement in ("DELETE FROM answers", "UPDATE answers SET said = 'left'"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            connection.execute(statement)
    connection.close()


def test_only_one_arena_runs_on_a_database_and_leaves_one_file(three, tmp_path):
    """The second is refused, also while the first one creates the database."""
    file = tmp_path / "new" / "a.sqlite"
    arena = open_arena(file, [three])
    arena.join("Ann", new_secret())
    with pytest.raises(ArenaError, match=r"a.sqlite: another arena runs on it"):
        open_arena(file, [three])
    assert write_results(file, tmp_path / "results")  # a reader is no second arena
    arena.store.close()
    assert sorted(each.name for each in file.parent.iterdir()) == ["a.sqlite", "a.sqlite.lock"]
    shutil.copy(file, tmp_path / "copy.sqlite")
    assert open_arena(tmp_path / "copy.sqlite", [three]).store.annotators() == {1: "Ann"}
    locked = lock(tmp_path / "b.sqlite")
    with pytest.raises(ArenaError, match=r"b.sqlite: another arena"):
        open_arena(tmp_path / "b.sqlite", [three])
    locked.close()
    open_arena(tmp_path / "b.sqlite", [three]).store.close()


def test_a_second_name_of_a_database_starts_no_second_arena(three, tmp_path):
    names = ("a", "link", "hard", "moved")
    file, link, hard, moved = (tmp_path / f"{name}.sqlite" for name in names)
    arena = open_arena(file, [three])
    link.symlink_to(file)
    hard.hardlink_to(file)
    for name in (link, hard):
        with pytest.raises(ArenaError, match=r"(a|hard).sqlite: another arena runs on it"):
            open_arena(name, [three])
    hard.rename(moved)
    file.unlink()
    with pytest.raises(ArenaError, match=r"moved.sqlite: another arena runs on it"):
        open_arena(moved, [three])
    arena.store.close()
    hard.hardlink_to(moved)
    with pytest.raises(ArenaError, match=r"hard.sqlite: has 2 names \(hard links\)"):
        open_arena(hard, [three])
    hard.unlink()
    open_arena(moved, [three]).store.close()


def test_a_start_that_fails_leaves_neither_database_nor_lock(three, tmp_path, file):
    source = write_comparison(tmp_path / "broken", ["prompt 0", "prompt 1"])
    image = min(source.glob("images/*/*.png"))
    whole = image.read_bytes()
    image.write_bytes(whole[:-30])
    with pytest.raises(ArenaError, match=r"SECRETFILE-00000.png: not a readable image"):
        open_arena(file, [source])
    assert not file.exists()
    image.write_bytes(whole)
    open_arena(file, [source]).store.close()
    with pytest.raises(ArenaError, match="compares"):
        open_arena(file, [three])
    open_arena(file, [source]).store.close()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["Ann", "ann"], "given twice"),
        (["Ann", "=x"], "begin with a letter"),
        (["Ann", "x" * 61], "1 to 60"),
    ],
)
def test_invited_names_are_added_all_or_none(three, file, names, message):
    arena = open_arena(file, [three])
    with pytest.raises(ArenaError, match=message):
        arena.invite(names)
    assert arena.store.annotators() == {}
    links = arena.invite(["Ann", "Ben"])
    assert arena.invite(["Ann", "Ben"]) == links and links["Ben"].startswith("2.")


def test_an_unusable_database_is_refused_by_name(three, tmp_path, file):
    (tmp_path / "text").write_text("no database at all, but a text of some length")
    (tmp_path / "empty").write_bytes(b"")
    with sqlite3.connect(tmp_path / "other") as connection:
        connection.execute("CREATE TABLE facts (name TEXT, value TEXT)")
    open_arena(file, [three], "vote", 3).store.close()
    repainted = compared(tmp_path / "repainted", 4, size=32)
    fewer = write_comparison(tmp_path / "fewer", ["prompt 0"], MODELS[:2])
    damages = {
        "mode": "DELETE FROM facts WHERE name = 'mode'",
        "secret": "UPDATE facts SET value = 'zz' WHERE name = 'secret'",
        "answers": "DROP VIEW counted; DROP TABLE answers",
    }
    for name, damage in damages.items():
        open_arena(tmp_path / name, [three]).store.close()
        with contextlib.closing(sqlite3.connect(tmp_path / name)) as connection:
            connection.executescript(damage)
    cases: list[tuple[str, Path, tuple, str]] = [
        *((name, three, (), f"{name}: .*give another file") for name in damages),
        ("", three, (), "is a folder"),
        ("text/a.sqlite", three, (), "its folder cannot be created"),
        ("text", three, (), "text: .*give another file"),
        ("empty", three, (), "empty: .*give another file"),
        ("other", three, (), "other: .*give another file"),
        ("a.sqlite", three, ("rate",), "--mode vote --items 3"),
        ("a.sqlite", three, (None, 4), "--mode vote --items 3"),
        ("a.sqlite", repainted, (), r"a.sqlite: item \d differs"),
        ("a.sqlite", fewer, (), "compares x, y, z, but the source holds x, y"),
        ("b.sqlite", three, (None, 5), "--items 5: only 4 prompts and seeds"),
    ]
    for name, source, options, message in cases:
        with pytest.raises(ArenaError, match=message):
            open_arena(tmp_path / name, [source], *options)


def test_a_source_that_grew_continues(three, tmp_path, file):
    open_arena(file, [three]).store.close()
    assert len(open_arena(file, [compared(tmp_path / "grown", 6)]).store.items()) == 4


def answer_everything(arena: Arena, annotator: int) -> list[str]:
    """Vote until the end; the tasks in their order."""
    tasks, state = [], arena.state(annotator)
    while state["next"]:
        tasks.append(state["next"][0]["task"])
        request = f"request-{annotator}-{len(tasks)}"
        state = arena.vote(annotator, request, tasks[-1], SIDES[len(tasks) % 3])
    return tasks


def test_everybody_gets_every_task_once_in_an_own_order(three, file):
    arena = open_arena(file, [three])
    names = ("Ann", "Ben", "Cem")
    orders = [answer_everything(arena, arena.join(name, new_secret())) for name in names]
    assert all(len(order) == 12 == len(set(order)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert len({frozenset(order) for order in orders}) == 1
    sides = {(vote.left, vote.right) for vote in arena.store.votes()}
    assert sides == {(a, b) for a in MODELS for b in MODELS if a != b}
    orders = [arena.signer.shuffled(("x", "y"), n, item) for n in range(50) for item in range(40)]
    assert abs(sum(order[0] == "x" for order in orders) - 1000) < 120  # five standard errors


def scheduler() -> TaskScheduler:
    """Two models on 30 items."""
    return TaskScheduler("vote", tasks_of("vote", range(30), ["x", "y"]), TokenSigner(b"secret"))


@settings(max_examples=10)
@given(order=st.permutations([number % 12 for number in range(48)]))
def test_items_get_annotators_evenly(order):
    """Twelve annotators, four answers each in any order, 30 items: 1.6 answers per item."""
    found = scheduler()
    for annotator in order:
        found.record(annotator, found.next(annotator, 5)[0], VOTE_QUESTION, "tie")
    answers = [sum(bool(found.answers(n, task)) for n in range(12)) for task in found.tasks]
    assert sum(answers) == 48 and max(answers) <= 4


def test_results_of_a_folder_that_cannot_be_written(three, file, tmp_path, monkeypatch):
    """As on a CD: SQLite cannot make its files beside the database."""
    new_store(three, file).close()

    def connect(name: str, **options: Any) -> sqlite3.Connection:
        if "immutable" not in name:
            raise sqlite3.OperationalError("unable to open database file")
        return opened(name, **options)

    opened = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", connect)
    before = {each: each.read_bytes() for each in tmp_path.iterdir()}
    assert all(each.is_file() for each in write_results(file, tmp_path / "out"))
    assert {each: each.read_bytes() for each in before} == before
    file.with_name(f"{file.name}-wal").write_bytes(b"of a crash")
    with pytest.raises(ArenaError, match="unable to open"):
        Store(file)


def test_rating_state_and_undo(three, file):
    arena = open_arena(file, [three], "rate")
    annotator = arena.join("Ann", new_secret())
    task = arena.state(annotator)["next"][0]
    image = task["images"][0]
    state = arena.rate(annotator, "request-0", task["task"], image, "detail", "good")
    assert state["next"][0]["task"] == task["task"] and state["done"] == 0
    assert state["next"][0]["answers"][image] == {"detail": "good"}
    for number, each in enumerate((each, axis) for each in task["images"] for axis in AXES):
        state = arena.rate(annotator, f"request-x{number}", task["task"], *each, "fail")
    assert state["done"] == 1 and state["last"]["task"] == task["task"]
    state = arena.rate(annotator, "request-back", task["task"], image, "detail", None)
    assert state["done"] == 0 and state["last"] is None and len(arena.store.ratings()) == 11


def test_results_show_a_title_and_the_images_while_they_are_there(three, tmp_path):
    source, file = shutil.copytree(three, tmp_path / "source"), tmp_path / "titled.sqlite"
    arena = open_arena(file, [source], title="Which look?")
    for number in range(2):
        annotator = arena.join(f"Ann {number}", new_secret())
        for item in arena.store.items():  # x loses on the first prompt only
            for other in ("y", "z"):
                said = "left" if item else "right"
                arena.store.append(Answer(annotator, item, "x", other, None, said), new_secret())
    arena.store.close()
    html = write_results(file, tmp_path / "results")[0].read_text()
    assert "<h1>Which look?</h1>" in html and html.count("data:image/webp;base64,") == 4 * 3
    assert (html.count("<b>Won</b>"), html.count("<b>Lost</b>")) == (3, 1)
    open_arena(file, [source]).store.close()
    shutil.rmtree(source)
    html = write_results(file, tmp_path / "later")[0].read_text()
    assert "<h1>Which look?</h1>" in html, "the title stays"
    assert "data:image/webp" not in html and "The page has no pictures" in html
