"""Offline images: every encoding arrives upright, in RGB and in range; broken files are named."""

import json
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from skimage import data
from typer.testing import CliRunner

from directalign.cli import app
from directalign.data.image_dataset import scan_images
from directalign.data.image_io import load_image
from directalign.types import DirectAlignError

datasets = pytest.importorskip("datasets", reason="datasets are an extra: directalign[data]")

CAT = Image.fromarray(data.chelsea()).resize((90, 60))


def save(image: Image.Image, file: Path, caption: str | None = "a cat", **options: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)
    if caption is not None:
        file.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return file


def test_a_photograph_keeps_its_pixels(tmp_path):
    image = load_image(save(CAT, tmp_path / "cat.png"), 60, 90)
    assert image.dtype == torch.float32 and image.shape == (3, 60, 90)
    true = torch.from_numpy(np.asarray(CAT) / 255).float()
    assert torch.allclose(image.permute(1, 2, 0), true, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(48, 16), (120, 120)])
def test_the_centre_is_cut_out(tmp_path, height, width):
    target = np.zeros((60, 90, 3), np.uint8)
    target[25:35, 40:50] = 255
    image = load_image(save(Image.fromarray(target), tmp_path / "target.png"), height, width)
    assert image.shape == (3, height, width) and image.min() >= 0 and image.max() <= 1
    assert image[:, height // 2, width // 2].min() > 0.9 and torch.allclose(
        image, image.flip(1), atol=0.1
    )


def test_stripes_finer_than_the_target_become_grey(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    image = load_image(save(Image.fromarray(stripes), tmp_path / "stripes.png"), 16, 16)
    assert (image[:, :, 2:-2] - 0.5).abs().max() < 0.01


def test_orientation_of_the_camera_is_undone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 270 degrees
    turned = load_image(save(CAT, tmp_path / "turned.png", exif=exif), 90, 60)
    upright = load_image(save(CAT.rotate(270, expand=True), tmp_path / "upright.png"), 90, 60)
    assert torch.equal(turned, upright)


def test_what_is_transparent_is_white(tmp_path):
    clear = CAT.copy()
    clear.putalpha(0)
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    palette = Image.new("P", (8, 8), 3)
    assert load_image(save(clear, tmp_path / "clear.png"), 32, 32).min() > 0.9999
    grey = load_image(save(half, tmp_path / "half.png"), 8, 8).mean()
    assert grey == pytest.approx(127 / 255, abs=0.01)
    assert load_image(save(palette, tmp_path / "palette.gif", transparency=3), 8, 8).min() == 1


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "LA"])
def test_every_mode_becomes_three_channels(tmp_path, mode):
    # Pillow 12 cannot read back the plain YCbCr that it writes
    packed = {"compression": "tiff_lzw"} if mode == "YCbCr" else {}
    file = tmp_path / ("cat.png" if mode in ("1", "P", "RGBA", "LA") else "cat.tif")
    image = load_image(save(CAT.convert(mode), file, **packed), 60, 90)
    true = torch.from_numpy(np.asarray(CAT) / 255).float().permute(2, 0, 1)
    tones = [F.avg_pool2d(each.mean(0, keepdim=True), 10) for each in (image, true)]
    assert image.shape == (3, 60, 90) and (tones[0] - tones[1]).abs().max() < 0.08


@pytest.mark.parametrize("ending", [".png", ".pgm", ".tif"])
def test_16_bits_keep_their_finest_steps(tmp_path, ending):
    grey = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    image = load_image(save(Image.fromarray(grey), tmp_path / f"grey{ending}"), 8, 8)
    assert torch.allclose(image[0], torch.from_numpy(grey / 65535).float(), atol=1e-6)


@pytest.fixture
def mixed(tmp_path):
    save(CAT, tmp_path / "b.jpg")
    save(CAT, tmp_path / "deep" / "a.png", caption=" a deep cat\n")
    save(CAT, tmp_path / "uncaptioned.png", caption=None)
    save(CAT, tmp_path / "blank.png", caption=" \n")
    save(CAT, tmp_path / "cut.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:900])
    save(CAT, tmp_path / "empty.png").write_bytes(b"")
    save(CAT, tmp_path / "text.webp").write_bytes(b"not an image")
    save(CAT, tmp_path / "phone.png").rename(tmp_path / "phone.heic")
    (tmp_path / "phone.heic").write_bytes(b"ftypheic")
    save(Image.fromarray(np.ones((4, 4), np.float32)), tmp_path / "float.tif")
    save(Image.fromarray(np.full((4, 4), 70_000, np.int32)), tmp_path / "int.tif")
    (tmp_path / "._b.jpg").write_bytes(b"left by another system")
    return tmp_path


def test_unusable_images_are_skipped_by_name_or_refused_if_strict(mixed):
    found = scan_images(mixed)
    assert found.names == ("b.jpg", "deep/a.png") and found.sizes == ((60, 90), (60, 90))
    assert found.captions == ("a cat", "a deep cat")
    reasons = dict(line.split(": ", 1) for line in found.skipped)
    unusable = "blank.png cut.jpg empty.png float.tif int.tif phone.heic text.webp uncaptioned.png"
    assert sorted(reasons) == unusable.split()
    assert "truncated" in reasons["cut.jpg"] and "0 bytes" in reasons["empty.png"]
    assert "uncaptioned.txt is missing" in reasons["uncaptioned.png"]
    with pytest.raises(DirectAlignError, match=r"blank\.png: no caption.*data\.strict: false"):
        scan_images(mixed, strict=True)
    (mixed / "b.jpg").write_bytes(b"")
    with pytest.raises(DirectAlignError, match=r"b\.jpg: empty file"):
        found.image(0, 32, 32)


def test_a_name_that_is_not_unicode_is_skipped(tmp_path):
    save(CAT, tmp_path / "a.png")
    save(CAT, tmp_path / "caf\udce9.png")
    found = scan_images(tmp_path)
    assert found.names == ("a.png",)
    assert found.skipped == ("caf?.png: its name is not Unicode; rename it",)


def test_links_are_followed_once_and_hidden_folders_stay_out(tmp_path):
    folder, far = tmp_path / "set", tmp_path / "far"
    for name in ("set/c.png", "set/.ipynb_checkpoints/c.png", "set/z/d.png", "far/deep/a.png"):
        save(CAT, tmp_path / name)
    save(CAT, far / "X.JPG").with_suffix(".txt").rename(far / "X.TXT")
    for link, target in (("set/to", far), ("set/again", far), ("set/a", folder / "z")):
        (tmp_path / link).symlink_to(target)
    (far / "loop").symlink_to(far)
    (far / "up").symlink_to(folder)
    found = scan_images(folder)
    assert found.names == ("again/X.JPG", "again/deep/a.png", "c.png", "z/d.png")
    assert found.skipped == ()


def test_a_caption_too_long_is_skipped_by_name(tmp_path):
    save(CAT, tmp_path / "a.png")
    save(CAT, tmp_path / "b.png", "x" * 2001)
    found = scan_images(tmp_path)
    assert found.names == ("a.png",) and "b.txt: prompt of 2,001 char" in found.skipped[0]
    with pytest.raises(DirectAlignError, match=r"b\.txt: prompt of 2,001 characters"):
        scan_images(tmp_path, strict=True)


def swapped_profile() -> bytes:
    """A profile with swapped red and green primaries."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ", 128), profile.index(b"gXYZ", 128)
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    description = profile.index("sRGB".encode("utf-16-be"))
    profile[description : description + 8] = "wide".encode("utf-16-be")
    return bytes(profile)


def grey_profile(gamma: float) -> bytes:
    """A profile of grey pictures: white point and tone curve."""
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma)) + b"\0\0"
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", 156, len(white), b"kTRC", 176, len(curve))
    body = tags.ljust(28, b"\0") + white + curve
    head = struct.pack(
        ">I4sI4s4s4s", 128 + len(body), b"lcms", 0x02100000, b"mntr", b"GRAY", b"XYZ "
    )
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + body


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_profiles_of_grey_pictures_are_converted(tmp_path, mode):
    file = save(
        Image.new("L", (8, 8), 128).convert(mode), tmp_path / "a.png", icc_profile=grey_profile(1.0)
    )
    assert load_image(file, 8, 8).mean().item() == pytest.approx(188 / 255, abs=0.01)


def test_a_profile_that_does_not_fit_is_ignored_with_one_warning(tmp_path, caplog):
    for name in ("a.jpg", "b.jpg"):
        file = save(Image.new("CMYK", (8, 8)), tmp_path / name, icc_profile=grey_profile(1.0))
        assert load_image(file, 8, 8).mean() == 1
    assert caplog.text.count("read as sRGB") == 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_profiles_are_converted_to_srgb(tmp_path, mode):
    swapped = save(CAT.convert(mode), tmp_path / "a.png", icc_profile=swapped_profile())
    plain = save(CAT.convert(mode), tmp_path / "b.png")
    found, expected = load_image(swapped, 60, 90), load_image(plain, 60, 90)
    assert (found - expected[[1, 0, 2]]).abs().max() < 0.02
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for icc in (srgb, b"broken"):
        same = save(CAT.convert(mode), tmp_path / "c.png", icc_profile=icc)
        assert torch.equal(load_image(same, 60, 90), expected)


def test_pillows_warnings_stay_inside(tmp_path, recwarn):
    palette = Image.new("P", (8, 8), 3)
    file = save(palette, tmp_path / "a.png", transparency=b"\0\1\2\3")
    cut = save(CAT, tmp_path / "a.tif")
    cut.write_bytes(cut.read_bytes()[:-40])
    load_image(file, 8, 8)
    scan_images(tmp_path)
    assert [str(each.message) for each in recwarn] == []


def test_metadata_names_images_and_captions(tmp_path):
    save(CAT, tmp_path / "one.png", caption="ignored")
    rows = [{"file_name": "one.png", "text": "first"}, {"file_name": "gone.png", "prompt": "b"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    save(CAT, tmp_path / "two.png", caption="b")
    found = scan_images(tmp_path)
    skipped = ("gone.png: no such file", "two.png: not in metadata.jsonl")
    assert found.captions == ("first",) and found.skipped == skipped


def test_samples_are_a_folder_of_images(tmp_path):
    """The list that `directalign sample` writes."""
    out = tmp_path / "base"
    given = ["sample", "world:flux", "--prompt", "a red star", "--prompt", "a blue ring"]
    given += ["--num-inference-steps", "1", "--seed", "3", "--out", str(out)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    found = scan_images(out)
    assert found.captions == ("a red star", "a blue ring") and not found.skipped


METADATA = '{"file_name": "a.png", "text": "a"}\n{"text": "b"}'
BROKEN = {
    r"metadata\.jsonl:2: file_name is None": lambda d: (d / "metadata.jsonl").write_text(METADATA),
    "no usable image: all 1 were skipped, first a.png": lambda d: save(CAT, d / "a.png", None),
    "no such image folder": lambda d: d.rmdir(),
}


@pytest.mark.parametrize("complaint", BROKEN)
def test_a_broken_set_is_refused(tmp_path, complaint):
    BROKEN[complaint](tmp_path)
    with pytest.raises(DirectAlignError, match=complaint) as raised:
        scan_images(tmp_path)
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.integers(0, 10_000),
    byte=st.integers(0, 255),
    ending=st.sampled_from([".jpg", ".png", ".webp", ".tif", ".gif"]),
)
def test_no_flipped_byte_escapes_the_scan(tmp_path, place, byte, ending):
    whole = tmp_path / "whole" / f"cat{ending}"
    content = bytearray((whole if whole.exists() else save(CAT, whole)).read_bytes())
    content[place % len(content)] = byte
    save(CAT, tmp_path / "set" / "good.png")
    (tmp_path / "set" / f"spoilt{ending}").write_bytes(bytes(content[: place + 1]))
    (tmp_path / "set" / "spoilt.txt").write_text("a cat")
    found = scan_images(tmp_path / "set")
    assert found.captions[0] == "a cat" and all(
        found.image(i, 8, 8).isfinite().all() for i in range(len(found))
    )


# --- datasets ---


def encoded(image: Image.Image, ending: str = "png", **options: object) -> dict[str, object]:
    """A cell as a column of images stores it."""
    held = BytesIO()
    image.save(held, ending, **options)
    return {"bytes": held.getvalue(), "path": None}


def save_dataset(
    folder: Path, columns: dict[str, list[object]], images: tuple[str, ...] = ("image",)
) -> str:
    table = datasets.Dataset.from_dict(columns)
    for name in images:
        table = table.cast_column(name, datasets.Image())
    table.save_to_disk(folder)
    return f"hf:{folder}"


@pytest.fixture
def mixed_dataset(tmp_path):
    cut = encoded(CAT, "jpeg")
    cut["bytes"] = bytes(cut["bytes"])[:900]
    exif = Image.Exif()
    exif[0x0112] = 6
    beside = {"bytes": None, "path": str(save(CAT, tmp_path / "beside.png"))}
    cells = [encoded(CAT), cut, None, encoded(CAT, exif=exif), encoded(CAT), beside]
    texts = ["a cat", "cut", "none", "turned", " ", "beside"]
    return save_dataset(tmp_path / "set", {"image": cells, "text": texts, "id": list(range(6))})


def test_a_dataset_is_scanned_as_a_folder_is(mixed_dataset, tmp_path):
    found = scan_images(mixed_dataset)
    assert (found.where, found.names) == (mixed_dataset, ("row 0", "row 3", "row 5"))
    assert found.captions == ("a cat", "turned", "beside")
    assert found.sizes == ((60, 90), (90, 60), (60, 90))
    cut, none, blank = found.skipped
    assert cut.startswith("row 1: ") and "truncated" in cut
    assert none == "row 2: no image in this row"
    assert blank == "row 4: no caption: its text is blank"
    with pytest.raises(DirectAlignError, match=r"hf:.*: row 1: unreadable .*data\.strict: false"):
        scan_images(mixed_dataset, strict=True)
    from_file = load_image(tmp_path / "beside.png", 24, 24)
    equal = [torch.equal(found.image(index, 24, 24), from_file) for index in range(3)]
    assert equal == [True, False, True]


def test_the_column_of_images_is_told_by_its_name_or_by_being_alone(tmp_path):
    red, blue = (encoded(Image.new("RGB", (8, 8), name)) for name in ("red", "blue"))
    source = save_dataset(
        tmp_path / "named", {"mask": [blue], "Image": [red], "title": ["a"]}, ("mask", "Image")
    )
    assert scan_images(f"{source}#title").image(0, 4, 4)[:, 0, 0].tolist() == [1, 0, 0]
    source = save_dataset(tmp_path / "alone", {"view": [blue], "caption": ["a"]}, ("view",))
    assert scan_images(source).image(0, 4, 4)[:, 0, 0].tolist() == [0, 0, 1]


CELL = encoded(CAT)
TWO = {"left": [CELL], "right": [CELL], "text": ["a"]}
INCOMPLETE = {
    "no column prompt, caption or text among 'image', 'label'": {"image": [CELL], "label": [1]},
    "no column of images among 'text', 'label'": {"text": ["a"], "label": [1]},
    "2 columns of images, 'left', 'right'; rename the one to use to image": TWO,
    "no usable image: all 1 were skipped, first row 0: no": {"image": [CELL], "text": [""]},
    "row 0: prompt of 2,001 characters": {"image": [CELL], "text": ["x" * 2001]},
}


@pytest.mark.parametrize("complaint", INCOMPLETE)
def test_a_dataset_without_what_is_needed_is_refused(tmp_path, complaint):
    columns = INCOMPLETE[complaint]
    images = tuple(name for name, cells in columns.items() if cells == [CELL])
    source = save_dataset(tmp_path / "set", columns, images)
    with pytest.raises(DirectAlignError, match=complaint) as raised:
        scan_images(source)
    assert str(raised.value).startswith(f"{source}: ") and "\n" not in str(raised.value)
