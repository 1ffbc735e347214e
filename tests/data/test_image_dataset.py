"""Offline images: every encoding arrives upright, in RGB and in range; broken files are named."""

from __future__ import annotations

import json
import weakref
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from directalign.data import image_dataset, image_io
from directalign.data.buckets import Bucket
from directalign.data.image_dataset import ImageSet, ImageStream, scan_images
from directalign.data.image_io import load_image
from directalign.types import DirectAlignError

datasets = pytest.importorskip("datasets", reason="datasets are an extra: directalign[data]")

CAT = Image.fromarray(data.chelsea()).resize((90, 60))


def in_one_size(images: ImageSet, side: int, seed: int) -> ImageStream:
    return ImageStream(images, (Bucket((side, side), tuple(range(len(images)))),), seed)


def save(image: Image.Image, file: Path, caption: str | None = "a cat", **options: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)
    if caption is not None:
        file.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return file


def test_a_photograph_keeps_its_pixels(tmp_path: Path) -> None:
    image = load_image(save(CAT, tmp_path / "cat.png"), 60, 90)
    assert image.dtype == torch.float32 and image.shape == (3, 60, 90)
    assert torch.allclose(
        image.permute(1, 2, 0), torch.from_numpy(np.asarray(CAT) / 255).float(), atol=1e-6
    )


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 16), (16, 64), (120, 120)])
def test_the_centre_is_cut_out(tmp_path: Path, height: int, width: int) -> None:
    target = np.zeros((60, 90, 3), np.uint8)
    target[25:35, 40:50] = 255
    image = load_image(save(Image.fromarray(target), tmp_path / "target.png"), height, width)
    assert image.shape == (3, height, width) and image.min() >= 0 and image.max() <= 1
    assert image[:, height // 2, width // 2].min() > 0.9 and torch.allclose(
        image, image.flip(1), atol=0.1
    )


def test_stripes_finer_than_the_target_become_grey(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    image = load_image(save(Image.fromarray(stripes), tmp_path / "stripes.png"), 16, 16)
    assert (image[:, :, 2:-2] - 0.5).abs().max() < 0.01


def test_orientation_of_the_camera_is_undone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 270 degrees
    turned = load_image(save(CAT, tmp_path / "turned.png", exif=exif), 90, 60)
    upright = load_image(save(CAT.rotate(270, expand=True), tmp_path / "upright.png"), 90, 60)
    assert torch.equal(turned, upright)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    clear = CAT.copy()
    clear.putalpha(0)
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    palette = Image.new("P", (8, 8), 3)
    assert load_image(save(clear, tmp_path / "clear.png"), 32, 32).min() > 0.9999
    assert load_image(save(half, tmp_path / "half.png"), 8, 8).mean() == pytest.approx(
        127 / 255, abs=0.01
    )
    assert load_image(save(palette, tmp_path / "palette.gif", transparency=3), 8, 8).min() == 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "YCbCr", "LA"])
def test_every_mode_becomes_three_channels(tmp_path: Path, mode: str) -> None:
    packed = (
        {"compression": "tiff_lzw"} if mode == "YCbCr" else {}
    )  # Pillow 12 cannot read back the plain YCbCr that it writes
    image = load_image(
        save(
            CAT.convert(mode),
            tmp_path / f"cat{'.png' if mode in ('1', 'P', 'RGBA', 'LA') else '.tif'}",
            **packed,
        ),
        60,
        90,
    )
    true = torch.from_numpy(np.asarray(CAT) / 255).float().permute(2, 0, 1)
    tones = [F.avg_pool2d(each.mean(0, keepdim=True), 10) for each in (image, true)]
    assert image.shape == (3, 60, 90) and (tones[0] - tones[1]).abs().max() < 0.08


@pytest.mark.parametrize("ending", [".png", ".pgm", ".tif"])
def test_16_bits_keep_their_finest_steps(tmp_path: Path, ending: str) -> None:
    grey = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    image = load_image(save(Image.fromarray(grey), tmp_path / f"grey{ending}"), 8, 8)
    assert torch.allclose(image[0], torch.from_numpy(grey / 65535).float(), atol=1e-6)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    save(CAT, tmp_path / "b.jpg")
    save(CAT, tmp_path / "deep" / "a.png", caption=" a deep cat\n")
    save(CAT, tmp_path / "uncaptioned.png", caption=None)
    save(CAT, tmp_path / "blank.png", caption=" \n")
    save(CAT, tmp_path / "cut.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:900])
    save(CAT, tmp_path / "empty.png").write_bytes(b"")
    save(CAT, tmp_path / "text.webp").write_bytes(b"not an image")
    save(CAT, tmp_path / "phone.png").rename(tmp_path / "phone.heic")
    (tmp_path / "phone.heic").write_bytes(b"ftypheic")
    (tmp_path / "._b.jpg").write_bytes(b"left by another system")
    return tmp_path


def test_unusable_images_are_skipped_by_name(mixed: Path) -> None:
    found = scan_images(mixed)
    assert found.names == ("b.jpg", "deep/a.png") and found.sizes == ((60, 90), (60, 90))
    assert found.captions == ("a cat", "a deep cat")
    reasons = dict(line.split(": ", 1) for line in found.skipped)
    assert set(reasons) == {
        "blank.png",
        "cut.jpg",
        "empty.png",
        "phone.heic",
        "text.webp",
        "uncaptioned.png",
    }
    assert (
        "truncated" in reasons["cut.jpg"]
        and "0 bytes" in reasons["empty.png"]
        and "uncaptioned.txt is missing" in reasons["uncaptioned.png"]
    )


def test_strict_refuses_the_first_of_them(mixed: Path) -> None:
    with pytest.raises(DirectAlignError, match=r"blank\.png: no caption.*data\.strict: false"):
        scan_images(mixed, strict=True)


def test_metadata_names_images_and_captions(tmp_path: Path) -> None:
    save(CAT, tmp_path / "one.png", caption="ignored")
    rows = [
        {"file_name": "one.png", "text": "first"},
        {"file_name": "gone.png", "prompt": "second"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = scan_images(tmp_path)
    assert found.captions == ("first",) and found.skipped == ("gone.png: no such file",)


def broken_metadata(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}\n{"text": "b"}')


def broken_caption(folder: Path) -> None:
    save(CAT, folder / "a.png").with_suffix(".txt").write_bytes(b"a caf\xe9")


def long_caption(folder: Path) -> None:
    save(CAT, folder / "a.png", caption="x" * 2001)


def nothing_left(folder: Path) -> None:
    save(CAT, folder / "a.png", caption=None)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (broken_metadata, r"metadata\.jsonl:2: file_name is None"),
        (broken_caption, r"a\.txt:1: not UTF-8"),
        (long_caption, r"a\.txt: prompt of 2,001 characters"),
        (nothing_left, r"no usable image: all 1 were skipped, first a\.png"),
        (lambda folder: None, "no usable image: none ends in"),
        (lambda folder: folder.rmdir(), "no such image folder"),
    ],
)
def test_a_broken_set_is_refused(tmp_path: Path, spoil, complaint: str) -> None:
    spoil(tmp_path)
    with pytest.raises(DirectAlignError, match=complaint) as raised:
        scan_images(tmp_path)
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


def test_pixels_of_unknown_range_are_not_guessed(tmp_path: Path) -> None:
    save(Image.fromarray(np.ones((4, 4), np.float32)), tmp_path / "float.tif")
    save(Image.fromarray(np.full((4, 4), 70_000, np.int32)), tmp_path / "int.tif")
    save(CAT, tmp_path / "cat.png")
    assert [line.split(":")[0] for line in scan_images(tmp_path).skipped] == [
        "float.tif",
        "int.tif",
    ]


def test_an_image_lost_after_the_scan_is_named(tmp_path: Path) -> None:
    stream = in_one_size(scan_images(save(CAT, tmp_path / "cat.png").parent), 32, seed=0)
    (tmp_path / "cat.png").write_bytes(b"")
    with pytest.raises(DirectAlignError, match=r"cat\.png: empty file"):
        stream.batch(0)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.integers(0, 10_000),
    byte=st.integers(0, 255),
    ending=st.sampled_from([".jpg", ".png", ".webp", ".tif", ".gif"]),
)
def test_no_flipped_byte_escapes_the_scan(
    tmp_path: Path, place: int, byte: int, ending: str
) -> None:
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


def test_a_stream_gives_captions_with_their_images(tmp_path: Path) -> None:
    for level in range(5):
        save(
            Image.new("RGB", (8, 8), (50 * level,) * 3),
            tmp_path / f"{level}.png",
            caption=f"grey {level}",
        )
    stream = in_one_size(scan_images(tmp_path), 16, seed=1)
    seen = [stream.batch(step, 2, place, 4) for step in range(5) for place in (0, 2)]
    for captions, images in seen:
        assert images.shape == (2, 3, 16, 16)
        assert [f"grey {round(float(image.mean()) * 255 / 50)}" for image in images] == list(
            captions
        )
    assert sorted(caption for captions, _ in seen for caption in captions) == sorted(
        f"grey {level}" for level in range(5) for _ in range(4)
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
def mixed_dataset(tmp_path: Path) -> str:
    cut = encoded(CAT, "jpeg")
    cut["bytes"] = bytes(cut["bytes"])[:900]
    exif = Image.Exif()
    exif[0x0112] = 6
    cells = [
        encoded(CAT),
        cut,
        None,
        encoded(CAT, exif=exif),
        encoded(CAT),
        {"bytes": None, "path": str(save(CAT, tmp_path / "beside.png"))},
    ]
    return save_dataset(
        tmp_path / "set",
        {
            "image": cells,
            "text": ["a cat", "cut", "none", "turned", " ", "beside"],
            "id": list(range(6)),
        },
    )


def test_a_dataset_is_scanned_as_a_folder_is(mixed_dataset: str) -> None:
    found = scan_images(mixed_dataset)
    assert (found.where, found.names) == (mixed_dataset, ("row 0", "row 3", "row 5"))
    assert found.captions == ("a cat", "turned", "beside") and found.sizes == (
        (60, 90),
        (90, 60),
        (60, 90),
    )
    reasons = dict(line.split(": ", 1) for line in found.skipped)
    assert set(reasons) == {"row 1", "row 2", "row 4"}
    assert (
        "truncated" in reasons["row 1"]
        and reasons["row 2"] == "no image in this row"
        and reasons["row 4"] == "no caption: its text is blank"
    )
    with pytest.raises(DirectAlignError, match=r"hf:.*: row 1: unreadable .*data\.strict: false"):
        scan_images(mixed_dataset, strict=True)


def test_images_of_a_dataset_are_those_of_files(mixed_dataset: str, tmp_path: Path) -> None:
    found = scan_images(mixed_dataset)
    from_file = load_image(tmp_path / "beside.png", 24, 24)
    assert torch.equal(found.image(0, 24, 24), from_file) and torch.equal(
        found.image(2, 24, 24), from_file
    )
    assert not torch.equal(found.image(1, 24, 24), from_file)


def test_pixels_of_a_dataset_are_not_kept(
    mixed_dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    decode = image_io.read_pixels

    def watched(picture: image_io.Picture) -> np.ndarray:
        assert not any(each() is not None for each in alive[:-1])
        alive.append(weakref.ref(decoded := decode(picture)))
        return decoded

    monkeypatch.setattr(image_dataset, "read_pixels", watched)
    scan_images(mixed_dataset)
    assert len(alive) == 3 and all(each() is None for each in alive)


def test_the_column_of_images_is_told_by_its_name_or_by_being_alone(tmp_path: Path) -> None:
    red, blue = (encoded(Image.new("RGB", (8, 8), name)) for name in ("red", "blue"))
    source = save_dataset(
        tmp_path / "named", {"mask": [blue], "Image": [red], "title": ["a"]}, ("mask", "Image")
    )
    assert scan_images(f"{source}#title").image(0, 4, 4)[:, 0, 0].tolist() == [1, 0, 0]
    source = save_dataset(tmp_path / "alone", {"view": [blue], "caption": ["a"]}, ("view",))
    assert scan_images(source).image(0, 4, 4)[:, 0, 0].tolist() == [0, 0, 1]


CELL = encoded(CAT)


@pytest.mark.parametrize(
    ("columns", "images", "complaint"),
    [
        (
            {"image": [CELL], "label": [1]},
            ("image",),
            "no column prompt, caption or text among 'image', 'label'",
        ),
        ({"text": ["a"], "label": [1]}, (), "no column of images among 'text', 'label'"),
        (
            {"left": [CELL], "right": [CELL], "text": ["a"]},
            ("left", "right"),
            "2 columns of images, 'left', 'right'; rename the one to use to image",
        ),
        (
            {"image": [CELL], "text": [""]},
            ("image",),
            "no usable image: all 1 were skipped, first row 0: no caption",
        ),
        ({"image": [CELL], "text": ["x" * 2001]}, ("image",), "row 0: prompt of 2,001 characters"),
    ],
)
def test_a_dataset_without_what_is_needed_is_refused(
    tmp_path: Path, columns: dict[str, list[object]], images: tuple[str, ...], complaint: str
) -> None:
    with pytest.raises(DirectAlignError, match=complaint) as raised:
        scan_images(save_dataset(tmp_path / "set", columns, images))
    assert str(raised.value).startswith(f"hf:{tmp_path / 'set'}: ") and "\n" not in str(
        raised.value
    )
