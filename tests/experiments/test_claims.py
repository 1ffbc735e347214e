"""The claims ledger: verdicts follow from recorded rows by one rule."""

import ast
from pathlib import Path

import pytest

from directalign.types import DirectAlignError
from experiments import claims
from experiments.claims import Claim, Measured, verdict
from experiments.rows import write_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture
def records(tmp_path):
    """Two arms, four seeds each: ours ends at .9 ± .02, theirs at .5, of double cost."""
    rows = []
    for seed in range(4):
        ends = {"ours": 0.9 + 0.02 * (-1) ** seed, "theirs": 0.5}
        for arm, end in ends.items():
            for step, share in ((0, 0.0), (10, 1.0)):
                cost = step * (2 if arm == "theirs" else 1)
                row = {"arm": arm, "title": arm, "seed": seed, "step": step}
                rows.append(row | {"photo_rate": share * end, "call_equivalents": cost})
        rows.append({"kind": "asked", "arm": "ours", "title": "ours", "seed": seed, "given": 0.7})
    write_rows(rows, tmp_path / "made.jsonl")
    return tmp_path


@pytest.mark.parametrize(
    ("measured", "value", "word"),
    [
        ({"arm": "ours", "key": "photo_rate", "than": 0.8}, 0.9, "holds"),
        ({"arm": "ours", "key": "photo_rate", "than": 0.9}, 0.9, "not shown"),
        ({"arm": "ours", "key": "photo_rate", "than": 0.95}, 0.9, "refuted"),
        ({"arm": "ours", "against": "theirs", "key": "photo_rate"}, 0.4, "holds"),
        ({"arm": "theirs", "against": "ours", "key": "photo_rate"}, -0.4, "refuted"),
        ({"arm": "ours", "key": "photo_rate", "updates": 5, "than": 0.4}, 0.45, "holds"),
        ({"arm": "ours", "key": "given", "where": {"kind": "asked"}, "than": 0.6}, 0.7, "holds"),
    ],
)
def test_a_verdict_follows_from_the_interval(records, measured, value, word):
    made = Measured.model_validate({"study": "made", "expect": "above", **measured})
    found = verdict(Claim(id="x", claim="x", measured=made), records)
    assert found.found is not None and found.found["value"] == pytest.approx(value)
    assert found.word == word


def test_a_ratio_is_read_at_an_equal_photo_rate(records):
    arms = {"arm": "ours", "against": "theirs", "key": "call_equivalents"}
    read = {"ratio": True, "photo_rate": 0.45, "expect": "below", "than": 1}
    claim = Measured.model_validate({"study": "made", **arms, **read})
    found = verdict(Claim(id="x", claim="x", measured=claim), records)
    assert found.found is not None and found.word == "holds"
    assert found.found["value"] == pytest.approx(0.45 / 0.9 / (2 * 0.45 / 0.5), rel=1e-3)


def test_few_seeds_and_nothing_measured_show_nothing(records):
    rows = [row for row in claims.read_rows(records / "made.jsonl") if row["seed"] < 2]
    write_rows(rows, records / "made.jsonl")
    made = Measured(study="made", arm="theirs", key="photo_rate", expect="below", than=0.9)
    assert verdict(Claim(id="x", claim="x", measured=made), records).word == "not shown"
    assert verdict(Claim(id="x", claim="x"), records).word == "not shown"
    with pytest.raises(DirectAlignError, match="no row of the record fits claim x"):
        other = made.model_copy(update={"arm": "nobody"})
        verdict(Claim(id="x", claim="x", measured=other), records)


def test_tests_that_show_a_claim_exist():
    for claim in claims.claims():
        if claim.test:
            file, name = claim.test.split("::")
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            assert name in {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}
