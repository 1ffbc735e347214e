"""The page of a comparison: complete, small, escaped; missing files are listed."""

import json
import shutil
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from page_tags import HOSTILE, LIMIT, Tags
from PIL import Image

from comparison_folders import MODELS, PROMPTS, write_comparison
from directalign.report import comparison_page, write_page
from directalign.report.comparison_page import (
    extremes,
    gallery,
    group_tables,
    win_matrices,
    win_side,
)
from directalign.report.page import ABSENT, differing_settings, flat
from directalign.report.read import read_comparison
from synthetic_run import write_run

COMPARISON, SUMMARY, RESULTS = "comparison.json", "summary.json", "results.jsonl"


@pytest.fixture
def comparison(compared):
    return read_comparison(compared)


@pytest.fixture
def folder(compared, tmp_path):
    return Path(shutil.copytree(compared, tmp_path / "out"))


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / RESULTS).read_text().splitlines()]


def write_lines(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / RESULTS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_complete_page(folder):
    write_run(folder / "run")  # a run inside does not make it a folder of runs
    file = write_page(folder)
    html = file.read_text()
    assert file == folder / "report.html" and len(html) < LIMIT and Tags(html).harmless()
    titles = ["3 models compared", "Win rates", "Quality against drift", "Worst and best prompts"]
    titles += ["By group of prompts", "Settings that differ", *MODELS.values(), *PROMPTS[:4]]
    titles += ["directalign compare runs/direct_align runs/srpo --base --out comparison"]
    assert [title for title in titles if title not in html] == []
    assert "rollout.num_inference_steps" in html and "train.learning_rate" not in html
    assert "0123456789abcdef" in html
    lead = "24 pairs of prompt and seed from 12 prompts (prompts.txt)"
    assert f"{lead}, and 4 of control prompts, the same for every model." in html


def test_two_models_without_control_prompts(tmp_path):
    models = {"base": "Base model", "tuned": "Tuned"}
    html = write_page(write_comparison(tmp_path, models, control_prompts=0)).read_text()
    assert "Tuned against Base model" in html and "(prompts.txt), the same for every" in html
    assert 'class="duels"' in html and 'class="wins"' not in html


def test_wins_are_mirrored(comparison):
    found = {metric.name: (models, wins) for metric, models, wins in win_matrices(comparison)}
    models, wins = found["photo_rate"]
    assert [model.key for model in models] == list(MODELS)
    assert set(wins) == set(permutations(MODELS, 2))
    for (a, b), win in wins.items():
        mirror = wins[b, a]
        assert (win["value"], win["p"]) == (pytest.approx(1 - mirror["value"]), mirror["p"])
    sides = [win_side(wins[pair]) for pair in (("base", "srpo"), ("srpo", "base"))]
    assert sides == ["for", "against"]


def test_extremes_are_the_pairs_that_changed_most(comparison):
    found = {each["model"].key: each for each in extremes(comparison)}["srpo"]
    names = [each.name for each in found["by"]]
    assert names == ["photo_rate", "content"]
    assert found["tie_break"].name == "score_light"
    changes = []
    for index in range(24):
        before, after = (comparison.images[key][index].numbers for key in ("base", "srpo"))
        gain = sum(after[name] - before[name] for name in names)
        changes.append((gain, after["score_light"] - before["score_light"], index))
    signs = [(gain > 0) - (gain < 0) for gain, _, _ in changes]
    assert found["counts"] == tuple(signs.count(sign) for sign in (1, -1, 0))
    best = max(changes)[2]
    assert tuple(each.file for each in found["gained"][0]) == (
        f"images/base/{best:05d}.png",
        f"images/srpo/{best:05d}.png",
    )


def test_the_gallery_takes_from_every_group_and_every_prompt(comparison):
    found = gallery(comparison, 1_000_000)
    assert (found["groups"], found["count"]) == (["animation", "control_prompts"], 28)
    assert {image.prompt for image, _ in found["rows"]} >= set(PROMPTS)
    left_out = any("are left out" in note for note in comparison.notes)
    assert left_out == (len(found["rows"]) < 28)


def test_tables_by_group_need_two_groups(comparison, tmp_path):
    photo = next(rows for metric, rows in group_tables(comparison) if metric.name == "photo_rate")
    rows = {group: (pairs, cells) for group, pairs, cells in photo}
    assert set(rows) == {"without a group", "animation"}
    pairs, cells = rows["animation"]
    images = [each for each in comparison.images["srpo"].values() if each.group == "animation"]
    rate = sum(each.numbers["photo_rate"] for each in images) / 16
    assert (pairs, cells[2][0], cells[0][2]) == ("16 pairs", f"{100 * rate:.0f}\u00a0%", "")
    single = write_comparison(tmp_path, prompts=["a red circle"], control_prompts=0)
    assert group_tables(read_comparison(single)) == []


def test_hostile_text_stays_text(folder):
    models = json.loads((folder / COMPARISON).read_text())["models"]
    for model in models:
        texts = dict.fromkeys(("label", "source", "kind"), HOSTILE)
        model.update(texts, settings={HOSTILE: HOSTILE, "seed": len(model["key"])})
    changes = {"command": HOSTILE, "commit": HOSTILE, "prompts": {"source": HOSTILE, "count": 3}}
    rewrite(folder / COMPARISON, models=models, **changes)
    lines = lines_of(folder)
    for line in lines:
        line.update(prompt=HOSTILE, seed=HOSTILE, group=HOSTILE if line["index"] % 2 else "x")
        line["numbers"][HOSTILE] = 1.0
    write_lines(folder, lines)
    names = json.loads((folder / SUMMARY).read_text())["names"]
    renamed = {name: {**each, "label": HOSTILE, "scale": HOSTILE} for name, each in names.items()}
    rewrite(folder / SUMMARY, names=renamed)
    html = write_page(folder).read_text()
    assert Tags(html).harmless() and "alert(&#34;2&#34;)" in html


@pytest.mark.parametrize("torn", [COMPARISON, SUMMARY, RESULTS])
def test_torn_files_become_notes(folder, torn):
    file = folder / torn
    file.write_text(file.read_text()[: file.stat().st_size // 2 + 3])
    html = write_page(folder).read_text()
    assert "truncated or not JSON" in html and "Metrics" in html and Tags(html).harmless()


def test_an_unfinished_comparison(folder, tmp_path):
    (folder / SUMMARY).unlink()
    html = write_page(folder).read_text()
    assert "summary.json: No such file" in html
    assert "Metrics" in html and "Win rates" not in html
    (tmp_path / COMPARISON).write_text("{}")
    assert "<h2>Notes</h2>" in write_page(tmp_path).read_text()


def test_records_of_other_shapes_do_no_harm(folder):
    models = [{"key": "base"}, {"label": "no key"}, 3]
    record = {"format": 7, "models": models, "prompts": [], "machine": 4}
    (folder / COMPARISON).write_text(json.dumps(record))
    wins = [3, {"a": 1, "name": "x"}]
    models = {"base": {"photo_rate": "high"}}
    record = {"names": {"photo_rate": 3}, "models": models, "wins": wins}
    (folder / SUMMARY).write_text(json.dumps(record))
    odd = {"model": "base", "index": 99, "numbers": 3, "file": None, "prompt": None, "group": 5}
    with (folder / RESULTS).open("a") as stream:
        stream.write(f'[1]\n{{"model": "base"}}\n{json.dumps(odd)}\n')
    html = write_page(folder).read_text()
    assert "format 7" in html and html.count("not a record of an image") == 2


def test_the_page_stays_small_for_any_number_of_images(tmp_path, monkeypatch):
    """Five models, 100 prompts, noise (which compresses worst), and a tenth of the usual budget."""
    models = {name: name.upper() for name in ("base", "a", "b", "c", "d")}
    prompts = [f"prompt {place}" for place in range(100)]
    folder = write_comparison(tmp_path / "out", models, 1, prompts=prompts, control_prompts=0)
    noise = Image.merge("RGB", [Image.effect_noise((160, 160), 120) for _ in range(3)])
    noise.save(tmp_path / "noise.png")
    for file in (folder / "images").glob("*/*.png"):
        file.unlink()
        file.hardlink_to(tmp_path / "noise.png")
    monkeypatch.setattr(comparison_page, "BUDGET", comparison_page.BUDGET // 10)
    html = write_page(folder).read_text()
    assert sum(len(attrs.get("src") or "") for _, attrs in Tags(html).found) < LIMIT // 10
    assert Tags(html).count("img") > 100 and "Images of 81 of 100 pairs are left out" in html


def test_only_settings_that_differ_are_listed():
    shared = {"learning_rate": 1e-4, "betas": [0.9, 0.999]}
    one: dict[str, Any] = {"name": "A", "seed": 0, "train": shared, "early_stopping": None}
    stopping = {"max_degradation": {"content": 0.03}}
    two = one | {"name": "B", "train": {**shared, "learning_rate": 3e-5}}
    two |= {"early_stopping": stopping}
    assert flat(two)["early_stopping.max_degradation.content"] == 0.03
    assert differing_settings([one, None, two]) == [
        ("train.learning_rate", ["0.0001", ABSENT, "3e-05"]),
        ("early_stopping.max_degradation.content", [ABSENT, ABSENT, "0.03"]),
    ]
    for same in ([one, one], [None, one], []):
        assert differing_settings(same) == []
    # names may be dotted already; a base model has no section train or method
    base = {"rollout.shift": 1.0}
    tuned = {"rollout.shift": 3.0, "train.clip": 0.1}
    runs = [tuned | {"method.form": form} for form in ("relative", "anchored")]
    assert differing_settings([base, *runs]) == [
        ("rollout.shift", ["1", "3", "3"]),
        ("method.form", [ABSENT, "relative", "anchored"]),
    ]
