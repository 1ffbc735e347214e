"""The database counts each question once in any order of answers, and keeps the history."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from arena_runs import write_comparison
from hypothesis import given, settings
from hypothesis import strategies as st

from directalign.arena.records import AXES, LEVELS, ArenaError
from directalign.arena.results import write_results
from directalign.arena.security import TokenSigner, new_secret
from directalign.arena.session import VOTE_QUESTION, Arena, TaskScheduler, open_arena, tasks_of
from directalign.arena.sources import Item, read_sources
from directalign.arena.store import SIDES, Answer, NameTaken, Store, create_store, lock

MODELS = ("x", "y", "z")
VOTES = st.tuples(
    st.just("vote"),
    st.integers(1, 3),
    st.integers(0, 3),
    st.sampled_from([("x", "y"), ("x", "z"), ("z", "y")]),
    st.sampled_from([*SIDES, None]),
)
RATINGS = st.tuples(
    st.just("rate"),
    st.integers(1, 3),
    st.integers(0, 3),
    st.tuples(st.sampled_from(MODELS), st.sampled_from(AXES)),
    st.sampled_from([*LEVELS, None]),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(
        tmp_path_factory.mktemp("store") / "source",
        [f"prompt {index}" for index in range(4)],
        MODELS,
    )


def fresh(source: Path, file: Path, mode: str = "vote") -> Store:
    file.unlink(missing_ok=True)
    for left in file.parent.glob(f"{file.name}-*"):
        left.unlink()
    items = open_items(source)
    store = create_store(
        file, mode, "a title", {model: model.upper() for model in MODELS}, items, "00" * 32
    )  # type: ignore[arg-type]
    for name in ("Ann", "Ben", "Cem"):
        store.join(name, f"joining-{name}")
    return store


def open_items(source: Path) -> Mapping[int, Item]:
    return read_sources([source]).items


def answer_of(
    kind: str, annotator: int, item: int, about: tuple[str, str], said: str | None
) -> Answer:
    if kind == "vote":
        return Answer(annotator, item, about[0], about[1], None, said)
    return Answer(annotator, item, about[0], None, about[1], said)


@settings(max_examples=15)
@given(steps=st.lists(st.tuples(st.one_of(VOTES, RATINGS), st.integers(0, 2)), max_size=20))
def test_any_interleaving_counts_each_question_once_and_keeps_everything(
    tmp_path_factory: pytest.TempPathFactory, source: Path, steps: list
):
    store = fresh(source, tmp_path_factory.getbasetemp() / "interleaved.sqlite")
    expected: dict[tuple, str | None] = {}
    sent: list[tuple[Answer, str]] = []
    for number, (step, repeats) in enumerate(steps):
        answer = answer_of(*step)
        assert store.append(answer, f"request-{number}")
        sent.append((answer, f"request-{number}"))
        expected[answer.annotator, answer.item, answer.model, answer.other, answer.axis] = (
            answer.said
        )
        for _ in range(repeats):
            assert not store.append(*sent[-1])
        if repeats and len(sent) > 2:  # an old request that arrives again changes nothing
            assert not store.append(*sent[0])
    counted = [
        (each.annotator, each.item, each.model, each.other, each.axis, each.said)
        for each in store.counted()
    ]
    assert len(counted) == len(set(counted)) and set(counted) == {
        (*key, said) for key, said in expected.items() if said is not None
    }
    assert [row["request"] for row in store.history()] == [request for _, request in sent]
    assert [row["said"] for row in store.history()] == [answer.said for answer, _ in sent]
    assert len(store.ratings()) + len(store.votes()) == len(counted)
    store.close()


def test_an_equal_request_of_another_annotator_is_another_answer(source: Path, tmp_path: Path):
    store = fresh(source, tmp_path / "a.sqlite")
    assert store.append(Answer(1, 0, "x", "y", None, "left"), "same-request") and store.append(
        Answer(2, 0, "x", "y", None, "left"), "same-request"
    )
    assert [(vote.annotator, vote.winner) for vote in store.votes()] == [("Ann", "x"), ("Ben", "x")]


def test_rows_can_be_neither_deleted_nor_changed(source: Path, tmp_path: Path):
    store = fresh(source, tmp_path / "a.sqlite")
    store.append(Answer(1, 0, "x", "y", None, "tie"), "request-1")
    connection = sqlite3.connect(store.file)
    for statement in ("DELETE FROM answers", "UPDATE answers SET said = 'left'"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            connection.execute(statement)
    connection.close()


def test_the_database_is_durable_and_private(source: Path, tmp_path: Path):
    store = fresh(source, tmp_path / "a.sqlite")
    asked = {
        name: store._connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "foreign_keys")
    }
    assert asked == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    assert os.name == "nt" or stat.S_IMODE(store.file.stat().st_mode) == 0o600


def test_a_name_is_taken_in_any_case(source: Path, tmp_path: Path):
    with pytest.raises(NameTaken, match="ANN"):
        fresh(source, tmp_path / "a.sqlite").join("ANN", "joining-ANN")


# --- reopening ---


def test_a_restart_knows_everything(source: Path, tmp_path: Path):
    arena = open_arena(tmp_path / "a.sqlite", [source], "vote")
    annotator = arena.join("Ann", new_secret())
    state = arena.state(annotator)
    for number in range(5):
        state = arena.vote(annotator, f"request-{number}", state["next"][0]["task"], "left")
    arena.close()
    again = open_arena(tmp_path / "a.sqlite", [source])
    assert again.state(annotator) == state and state["done"] == 5


def test_one_arena_has_a_database_and_gives_it_back_whole(source: Path, tmp_path: Path):
    """The second is refused, also while the first one creates the database."""
    file = tmp_path / "new" / "a.sqlite"
    arena = open_arena(file, [source])
    arena.join("Ann", new_secret())
    with pytest.raises(ArenaError, match=r"a.sqlite: another arena runs on it"):
        open_arena(file, [source])
    assert write_results(file, tmp_path / "results")  # a reader is no second arena
    arena.close()
    assert sorted(each.name for each in file.parent.iterdir()) == ["a.sqlite", "a.sqlite.lock"]
    shutil.copy(file, tmp_path / "copy.sqlite")
    assert open_arena(tmp_path / "copy.sqlite", [source]).store.annotators() == {1: "Ann"}
    claimed = lock(tmp_path / "b.sqlite")
    with pytest.raises(ArenaError, match=r"b.sqlite: another arena"):
        open_arena(tmp_path / "b.sqlite", [source])
    claimed.close()
    open_arena(tmp_path / "b.sqlite", [source]).close()


def test_a_start_that_fails_leaves_no_database_and_no_claim(source: Path, tmp_path: Path):
    broken = write_comparison(tmp_path / "broken", ["prompt 0", "prompt 1"])
    images = sorted(broken.glob("images/*/*.png"))
    whole = images[0].read_bytes()
    images[0].write_bytes(whole[:-30])
    with pytest.raises(ArenaError, match=r"SECRETFILE-00000.png: not a readable image"):
        open_arena(tmp_path / "a.sqlite", [broken])
    assert not (tmp_path / "a.sqlite").exists()
    images[0].write_bytes(whole)
    open_arena(tmp_path / "a.sqlite", [broken]).close()
    with pytest.raises(ArenaError, match="compares"):
        open_arena(tmp_path / "a.sqlite", [source])
    open_arena(tmp_path / "a.sqlite", [broken]).close()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["Ann", "ann"], "given twice"),
        (["Ann", "=x"], "begin with a letter"),
        (["Ann", "x" * 61], "1 to 60"),
    ],
)
def test_names_are_taken_all_or_none(source: Path, tmp_path: Path, names: list[str], said: str):
    arena = open_arena(tmp_path / "a.sqlite", [source])
    with pytest.raises(ArenaError, match=said):
        arena.links(names)
    assert arena.store.annotators() == {}
    assert arena.links(["Ann", "Ben"]) == arena.links(["Ann", "Ben"]) and arena.links(["Ben"])[
        "Ben"
    ].startswith("2.")


@pytest.mark.parametrize(
    ("file", "said"), [("", "is a folder"), ("text.txt/a.sqlite", "its folder cannot be created")]
)
def test_a_place_that_can_hold_no_database_is_refused_by_name(
    source: Path, tmp_path: Path, file: str, said: str
):
    (tmp_path / "text.txt").write_text("a text")
    with pytest.raises(ArenaError, match=said):
        open_arena(tmp_path / file, [source])


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ("--mode vote --items 3", {"mode": "rate"}),
        ("--mode vote --items 3", {"num_items": 4}),
    ],
)
def test_another_mode_or_number_is_refused(source: Path, tmp_path: Path, said: str, asked: dict):
    open_arena(tmp_path / "a.sqlite", [source], "vote", 3).close()
    with pytest.raises(ArenaError, match=said):
        open_arena(tmp_path / "a.sqlite", [source], **asked)


def test_other_images_are_refused_by_name(source: Path, tmp_path: Path):
    open_arena(tmp_path / "a.sqlite", [source]).close()
    repainted = write_comparison(
        tmp_path / "other", [f"prompt {index}" for index in range(4)], MODELS, size=32
    )
    with pytest.raises(ArenaError, match=r"a.sqlite: item \d differs"):
        open_arena(tmp_path / "a.sqlite", [repainted])
    fewer = write_comparison(tmp_path / "fewer", ["prompt 0"], MODELS[:2])
    with pytest.raises(ArenaError, match="compares x, y, z, but the source holds x, y"):
        open_arena(tmp_path / "a.sqlite", [fewer])


def test_a_source_that_grew_goes_on(source: Path, tmp_path: Path):
    open_arena(tmp_path / "a.sqlite", [source]).close()
    grown = write_comparison(tmp_path / "grown", [f"prompt {index}" for index in range(6)], MODELS)
    assert len(open_arena(tmp_path / "a.sqlite", [grown]).store.items()) == 4


@pytest.mark.parametrize("content", [b"", b"no database at all, but a text of some length", None])
def test_a_file_of_something_else_is_refused(source: Path, tmp_path: Path, content: bytes | None):
    file = tmp_path / "else.sqlite"
    if content is None:
        with sqlite3.connect(file) as connection:
            connection.execute("CREATE TABLE facts (name TEXT, value TEXT)")
    else:
        file.write_bytes(content)
    with pytest.raises(ArenaError, match=r"else\.sqlite: .*give another file"):
        open_arena(file, [source])


# --- scheduling ---


def walk(arena: Arena, annotator: int, most: int = 1000) -> list[str]:
    """Vote on what comes; the tasks in their order."""
    seen, state = [], arena.state(annotator)
    while state["next"] and len(seen) < most:
        seen.append(state["next"][0]["task"])
        state = arena.vote(
            annotator, f"request-{annotator}-{len(seen)}", seen[-1], SIDES[len(seen) % 3]
        )
    return seen


def test_everybody_is_asked_everything_once_in_an_order_of_their_own(source: Path, tmp_path: Path):
    arena = open_arena(tmp_path / "a.sqlite", [source])
    orders = [walk(arena, arena.join(name, new_secret())) for name in ("Ann", "Ben", "Cem")]
    assert all(len(order) == 12 == len(set(order)) for order in orders)
    assert (
        len({tuple(order) for order in orders}) == 3
        and len({frozenset(order) for order in orders}) == 1
    )
    votes = arena.store.votes()
    assert len(votes) == 36 and {(vote.left, vote.right) for vote in votes} == {
        (a, b) for a in MODELS for b in MODELS if a != b
    }


@settings(max_examples=15)
@given(order=st.permutations([number % 12 for number in range(48)]))
def test_items_gather_annotators_evenly(order: list[int]):
    """Twelve annotators, four answers each in any order, 30 items: 1.6 answers per item."""
    scheduler = TaskScheduler(
        "vote", tasks_of("vote", list(range(30)), ["x", "y"]), TokenSigner(b"secret")
    )
    for annotator in order:
        scheduler.record(annotator, scheduler.next(annotator, 5)[0], VOTE_QUESTION, "tie")
    answers = [
        sum(bool(scheduler.answers(annotator, task)) for annotator in range(12))
        for task in scheduler.tasks
    ]
    assert sum(answers) == 48 and max(answers) <= 4


def test_a_crowd_that_asks_at_one_moment_is_spread():
    scheduler = TaskScheduler(
        "vote", tasks_of("vote", list(range(30)), ["x", "y"]), TokenSigner(b"secret")
    )
    handed = Counter(task for annotator in range(60) for task in scheduler.next(annotator, 5))
    assert set(handed.values()) == {10}


def test_sides_are_fair(source: Path, tmp_path: Path):
    arena = open_arena(tmp_path / "a.sqlite", [source])
    shown = [
        arena.signer.shuffled(("x", "y"), annotator, item)
        for annotator in range(50)
        for item in range(40)
    ]
    assert abs(sum(sides[0] == "x" for sides in shown) - 1000) < 120  # five standard errors


def test_undo_and_rating_state(source: Path, tmp_path: Path):
    arena = open_arena(tmp_path / "a.sqlite", [source], "rate")
    annotator = arena.join("Ann", new_secret())
    task = arena.state(annotator)["next"][0]
    image = task["images"][0]
    state = arena.rate(annotator, "request-0", task["task"], image, "detail", "good")
    assert (
        state["next"][0]["task"] == task["task"]
        and state["next"][0]["answers"][image] == {"detail": "good"}
        and state["done"] == 0
    )
    for number, (shown, axis) in enumerate(
        (shown, axis) for shown in task["images"] for axis in AXES
    ):
        state = arena.rate(annotator, f"request-x{number}", task["task"], shown, axis, "fail")
    assert state["done"] == 1 and state["last"]["task"] == task["task"]
    state = arena.rate(annotator, "request-back", task["task"], image, "detail", None)
    assert state["done"] == 0 and state["last"] is None and len(arena.store.ratings()) == 11
