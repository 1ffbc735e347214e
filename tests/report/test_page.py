"""Pages of synthetic runs: complete, self-contained, escaped; missing files are listed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from page_tags import HOSTILE, LIMIT, Tags
from PIL import Image
from synthetic_run import PROMPTS, rate, write_demo, write_run

from directalign.report import NothingToReport, write_page
from directalign.report.images import cut_grid, data_uri
from directalign.report.read import read_run
from directalign.report.runs_page import matched


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    return write_demo(tmp_path / "demo")


def test_one_run(tmp_path: Path):
    file = write_page(write_run(tmp_path / "run"))
    html, tags = file.read_text(), Tags(file.read_text())
    assert file.name == "report.html" and len(html) < LIMIT
    assert tags.count("img") == 8 * 5 and all(prompt in html for prompt in PROMPTS)
    assert (
        "photo rate 20\u00a0% → 90\u00a0%" in html
        and f"directalign train {tmp_path}/run/run.yaml" in html
    )
    assert tags.count("figure") == 8 + 7 + 3 + 2 and "<h2>Notes</h2>" not in html


def test_runs_side_by_side(demo: Path):
    html = write_page(demo).read_text()
    tags = Tags(html)
    assert len(html) < LIMIT and tags.count("tr") == 1 + 5 + 2
    assert tags.count("img") == 3 * 8 + 2 * 7 * 3
    assert "Longer training" in html and "Official ramps, three times longer" in html
    assert (
        "At a photo rate of 45\u00a0%, which both reached" in html and "9.8 times as much" in html
    )


def test_nothing_is_fetched(demo: Path):
    for folder in (demo, demo / "srpo"):
        html = write_page(folder).read_text()
        addresses = [
            attrs.get(name) or ""
            for _, attrs in Tags(html).found
            for name in ("src", "href", "srcset", "data")
        ]
        assert all(
            not address or address.startswith("data:") or address.endswith("/report.html")
            for address in addresses
        )
        assert "url(" not in html and "@import" not in html and "default-src 'none'" in html


def test_pages_of_the_runs_are_linked_when_they_are_there(demo: Path):
    assert 'href="srpo/report.html"' not in write_page(demo).read_text()
    write_page(demo / "srpo")
    assert 'href="srpo/report.html"' in write_page(demo).read_text()


def test_hostile_text_stays_text(tmp_path: Path):
    plain = write_run(tmp_path / "plain")
    expected = Tags(write_page(plain).read_text())
    folder = write_run(tmp_path / "run", name=HOSTILE)
    (folder / "samples" / "samples.json").write_text(json.dumps({"prompts": [HOSTILE] * 8}))
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps({**summary, "commit": HOSTILE}))
    html = write_page(folder).read_text()
    tags = Tags(html)
    assert [tag for tag, _ in tags.found] == [tag for tag, _ in expected.found]
    assert not any("onerror" in attrs for _, attrs in tags.found) and html.count("<script") == 1


def test_hostile_runs_side_by_side(demo: Path):
    (demo / "srpo" / "run.yaml").write_text(json.dumps({"name": HOSTILE}))
    html = write_page(demo).read_text()
    assert html.count("<script") == 1 and not any(
        "onerror" in attrs for _, attrs in Tags(html).found
    )


def test_runs_of_one_name_are_called_by_their_folders(tmp_path: Path):
    for name in ("free", "stopped"):
        write_run(tmp_path / name, "SRPO")
    write_run(tmp_path / "other", "ReFL")
    page = write_page(tmp_path).read_text(encoding="utf-8")
    assert (
        "<h3>free" in page
        and "<h3>stopped" in page
        and "<h3>ReFL" in page
        and "<h3>SRPO" not in page
    )


def test_a_run_that_has_just_begun(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(
        '{"event": "step", "step": 1, "loss": 0.5}\n{"event": "st'
    )
    html = write_page(folder).read_text()
    assert "Not evaluated before and after" in html and "<h2>Notes</h2>" in html
    for note in (
        "run.yaml: No such file",
        "line 2: truncated",
        "No sample grids",
        "summary.json: No such file",
    ):
        assert note in html


def test_a_broken_grid_is_noted(tmp_path: Path):
    folder = write_run(tmp_path / "run")
    (folder / "samples" / "step-000005.png").write_bytes(b"\x89PNG broken")
    assert "samples/step-000005.png: not readable as an image" in write_page(folder).read_text()


def test_what_is_no_run_is_refused(tmp_path: Path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(NothingToReport, match="holds no run"):
            write_page(folder)


def test_comparison_is_not_made_where_it_cannot_be(demo: Path):
    shutil.rmtree(demo / "direct_align")
    write_run(demo / "direct_align", "Never moved", final_photo=0.2)
    assert "reach no common photo rate" in write_page(demo).read_text()


def test_matched_reads_off_straight_lines(demo: Path):
    found = matched([read_run(demo / "srpo"), read_run(demo / "direct_align")])
    assert found and found.photo_rate == pytest.approx(0.45)
    (_, drift, _, step), (_, other, _, last) = found.rows
    assert (
        step == pytest.approx(20 * 0.25 / 0.7)
        and drift == pytest.approx(0.02 + 0.03 * step / 20)
        and (other, last) == (pytest.approx(0.3), 20)
    )


def test_summary_outranks_the_curves(demo: Path):
    summary = json.loads((demo / "summary.json").read_text())
    (demo / "summary.json").write_text(
        json.dumps({**summary, "srpo": {**summary["srpo"], "photo_rate": rate(0.77)}})
    )
    assert re.search(r"77\u00a0%<small>72–81", write_page(demo).read_text())


def test_grids_are_cut_into_their_cells(tmp_path: Path):
    grid = Image.new("RGB", (64, 32), "white")
    for place in range(6):
        grid.paste(
            (10 * place, 0, 0),
            (place % 4 * 16, place // 4 * 16, place % 4 * 16 + 16, place // 4 * 16 + 16),
        )
    grid.save(tmp_path / "grid.png")
    for count in (0, 6):
        found = cut_grid(tmp_path / "grid.png", count)
        assert [image.getpixel((3, 3))[0] for image in found] == [0, 10, 20, 30, 40, 50] and found[
            0
        ].size == (16, 16)


def test_large_images_become_small_ones():
    noise = Image.effect_noise((1024, 768), 90).convert("RGB")
    assert len(data_uri(noise)) < 120_000
