"""Embedded images: small enough together, none from outside the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from directalign.report.images import data_uri, embed, fitted
from directalign.report.read import inside


def noise(edge: int) -> Image.Image:
    return Image.effect_noise((edge, edge), 90).convert("RGB")


def test_small_pictures_are_kept_to_the_pixel(tmp_path: Path):
    picture = noise(64)
    picture.save(tmp_path / "a.png")
    found = embed(tmp_path, ["a.png"], notes := [])
    assert found.pixelated and not notes and found["a.png"] == data_uri(picture)


def test_large_ones_are_reduced_until_all_fit():
    pictures = [noise(512) for _ in range(6)]
    whole = fitted(pictures)
    half = fitted(pictures, sum(map(len, whole)) // 2)
    assert len(half) == 6 and sum(map(len, half)) <= sum(map(len, whole)) // 2


def test_what_is_shown_twice_counts_twice():
    picture = noise(512)
    (once,) = fitted([picture], 100_000)
    (twice,) = fitted([picture], 100_000, [2])
    assert len(twice) < len(once) and 2 * len(twice) <= 100_000


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "/etc/passwd",
        "a/../../secret.png",
        "..\\secret.png",
        "",
        "nul\0.png",
        "link.png",
        "linked/secret.png",
    ],
)
def test_nothing_from_outside(tmp_path: Path, name: str):
    folder = tmp_path / "run"
    folder.mkdir()
    noise(16).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "linked").symlink_to(tmp_path, target_is_directory=True)
    assert inside(folder, name) is None
    found = embed(folder, [name], notes := [])
    assert name not in found and len(notes) == 1 and "outside of the folder" in notes[0]


def test_a_link_inside_the_folder_is_followed(tmp_path: Path):
    noise(16).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    assert "b.png" in embed(tmp_path, ["b.png"], [])


def test_what_is_no_picture_is_noted(tmp_path: Path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "page.svg").write_text("<svg onload='alert(1)'/>")
    (tmp_path / "folder.png").mkdir()
    noise(64).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:300])
    names = ["torn.png", "page.svg", "folder.png", "cut.png", "missing.png"]
    found = embed(tmp_path, names, notes := [])
    assert (
        not found.uris
        and len(notes) == 5
        and all("not readable as an image" in note for note in notes)
    )


def test_a_picture_that_unpacks_to_far_too_much_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    noise(64).save(tmp_path / "bomb.png")
    embed(tmp_path, ["bomb.png"], notes := [])
    assert notes == ["bomb.png: not readable as an image (DecompressionBombError), left out."]
