"""Embedded images: small enough in total, none from outside the folder; grids and their cells."""

from PIL import Image

from directalign.report.images import cut_grid, data_uri, embed, fitted
from directalign.report.read import inside


def noise(edge: int) -> Image.Image:
    return Image.effect_noise((edge, edge), 90).convert("RGB")


def test_small_images_are_lossless_and_large_ones_are_reduced_until_all_fit(tmp_path):
    image = noise(64)
    image.save(tmp_path / "a.png")
    found = embed(tmp_path, ["a.png"], notes := [])
    assert found.pixelated and not notes and found.uris["a.png"] == data_uri(image)
    assert len(data_uri(noise(1024))) < 120_000
    images = [noise(512) for _ in range(3)]
    whole = sum(map(len, fitted(images)))
    half = fitted(images, whole // 2)
    assert len(half) == 3 and sum(map(len, half)) <= whole // 2
    (twice,) = fitted(images[:1], 100_000, [2])  # used twice, counted twice
    assert 2 * len(twice) <= 100_000 < 2 * len(fitted(images[:1], 100_000)[0])


OUTSIDE = ["../secret.png", "/etc/passwd", "a/../../secret.png", "..\\secret.png", "", "nul\0.png"]


def test_only_files_inside_the_folder_are_read(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    noise(16).save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "linked").symlink_to(tmp_path, target_is_directory=True)
    for name in (*OUTSIDE, "link.png", "linked/secret.png"):
        assert inside(folder, name) is None
        found = embed(folder, [name], notes := [])
        assert name not in found.uris and len(notes) == 1 and "outside of the folder" in notes[0]
    noise(16).save(folder / "a.png")
    (folder / "b.png").symlink_to(folder / "a.png")
    assert "b.png" in embed(folder, ["b.png"], []).uris


def test_files_that_are_no_image_become_notes(tmp_path, monkeypatch):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "page.svg").write_text("<svg onload='alert(1)'/>")
    (tmp_path / "folder.png").mkdir()
    noise(64).save(tmp_path / "bomb.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "bomb.png").read_bytes()[:300])
    names = ["torn.png", "page.svg", "folder.png", "cut.png", "missing.png"]
    found = embed(tmp_path, names, notes := [])
    assert not found.uris and len(notes) == 5
    assert all("not readable as an image" in note for note in notes)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    embed(tmp_path, ["bomb.png"], notes := [])
    assert notes == ["bomb.png: not readable as an image (DecompressionBombError), left out."]


def test_a_grid_is_cut_into_its_cells(tmp_path):
    grid = Image.new("RGB", (64, 32), "white")
    for place in range(6):
        x, y = place % 4 * 16, place // 4 * 16
        grid.paste((10 * place, 0, 0), (x, y, x + 16, y + 16))
    grid.save(tmp_path / "grid.png")
    for count in (0, 6):
        found = cut_grid(tmp_path / "grid.png", count)
        assert [image.getpixel((3, 3))[0] for image in found] == [0, 10, 20, 30, 40, 50]
        assert found[0].size == (16, 16)
