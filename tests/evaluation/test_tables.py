"""Which models of a comparison are one group, and what a group is called."""

import json
from pathlib import Path
from typing import Any

import pytest

from directalign.evaluation.tables import as_csv, groups_of
from directalign.types import DirectAlignError


def comparison(folder: Path, *models: tuple[dict[str, Any] | None, list[str]]) -> Path:
    """A finished comparison of models, each with its settings and the words of its weights."""
    value = {"value": 1.0, "low": 0.5, "high": 1.5, "n": 8}
    records = [
        {
            "key": f"m{place}",
            "label": f"Model {place}",
            "kind": "base" if settings is None else "run",
            "settings": settings,
            "weights": weights,
        }
        for place, (settings, weights) in enumerate(models)
    ]
    summary = {
        "models": {each["key"]: {"score": value} for each in records},
        "names": {"score": {"label": "Score"}},
    }
    for name, content in (("comparison", {"models": records}), ("summary", summary)):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_only_runs_that_differ_in_the_key_alone_are_joined(tmp_path):
    """Not two checkpoints of a run; keys of one method alone are not in labels."""
    srpo, refl = {"method.name": "srpo", "method.form": "anchored"}, {"method.name": "refl"}
    found, _ = groups_of(
        comparison(
            tmp_path,
            *[({"seed": seed, **method}, []) for method in (srpo, refl) for seed in (0, 1)],
            ({"seed": 0, **srpo}, ["step 10"]),
            ({"seed": 1, **srpo}, ["step 10"]),
            (None, []),
        ),
        "seed",
    )
    assert [(each.label, each.runs) for each in found] == [
        ("name srpo", 2),
        ("name refl", 2),
        ("name srpo, step 10", 2),
        ("Model 6", 1),
    ]
    rows = as_csv(found, {"score": "Score"}).splitlines()
    assert rows[1] == "name srpo,2,score,8,1,0,1,1,runs"
    assert rows[4] == "Model 6,1,score,8,1,,0.5,1.5,prompts"


def test_a_key_that_no_run_has_is_refused(tmp_path):
    with pytest.raises(DirectAlignError, match="--group-by sed: no compared run has this key"):
        groups_of(comparison(tmp_path, ({"seed": 0}, [])), "sed")
