"""Hostile sources are refused with file and line before the arena starts."""

import io
import json
import struct
import zlib
from pathlib import Path

import pytest
from arena_servers import served, write_comparison, write_rows
from PIL import Image

import comparison_folders
from directalign.arena import sources
from directalign.arena.records import ArenaError
from directalign.arena.session import new_secret, open_arena
from directalign.arena.sources import read_sources


@pytest.fixture
def one(tmp_path):
    """A comparison of two models on one prompt."""
    return write_comparison(tmp_path / "source", ["a prompt"])


def change_first(source: Path, **changes: object) -> None:
    """Change the first record of results.jsonl."""
    file = source / "results.jsonl"
    first, *rest = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    write_rows(file, [{**first, **changes}, *rest])


def test_a_record_cannot_lead_out_of_its_folder(one, tmp_path):
    outside = tmp_path / "outside.png"
    Image.new("RGB", (24, 24)).save(outside)
    (one / "link.png").symlink_to(outside)
    (one / "out").symlink_to(tmp_path)
    files = ["../outside.png", "images/../../outside.png", str(outside), "link.png"]
    for file in (*files, "out/outside.png", "\0", "", "images"):
        change_first(one, file=file)
        with pytest.raises(ArenaError, match=r"results.jsonl:1: "):
            read_sources([one])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": 7}, ":1: prompt is 7: .*valid string"),
        ({"prompt": "another"}, "compare images of one prompt"),
        ({"model": "stranger"}, "is not in comparison.json"),
        ({"file": "images/nothing.png"}, "does not exist"),
        ({"seed": True}, "seed is True: .*valid integer"),
    ],
)
def test_a_wrong_record_is_refused_by_name(one, change, message):
    change_first(one, **change)
    with pytest.raises(ArenaError, match=f"results.jsonl.*{message}"):
        read_sources([one])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("results.jsonl", b'{"model": "\xff"}\n'),
        ("comparison.json", b'{"format": "\xff"}'),
        ("comparison.json", b'{"format": 2, "models": []}'),
        ("comparison.json", b'{"format": 1, "models": [{"key": ["x"]}]}'),
    ],
)
def test_a_broken_file_is_refused_by_name(one, name, content):
    (one / name).write_bytes(content)
    with pytest.raises(ArenaError, match=name):
        read_sources([one])


def save_animation(file: Path) -> None:
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
    ("save", "message"),
    [
        (lambda file: file.write_bytes(b"<svg xmlns='http://www.w3.org/'/>"), "not a PNG, JPEG"),
        # Pillow would call Ghostscript
        (lambda file: Image.new("RGB", (24, 24)).save(file, "EPS"), "not a PNG, JPEG, WEBP image"),
        (save_half, "not a readable image"),
        (save_animation, "has 3 frames"),
        (save_bomb, "is 10000 x 10000"),
        (lambda file: Image.new("I;16", (24, 24), 40_000).save(file, "PNG"), "more than 8 bits"),
    ],
)
def test_a_file_that_is_no_plain_image_is_refused_by_name(one, tmp_path, save, message):
    save(one / "images" / "SECRETMODEL-b" / "SECRETFILE-00000.png")
    with pytest.raises(ArenaError, match=f"SECRETMODEL-b/SECRETFILE-00000.png: .*({message})"):
        open_arena(tmp_path / "a.sqlite", [one])


def remove(file: Path, other: Path) -> None:
    file.unlink()


def replace(file: Path, other: Path) -> None:
    file.write_bytes(other.read_bytes())


def link(file: Path, other: Path) -> None:
    """A symbolic link to the same content."""
    other.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(other)


@pytest.mark.parametrize("change", [remove, replace, link])
def test_an_image_that_changes_later_is_not_served(tmp_path, change):
    """Its tasks are set aside; the error names a model only in the log."""
    source = write_comparison(tmp_path / "source", [f"prompt {index}" for index in range(7)])
    other = tmp_path / "other.png"
    Image.new("RGB", (24, 24), (255, 0, 255)).save(other)
    with served(source, tmp_path / "a.sqlite") as server, server.joined("Ann") as client:
        task = client.get("/api/state").json()["next"][0]
        index = int(task["prompt"].split()[-1])
        change(source / f"images/SECRETMODEL-a/SECRETFILE-{index:05d}.png", other)
        answers = [client.get(f"/image/{token}") for token in task["images"]]
        assert sorted(answer.status_code for answer in answers) == [200, 503]
        refused = max(answers, key=lambda answer: answer.status_code)
        assert "SECRET" not in refused.text and "source" not in refused.text
        state = client.get("/api/state").json()
        assert state["total"] == 6 and len(state["next"]) == 5
        assert task["task"] not in [each["task"] for each in state["next"]]
    error, refusal = server.log
    assert f"SECRETFILE-{index:05d}.png" in error and "refused 503" in refusal


def test_transparent_images_are_shown_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    cache = sources.ImageCache({"clear": (tmp_path / "clear.png", (4, 4))})
    shown = Image.open(io.BytesIO(cache.png("clear") or b""))
    assert shown.getpixel((0, 0)) == (255, 255, 255)


def test_sizes_that_would_reveal_a_model_are_refused_or_made_equal(one, tmp_path):
    image = one / "images" / "SECRETMODEL-a" / "SECRETFILE-00000.png"
    Image.new("RGB", (48, 48), (9, 9, 9)).save(image)
    arena = open_arena(tmp_path / "a.sqlite", [one])
    task = arena.state(arena.join("Ann", new_secret()))["next"][0]
    assert (task["width"], task["height"]) == (24, 24)
    Image.new("RGB", (48, 24)).save(image)
    with pytest.raises(ArenaError, match="is 48 x 24, another model's image 24 x 24"):
        open_arena(tmp_path / "b.sqlite", [one])


def test_folders_of_samples_are_paired_by_prompt_and_seed(tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, seeds in zip(folders, ((1, 2, 3), (3, 1)), strict=True):
        folder.mkdir()
        for seed in seeds:
            Image.new("RGB", (8, 8), (seed, 0, 0)).save(folder / f"{seed}.png")
        rows = [{"file": f"{seed}.png", "prompt": "a prompt", "seed": seed} for seed in seeds]
        write_rows(folder / "images.jsonl", [row | {"diffusers": {}} for row in rows])
    found = read_sources(folders)
    assert found.models == {"one": "one", "two": "two"} and found.left_out == 1
    files = [
        (item.seed, *(item.files[key].name for key in found.models))
        for item in found.items.values()
    ]
    assert files == [(1, "1.png", "1.png"), (3, "3.png", "3.png")]
    (tmp_path / "link").symlink_to(folders[0])
    for given, message in (
        ([], "no source"),
        (folders[:1], "no comparison.json"),
        (folders[:1] * 2, "given twice"),
        ([folders[0], tmp_path / "link"], "given twice"),
    ):
        with pytest.raises(ArenaError, match=message):
            read_sources(given)


def test_control_prompts_and_incomplete_items_are_left_out(tmp_path):
    prompts = comparison_folders.PROMPTS[:3]
    source = comparison_folders.write_comparison(
        tmp_path / "source", prompts=prompts, control_prompts=2, size=32
    )
    found = read_sources([source])
    assert len(found.items) == 6 and found.left_out == 0
    assert not any(item.prompt.startswith("Anime") for item in found.items.values())
    source = write_comparison(tmp_path / "incomplete", ["one", "two", "three"])
    lines = (source / "results.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (source / "results.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    found = read_sources([source])
    assert (len(found.items), found.left_out) == (2, 1)
