"""Hostile sources are refused with file and line before the arena starts."""

from __future__ import annotations

import json
import logging
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from arena_runs import write_comparison, write_rows
from fastapi.testclient import TestClient
from PIL import Image

from directalign.arena.records import ArenaError
from directalign.arena.security import new_secret
from directalign.arena.server import allowed_hosts, create_app
from directalign.arena.session import open_arena
from directalign.arena.sources import read_sources


def spoiled(folder: Path, file: str) -> Path:
    source = write_comparison(folder / "source", ["a prompt"])
    Image.new("RGB", (24, 24)).save(folder / "outside.png")
    (source / "link.png").symlink_to(folder / "outside.png")
    (source / "out").symlink_to(folder)
    rows = [json.loads(line) for line in (source / "results.jsonl").read_text().splitlines()]
    write_rows(
        source / "results.jsonl",
        [{**rows[0], "file": file.replace("FOLDER", str(folder))}, *rows[1:]],
    )
    return source


@pytest.mark.parametrize(
    "file",
    [
        "../outside.png",
        "images/../../outside.png",
        "FOLDER/outside.png",
        "link.png",
        "out/outside.png",
        "\0",
        "",
        "images",
    ],
)
def test_a_record_that_leads_out_of_its_folder_is_refused_by_name(tmp_path: Path, file: str):
    with pytest.raises(ArenaError, match=r"results.jsonl:1: "):
        read_sources([spoiled(tmp_path, file)])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": 7}, "a text and an integer"),
        ({"prompt": "another"}, "compare images of one prompt"),
        ({"model": "stranger"}, "is not in comparison.json"),
        ({"file": "images/nothing.png"}, "does not exist"),
        ({"prompt": "\ud800"}, "not JSON"),
        ({"seed": True}, "a text and an integer"),
        ({"seed": 2**63}, "a text and an integer"),
        ({"index": True}, "index True is not"),
        ({"index": 2**70}, "is not in comparison.json"),
        ({"index": float("nan")}, "index nan is not"),
    ],
)
def test_a_wrong_record_is_refused_by_name(tmp_path: Path, change: dict, said: str):
    source = write_comparison(tmp_path / "source", ["a prompt"])
    rows = [json.loads(line) for line in (source / "results.jsonl").read_text().splitlines()]
    write_rows(source / "results.jsonl", [{**rows[0], **change}, *rows[1:]])
    with pytest.raises(ArenaError, match=said):
        read_sources([source])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.jsonl", b'{"model": "\xff"}\n'),
        ("results.jsonl", b"[" * 100_000 + b"\n"),
        ("results.jsonl", b'{"index": ' + b"9" * 5000 + b"}\n"),
        ("comparison.json", b'{"format": "\xff"}'),
        ("comparison.json", b'{"format": 1}'),
        ("comparison.json", b'{"format": 1, "models": 5}'),
        ("comparison.json", b'{"format": 1, "models": [5, {"key": "x"}]}'),
        ("comparison.json", b'{"format": 1, "models": [{"key": ["x"]}]}'),
    ],
)
def test_a_broken_file_is_refused_by_name(tmp_path: Path, name: str, content: bytes):
    source = write_comparison(tmp_path / "source", ["a prompt"])
    (source / name).write_bytes(content)
    with pytest.raises(ArenaError, match=name):
        read_sources([source])


def save_moving(file: Path) -> None:
    frames = [Image.new("RGB", (24, 24), (shade, 0, 0)) for shade in (9, 90, 200)]
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])


def save_bomb(file: Path) -> None:
    """A PNG of a few hundred bytes that says it has 10000 x 10000 pixels."""
    Image.new("RGB", (24, 24)).save(file)
    content = bytearray(file.read_bytes())
    head = b"IHDR" + struct.pack(">II", 10_000, 10_000) + content[24:29]
    content[12:33] = head + struct.pack(">I", zlib.crc32(head))
    file.write_bytes(content)


def save_half(file: Path) -> None:
    Image.effect_noise((64, 64), 90).save(file, "JPEG")
    file.write_bytes(file.read_bytes()[:1500])


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("save", "said"),
    [
        (lambda file: file.write_bytes(b""), "not a PNG, JPEG, WEBP image"),
        (
            lambda file: file.write_bytes(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
            "not a PNG, JPEG, WEBP image",
        ),
        (lambda file: Image.new("RGB", (24, 24)).save(file, "GIF"), "not a PNG, JPEG, WEBP image"),
        (
            lambda file: Image.new("RGB", (24, 24)).save(file, "EPS"),
            "not a PNG, JPEG, WEBP image",
        ),  # Pillow would call Ghostscript
        (save_half, "not a readable image"),
        (save_moving, "has 3 frames"),
        (save_bomb, "is 10000 x 10000"),
        (lambda file: Image.new("I;16", (24, 24), 40_000).save(file, "PNG"), "more than 8 bits"),
    ],
)
def test_a_file_that_is_no_plain_image_is_refused_by_name(
    tmp_path: Path, save: Callable[[Path], object], said: str
):
    source = write_comparison(tmp_path / "source", ["a prompt"])
    save(source / "images" / "SECRETMODEL-b" / "SECRETFILE-00000.png")
    with pytest.raises(ArenaError, match=f"SECRETMODEL-b/SECRETFILE-00000.png: .*({said})"):
        open_arena(tmp_path / "a.sqlite", [source])


def test_an_image_that_goes_bad_later_names_no_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    source = write_comparison(tmp_path / "source", ["a prompt"])
    arena = open_arena(tmp_path / "a.sqlite", [source])
    client = TestClient(
        create_app(arena, allowed_hosts(None), invitation=False, closed=False),
        base_url="http://localhost",
    )
    link = arena.signer.link(arena.join("Ann", new_secret()))
    image = arena.state(arena.annotator(link))["next"][0]["images"][0]
    client.get(f"/me/{link}")
    shutil.rmtree(source / "images")
    with caplog.at_level(logging.WARNING):
        answer = client.get(f"/image/{image}")
    assert answer.status_code == 503 and "SECRET" not in answer.text and "source" not in answer.text
    assert [
        record.levelname for record in caplog.records if record.name == "directalign.arena"
    ] == ["ERROR", "WARNING"]
    assert "SECRETFILE-00000.png" in caplog.text and "Traceback" not in caplog.text


def test_images_that_would_give_a_model_away_are_refused_or_made_alike(tmp_path: Path):
    source = write_comparison(tmp_path / "source", ["a prompt"])
    image = source / "images" / "SECRETMODEL-a" / "SECRETFILE-00000.png"
    Image.new("RGB", (48, 48), (9, 9, 9)).save(image)
    arena = open_arena(tmp_path / "a.sqlite", [source])
    task = arena.state(arena.join("Ann", new_secret()))["next"][0]
    assert (task["width"], task["height"]) == (24, 24)
    Image.new("RGB", (48, 24)).save(image)
    with pytest.raises(ArenaError, match="is 48 x 24, another model's image 24 x 24"):
        open_arena(tmp_path / "b.sqlite", [source])


def test_folders_of_samples_are_paired_by_prompt_and_seed(tmp_path: Path):
    for name, seeds in (("one", (1, 2, 3)), ("two", (3, 1))):
        (tmp_path / name).mkdir()
        for seed in seeds:
            Image.new("RGB", (8, 8), (seed, 0, 0)).save(tmp_path / name / f"{seed}.png")
        write_rows(
            tmp_path / name / "images.jsonl",
            [
                {"file": f"{seed}.png", "prompt": "a prompt", "seed": seed, "diffusers": {}}
                for seed in seeds
            ],
        )
    found = read_sources([tmp_path / "one", tmp_path / "two"])
    assert found.models == {"one": "one", "two": "two"}
    assert [
        (item.seed, item.files["one"].name, item.files["two"].name) for item in found.items.values()
    ] == [(1, "1.png", "1.png"), (3, "3.png", "3.png")]
    for sources, said in (
        ([], "no source"),
        ([tmp_path / "one"], "no comparison.json"),
        ([tmp_path / "one"] * 2, "given twice"),
    ):
        with pytest.raises(ArenaError, match=said):
            read_sources(sources)
