"""The page of a comparison: complete, small, escaped; missing files are listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from page_tags import HOSTILE, LIMIT, Tags
from PIL import Image
from synthetic_run import write_run

from comparison_folders import MODELS, PROMPTS, write_comparison
from directalign.report import write_page
from directalign.report.comparison_page import (
    extremes,
    gallery,
    model_scatter,
    panels,
    win_matrices,
)
from directalign.report.read import read_comparison


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(tmp_path_factory.mktemp("comparison") / "out")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_whole_page(folder: Path):
    file = write_page(folder)
    html, tags = file.read_text(), Tags(file.read_text())
    assert file == folder / "report.html" and len(html) < LIMIT and tags.harmless()
    for title in (
        "3 models compared",
        "Win rates",
        "Quality against drift",
        "Worst and best prompts",
        "By group of prompts",
        "Settings that differ",
    ):
        assert title in html
    assert all(label in html for label in MODELS.values()) and all(
        prompt in html for prompt in PROMPTS[:4]
    )
    assert (
        "directalign compare runs/direct_align runs/srpo --base --out comparison" in html
        and "0123456789abcdef" in html
    )
    assert "rollout.num_inference_steps" in html and "train.learning_rate" not in html


def test_a_comparison_in_a_folder_of_its_own_is_no_run(folder: Path):
    write_run(folder / "run")
    assert "3 models compared" in write_page(folder).read_text()


def test_control_prompts_are_counted_apart(tmp_path: Path):
    html = [
        write_page(write_comparison(tmp_path / str(count), control_prompts=count)).read_text()
        for count in (4, 0)
    ]
    assert (
        "24 pairs of prompt and seed from 12 prompts (prompts.txt), and 4 of control prompts, the "
        "same for every model." in html[0]
    )
    assert (
        "24 pairs of prompt and seed from 12 prompts (prompts.txt), the same for every model."
        in html[1]
    )


def test_runs_of_several_base_models_are_told(tmp_path: Path):
    runs = [write_run(tmp_path / "runs" / name) for name in ("a", "b")]
    assert "One base model, 2 alignments" in write_page(tmp_path / "runs").read_text()
    settings = yaml.safe_load((recipe := runs[1] / "run.yaml").read_text())
    recipe.write_text(
        yaml.safe_dump(settings | {"model": {**settings["model"], "path": "another"}})
    )
    assert "2 base models, 2 alignments" in write_page(tmp_path / "runs").read_text()


def test_two_models_are_a_duel(tmp_path: Path):
    html = write_page(
        write_comparison(tmp_path / "out", {"base": "Base model", "tuned": "Tuned"})
    ).read_text()
    assert (
        "Tuned against Base model" in html
        and 'class="duels"' in html
        and 'class="wins"' not in html
    )


def test_wins_are_mirrored(made: Path):
    matrix = next(
        each for each in win_matrices(read_comparison(made)) if each.metric.name == "photo_rate"
    )
    assert [model.key for model, _ in matrix.rows] == list(MODELS)
    for place, (_, cells) in enumerate(matrix.rows):
        assert cells[place] is None
        for other, cell in enumerate(cells):
            mirror = matrix.rows[other][1][place]
            assert (cell is None) == (other == place)
            assert cell is None or (
                mirror is not None
                and cell.share == pytest.approx(1 - mirror.share)
                and cell.p == mirror.p
            )
    better, worse = matrix.rows[2][1][0], matrix.rows[0][1][2]
    assert better and worse and (better.side, worse.side) == ("for", "against")


def test_what_a_model_was_trained_on_is_marked(made: Path):
    found = {
        panel.metric.name: {row.model.key: row.trained for row in panel.rows}
        for _, _, _, each in panels(read_comparison(made))
        for panel in each
    }
    assert found["score_world_reward"] == {"base": False, "direct_align": True, "srpo": True}
    assert not any(found["score_light"].values()) and set(found["base_rmse"]) == {
        "direct_align",
        "srpo",
    }


def test_the_plane_has_the_base_at_no_distance_from_itself(made: Path):
    found = model_scatter(read_comparison(made))
    assert found and (found.x.name, found.y.name) == ("photo_rate", "base_color_shift")
    assert all(label in found.charts["wide"] for label in ("Base model", "Direct-Align", "SRPO"))


def test_extremes_are_the_pairs_that_changed_most(made: Path):
    comparison = read_comparison(made)
    found = {each.model.key: each for each in extremes(comparison)}["srpo"]
    assert (
        [each.name for each in found.by] == ["photo_rate", "content"]
        and found.tie_break
        and found.tie_break.name == "score_light"
    )
    pairs = [
        (comparison.images["base"][index].numbers, comparison.images["srpo"][index].numbers)
        for index in range(24)
    ]
    gains = [
        sum(after[name] - before[name] for name in ("photo_rate", "content"))
        for before, after in pairs
    ]
    assert found.counts == (
        sum(g > 0 for g in gains),
        sum(g < 0 for g in gains),
        sum(g == 0 for g in gains),
    )
    best = max(
        range(24),
        key=lambda index: (
            gains[index],
            pairs[index][1]["score_light"] - pairs[index][0]["score_light"],
        ),
    )
    assert found.gained[0].files == (f"images/base/{best:05d}.png", f"images/srpo/{best:05d}.png")


def test_the_wall_takes_from_every_group_and_every_prompt(made: Path):
    comparison = read_comparison(made)
    found = gallery(comparison, 1_000_000)
    assert (
        found.groups == ["animation", "control_prompts"]
        and {row.prompt for row in found.rows} >= set(PROMPTS)
        and found.count == 28
    )
    assert any("are left out" in note for note in comparison.notes) == (len(found.rows) < 28)


def test_hostile_text_stays_text(folder: Path):
    told = json.loads((folder / "comparison.json").read_text())
    for model in told["models"]:
        model.update(
            label=HOSTILE,
            source=HOSTILE,
            kind=HOSTILE,
            settings={HOSTILE: HOSTILE, "seed": len(model["key"])},
        )
    rewrite(
        folder / "comparison.json",
        models=told["models"],
        command=HOSTILE,
        commit=HOSTILE,
        prompts={"source": HOSTILE, "count": 3},
    )
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    changed = [
        {
            **line,
            "prompt": HOSTILE,
            "seed": HOSTILE,
            "group": HOSTILE if line["index"] % 2 else "x",
            "numbers": {**line["numbers"], HOSTILE: 1.0},
        }
        for line in lines
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    names = json.loads((folder / "summary.json").read_text())["names"]
    rewrite(
        folder / "summary.json",
        names={name: {**each, "label": HOSTILE, "scale": HOSTILE} for name, each in names.items()},
    )
    html = write_page(folder).read_text()
    assert Tags(html).harmless() and html.count("<script") == 1 and "alert(&#34;2&#34;)" in html


def test_files_outside_are_not_embedded(folder: Path, tmp_path: Path):
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "secret.png")
    (folder / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    outside = [
        "../secret.png",
        str(tmp_path / "secret.png"),
        "images/link.png",
        "images/<script>.png",
    ]
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    changed = [
        {**line, "file": outside[line["index"]] if line["index"] < len(outside) else line["file"]}
        for line in lines
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    html = write_page(folder).read_text()
    assert (
        html.count("outside of the folder, not shown") == 3
        and "no image" in html
        and Tags(html).harmless()
    )


def test_an_unfinished_comparison(folder: Path):
    (folder / "summary.json").unlink()
    text = (folder / "results.jsonl").read_text()
    (folder / "results.jsonl").write_text(
        "\n".join(text.splitlines()[:50]) + '\n{"model": "srpo", "ind'
    )
    html = write_page(folder).read_text()
    assert (
        "summary.json: No such file" in html
        and "results.jsonl, line 51: truncated" in html
        and "Metrics" in html
        and "Win rates" not in html
    )


@pytest.mark.parametrize("torn", ["comparison.json", "summary.json", "results.jsonl"])
def test_torn_files_become_notes(folder: Path, torn: str):
    file = folder / torn
    file.write_text(file.read_text()[: file.stat().st_size // 2 + 3])
    html = write_page(folder).read_text()
    assert "truncated or not JSON" in html and Tags(html).harmless()


def test_records_of_other_shapes_do_no_harm(folder: Path):
    (folder / "comparison.json").write_text(
        json.dumps(
            {
                "format": 7,
                "models": [{"key": "base"}, {"label": "no key"}, 3],
                "prompts": [],
                "machine": 4,
            }
        )
    )
    (folder / "summary.json").write_text(
        json.dumps(
            {
                "names": {"photo_rate": 3},
                "models": {"base": {"photo_rate": "high"}},
                "wins": [3, {"a": 1, "name": "x"}],
            }
        )
    )
    with (folder / "results.jsonl").open("a") as stream:
        stream.write(
            '[1]\n{"model": "base"}\n{"model": "base", "index": 99, "numbers": 3, '
            '"file": null, "prompt": null, "group": 5}\n'
        )
    html = write_page(folder).read_text()
    assert "format 7" in html and html.count("not a record of an image") == 2


def test_nothing_at_all(tmp_path: Path):
    (tmp_path / "comparison.json").write_text("{}")
    assert "<h2>Notes</h2>" in write_page(tmp_path).read_text()


def test_the_page_stays_small_whatever_the_number_of_images(tmp_path: Path):
    """Five models, 100 prompts of 512 x 512 noise, which compresses worst."""
    folder = tmp_path / "out"
    models = {name: name.upper() for name in ("base", "a", "b", "c", "d")}
    write_comparison(
        folder,
        models,
        seeds_per_prompt=1,
        prompts=[f"prompt {place}" for place in range(100)],
        control_prompts=0,
    )
    noise = [Image.effect_noise((512, 512), 120) for _ in range(4)]
    for place in range(4):
        Image.merge("RGB", (noise[place], noise[place - 1], noise[place - 2])).save(
            tmp_path / f"{place}.png", compress_level=1
        )
    for place, file in enumerate(sorted((folder / "images").glob("*/*.png"))):
        file.unlink()
        file.hardlink_to(tmp_path / f"{place % 4}.png")
    page = write_page(folder)
    html = page.read_text()
    assert page.stat().st_size < LIMIT and Tags(html).count("img") > 100
    assert "Images of 81 of 100 pairs are left out" in html


def test_a_runs_page_shows_its_best_and_worst_prompts(tmp_path: Path):
    run = write_run(tmp_path / "run")
    assert "Best and worst prompts" not in write_page(run).read_text()
    write_comparison(run / "evaluation", {"base": "Base model", "tuned": "Tuned"})
    (run / "evaluation" / "images" / "tuned" / "00000.png").write_bytes(b"torn")
    html = write_page(run).read_text()
    assert "Best and worst prompts" in html and "Better on" in html and "Gained most" in html
