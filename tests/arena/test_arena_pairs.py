"""From votes to pairs, and from pairs to a training update."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from arena_servers import write_comparison
from PIL import Image
from planted_answers import cast
from typer.testing import CliRunner

import tiny
from directalign.arena.pairs import Decided, decide
from directalign.arena.records import AXES
from directalign.arena.session import open_arena
from directalign.arena.store import Answer
from directalign.cli import app
from directalign.data.pairs import scan_pairs
from directalign.types import DirectAlignError

PROMPTS = ["a red star", "a blue ring", "a green disc", "an odd star"]
A, B = "SECRETMODEL-a", "SECRETMODEL-b"


def ask(source: Path, database: Path, mode: Any, answers: list[tuple]) -> None:
    arena = open_arena(database, [source], mode)
    for person, name in enumerate(("Ann", "Ben", "Cem")):
        arena.store.join(name, f"{person}")
    for number, answer in enumerate(answers):
        assert arena.store.append(Answer(*answer), f"request {number}")
    arena.store.close()


def export(database: Path, out: Path, *more: str):
    return CliRunner().invoke(app, ["arena", "export", str(database), "--out", str(out), *more])


@pytest.fixture
def source(tmp_path):
    return write_comparison(tmp_path / "source", PROMPTS)


@pytest.fixture
def votes(source, tmp_path):
    """Item 0 goes to a, item 1 to b by two of three, item 2 is a tie, item 3 taken back."""
    said = [(1, 0, "left"), (2, 0, "tie"), (1, 1, "right"), (2, 1, "left"), (3, 1, "right")]
    said += [(1, 2, "tie"), (1, 3, "left"), (1, 3, None)]
    answers = [(person, item, A, B, None, side) for person, item, side in said]
    ask(source, tmp_path / "votes.sqlite", "vote", answers)
    return tmp_path / "votes.sqlite"


def test_a_majority_decides_and_the_latest_answer_of_each_counts():
    found, undecided = decide([*cast("lt"), *cast("rlt", "ben"), *cast("rr", "cem")])
    assert found == [Decided(0, "srpo", "base", 2, 1, 0)]
    assert undecided == 2  # one for each side; a single tie
    changed, _ = decide([*cast("l"), *cast("r")])
    assert changed == [Decided(0, "srpo", "base", 1, 0, 0)]


def test_votes_become_pairs_and_pairs_an_update(votes, source, tmp_path):
    made = export(votes, tmp_path / "pairs", "--pairs")
    assert made.exit_code == 0, made.output
    assert "2 pairs from 6 votes, 1 undecided ones left out" in made.output
    lines = (tmp_path / "pairs/pairs.jsonl").read_text("utf-8").splitlines()
    first, second = map(json.loads, lines)
    assert [row["prompt"] for row in (first, second)] == PROMPTS[:2]
    assert first["votes"] == {"chosen": 1, "rejected": 0, "ties": 1}
    of_a, of_b = (f"images/{key}/SECRETFILE-{{:05d}}.png" for key in (A, B))
    for row, item, (chosen, rejected) in ((first, 0, (of_a, of_b)), (second, 1, (of_b, of_a))):
        for key, name in (("chosen", chosen), ("rejected", rejected)):
            copied = (tmp_path / "pairs" / row[key]).read_bytes()
            assert copied == (source / name.format(item)).read_bytes()

    tiny.write_sd(tmp_path / "model")
    recipe = {
        "name": "tiny",
        "model": {"architecture": "sd", "path": str(tmp_path / "model"), "lora": {"rank": 2}},
        "reward": {"name": "pixels", "statistic": "redness"},
        "method": {"name": "dpo"},
        "rollout": {"num_inference_steps": 2},
        "data": {"pairs": str(tmp_path / "pairs"), "batch_size": 2},
        "train": {"num_steps": 2, "learning_rate": 1e-2},
        "evaluate": {"num_samples": 1},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    words = ["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out")]
    trained = CliRunner().invoke(app, words)
    assert trained.exit_code == 0, trained.output
    lines = (tmp_path / "out/metrics.jsonl").read_text("utf-8").splitlines()
    steps = [record for record in map(json.loads, lines) if record["event"] == "step"]
    assert steps[0]["losses"]["pairs"] == pytest.approx(0.6931, abs=1e-4) and steps[0]["grad_norm"]
    assert steps[1]["metrics"]["margin"] != 0 and steps[0]["reward"] is None
    assert (tmp_path / "out/report.html").is_file()


def test_ratings_of_one_level_both_bad_ones_too_give_no_pair(source, tmp_path):
    levels = [("excellent", "fail"), ("fail", "fail"), ("good", "good"), ("pass", "good")]
    answers = [
        (1, item, model, None, axis, level)
        for item, pair in enumerate(levels)
        for model, level in zip((A, B), pair, strict=True)
        for axis in AXES
    ]
    ask(source, tmp_path / "rates.sqlite", "rate", answers)
    assert (
        "2 pairs from 4 votes"
        in export(tmp_path / "rates.sqlite", tmp_path / "p", "--pairs").output
    )
    rows = [json.loads(line) for line in (tmp_path / "p/pairs.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [PROMPTS[0], PROMPTS[3]]
    assert [Path(row["chosen"]).stem[-1] for row in rows] == ["0", "1"]


def test_what_cannot_be_exported_is_refused_and_leaves_no_folder(votes, source, tmp_path):
    ask(source, tmp_path / "ties.sqlite", "vote", [(1, 0, A, B, None, "tie")])

    def refused(database: Path, message: str, *more: str) -> None:
        found = export(database, tmp_path / "out", *more)
        assert found.exit_code == 1 and message in found.output
        assert found.output.count("directalign: ") == 1 and not (tmp_path / "out").exists()

    refused(votes, "what to write is not said: add --pairs")
    refused(tmp_path / "ties.sqlite", "1 votes, none of which decides", "--pairs")
    refused(tmp_path / "gone.sqlite", "no such database", "--pairs")
    Image.new("RGB", (24, 24)).save(source / f"images/{A}/SECRETFILE-00000.png")
    refused(votes, "the images of item 0 have changed since the vote", "--pairs")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no JSON", r"p.jsonl:1: not JSON"),
        ('{"chosen": "a.png", "rejected": "b.png"}', r"p.jsonl:1: .*prompt"),
        ('{"prompt": "a", "chosen": "a.png"}', r"p.jsonl:1: rejected is None, and the path"),
        ('{"prompt": "a", "chosen": 3, "rejected": "b.png"}', r"p.jsonl:1: chosen is 3, and the p"),
        (
            '{"prompt": "a", "chosen": "a.png", "rejected": "./a.png"}',
            r":1 .*chosen and rejected ar",
        ),
        (
            '{"prompt": "a", "chosen": "a.png", "rejected": "gone.png"}',
            r"line 1 .*: rejected .*gone",
        ),
        (
            '{"prompt": "a", "chosen": "torn.png", "rejected": "a.png"}',
            r"line 1 .*: chosen .*torn.png",
        ),
        ('{"prompt": " ", "chosen": "a.png", "rejected": "b.png"}', r"line 1 .*: no caption"),
        ("", r"p.jsonl: no usable image: it has no lines"),
    ],
)
def test_a_malformed_pair_is_named_in_one_line(tmp_path, line, message):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "torn.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    (tmp_path / "p.jsonl").write_text(line + "\n")
    with pytest.raises(DirectAlignError, match=message) as found:
        scan_pairs(tmp_path / "p.jsonl")
    assert "\n" not in str(found.value)
