"""Detectors load and find what transformers' own processors find with the same weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import (
    AutoTokenizer,
    Mask2FormerImageProcessor,
    Owlv2ImageProcessor,
    RTDetrImageProcessor,
)

import tiny_detectors
from directalign import config
from directalign.evaluation.adherence import adherence_of, check_adherence, check_rows
from directalign.evaluation.adherence.detector import COLORS, GREY, crop, load_detector
from directalign.evaluation.adherence.geneval import Found
from directalign.evaluation.eval_prompts import PromptRow, checked_facts
from directalign.types import DirectAlignError
from hub_stand_in import hub_stand_in, point_at
from tiny_detectors import CLASSES, write_detector

PROCESSORS = {"mask2former": Mask2FormerImageProcessor, "owlv2": Owlv2ImageProcessor}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("detectors")
    return {kind: write_detector(root / kind, kind) for kind in tiny_detectors.KINDS}


@pytest.fixture(scope="module")
def detectors(folders):
    return {
        kind: load_detector(config.DetectorConfig(path=str(folder)), "cpu")
        for kind, folder in folders.items()
    }


@pytest.fixture(scope="module")
def processors(folders):
    """The image processors of transformers."""
    return {
        kind: PROCESSORS.get(kind, RTDetrImageProcessor).from_pretrained(folder)
        for kind, folder in folders.items()
    }


def picture(height: int = 80, width: int = 60, seed: int = 0) -> Tensor:
    """In levels of 8 bits; smooth, so that rounding between two passes of a resize is small."""
    small = torch.rand(1, 3, 6, 5, generator=torch.Generator().manual_seed(seed))
    image = interpolate(small, (height, width), mode="bicubic", align_corners=False)[0]
    return (image.clamp(0, 1) * 255).round() / 255


def rows(*include: dict[str, Any], tag: str = "two_object") -> list[PromptRow]:
    objects = [{"count": 1, **entry} for entry in include]
    facts = checked_facts({"tag": tag, "include": objects, "exclude": []}, "here")
    return [PromptRow("a prompt", tag, facts)]


@pytest.mark.parametrize("kind", tiny_detectors.KINDS)
def test_images_are_prepared_as_transformers_does(kind, detectors, processors):
    pixels = detectors[kind].pixels
    for size in ((80, 60), (64, 64), (50, 131), (300, 200)):
        image = picture(*size)
        levels = (image * 255).round().to(torch.uint8).numpy()
        theirs = processors[kind](images=levels, return_tensors="pt")["pixel_values"]
        ours = pixels(image[None])
        assert ours.shape == theirs.shape
        difference = (ours - theirs) * torch.tensor(pixels.std)[:, None, None]
        assert difference.abs().max() < 0.01


@pytest.mark.parametrize("kind", ["rt_detr", "rt_detr_v2", "d_fine"])
def test_boxes_are_those_of_transformers(kind, detectors, processors):
    detector, image = detectors[kind], picture()
    with torch.no_grad():
        output = detector.model(pixel_values=detector.pixels(image[None]))
    threshold = float(output.logits.sigmoid().flatten().sort().values[-9])
    theirs = processors[kind].post_process_object_detection(
        output, threshold=threshold, target_sizes=[(80, 60)]
    )[0]
    assert_same(detector.find(image, CLASSES, threshold), theirs, CLASSES)


def test_owlv2_reads_text_queries_and_boxes_of_a_padded_square(folders, detectors, processors):
    detector, image, things = detectors["owlv2"], picture(40, 64), ["dog", "owl"]
    tokenizer = AutoTokenizer.from_pretrained(folders["owlv2"])
    queries = [f"a photo of a {thing}" for thing in things]
    tokens = tokenizer(queries, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        output = detector.model(
            pixel_values=detector.pixels(image[None]),
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
        )
    theirs = processors["owlv2"].post_process_object_detection(
        output, threshold=0.0, target_sizes=[(40, 64)]
    )[0]
    assert len(theirs["scores"]) == 9
    assert_same(detector.find(image, things, 0.0), theirs, things)


def assert_same(found: list[Found], theirs: dict[str, Tensor], names: list[str]) -> None:
    """Equal as sets: transformers sorts by score, or not at all."""
    ours = sorted((each.score, each.thing, each.box) for each in found)
    labels, boxes = (theirs[name].tolist() for name in ("labels", "boxes"))
    each = zip(theirs["scores"].tolist(), [names[n] for n in labels], boxes, strict=True)
    for (score, thing, box), (their_score, their_thing, their_box) in zip(
        ours, sorted(each), strict=True
    ):
        assert thing == their_thing and score == pytest.approx(their_score, abs=1e-6)
        assert list(box) == pytest.approx(their_box, abs=1e-3)


def test_mask2former_finds_masks_with_their_scores_and_boxes(detectors, processors):
    detector, image = detectors["mask2former"], picture(96, 96)
    found = detector.find(image, CLASSES, 0.05)
    with torch.no_grad():
        output = detector.model(pixel_values=detector.pixels(image[None]))
    theirs = processors["mask2former"].post_process_instance_segmentation(
        output, threshold=0.05, target_sizes=[(96, 96)], return_binary_maps=True
    )[0]
    best = max(info["score"] for info in theirs["segments_info"])
    # transformers takes the mean over a mask of 384 x 384
    assert max(each.score for each in found) == pytest.approx(best, abs=0.01)
    for each in found:
        assert each.mask is not None and each.mask.shape == (96, 96)
        left, top, right, bottom = map(int, each.box)
        inner = each.mask[top:bottom, left:right]
        assert inner.sum() == each.mask.sum() > 0
        for edge in (inner[0], inner[-1], inner[:, 0], inner[:, -1]):
            assert edge.any()


@pytest.mark.parametrize("kind", ["mask2former", "rt_detr"])
def test_images_are_judged_end_to_end(kind, folders, clip_folder):
    colors = config.ClipConfig(path=str(clip_folder))
    settings = config.DetectorConfig(path=str(folders[kind]), threshold=0.0, colors=colors)
    objects = {"class": "dog", "color": "red"}, {"class": "cat", "position": ["left of", 0]}
    judge = adherence_of(settings)
    judged = judge.judged(torch.stack([picture(), picture(seed=1)]), rows(*objects) * 2)
    texts = ["a dog", "a red dog", "a cat", "a cat to the left of a dog"]
    for each in judged:
        assert [verdict.fact for verdict in each.verdicts] == texts
        assert each.verdicts[0].right and each.verdicts[1].saw in COLORS
    found = judge(picture()[None], rows(*objects))
    assert list(found) == ["adherence", "adherence_two_object"]
    assert {values.item() for values in found.values()} == {float(judged[0].right)}


def test_a_crop_is_inside_the_image_and_grey_around_the_mask():
    image, mask = torch.zeros(3, 8, 8), torch.zeros(8, 8, dtype=torch.bool)
    mask[2:4, 2:4] = True
    cut = crop(image, Found("dog", 0.9, (1.0, 2.0, 5.0, 4.0), mask))
    assert cut.shape == (3, 2, 4)
    assert (cut[:, :, 1:3] == 0).all() and (cut[:, :, [0, 3]] == GREY).all()
    boxes = [(-5.0, -5.0, 3.0, 3.0), (7.0, 7.0, 7.0, 7.0), (3.0, 3.0, 3.2, 3.2)]
    for box in (*boxes, (20.0, 20.0, 30.0, 30.0)):
        height, width = crop(image, Found("dog", 0.9, box)).shape[1:]
        assert 1 <= height <= 8 and 1 <= width <= 8


def refused(words: str, **settings: Any) -> None:
    """By the check before loading, and by loading, in the same words."""
    for use in (check_adherence, adherence_of):
        with pytest.raises(DirectAlignError, match=words):
            use(config.DetectorConfig(**settings))


@pytest.fixture
def copy(folders, tmp_path):
    return Path(shutil.copytree(folders["rt_detr"], tmp_path / "copy"))


def test_folders_that_hold_no_detector_are_named(tmp_path, clip_folder, folders):
    refused(r"evaluate\.adherence\.path: .*missing: no such folder", path=str(tmp_path / "missing"))
    words = r"evaluate\.adherence\.path: .*type clip, which is no supported.* mask2former, rt_detr"
    refused(words, path=str(clip_folder))
    detector = str(folders["rt_detr"])
    words = r"evaluate\.adherence\.colors\.path: .*rt_detr"
    refused(words, path=detector, colors={"path": detector})
    ignored = shutil.ignore_patterns("tokenizer*", "vocab*", "merges*")
    shutil.copytree(folders["owlv2"], tmp_path / "owl", ignore=ignored)
    refused(r"tokenizer\.json .* is missing", path=str(tmp_path / "owl"))


def test_broken_and_missing_files_are_named(copy):
    weights, file = copy / "model.safetensors", copy / "preprocessor_config.json"
    settings, whole = json.loads(file.read_text()), weights.read_bytes()
    file.write_text(json.dumps({**settings, "resample": 3}))
    refused(r"preprocessor_config\.json: cannot read resample", path=str(copy))
    file.write_text(json.dumps({**settings, "size": {"width": 64}}))
    refused(r"preprocessor_config\.json: cannot read 'height'", path=str(copy))
    file.unlink()
    refused(r"preprocessor_config\.json is missing", path=str(copy))
    weights.write_bytes(whole[:1000])
    refused(r"model\.safetensors: not a complete safetensors file", path=str(copy))
    weights.unlink()
    refused(r"model\.safetensors is missing", path=str(copy))
    (copy / "config.json").write_text("[1")
    refused(r"config\.json: not readable as JSON", path=str(copy))
    (copy / "config.json").unlink()
    refused(r"config\.json is missing", path=str(copy))


def test_prompts_that_a_detector_cannot_judge_are_refused(folders, clip_folder):
    closed = config.DetectorConfig(path=str(folders["rt_detr"]))
    colored = closed.model_copy(update={"colors": config.ClipConfig(path=str(clip_folder))})
    zebra = rows({"class": "computer mouse"}, {"class": "zebra"})
    free = [PromptRow("a free prompt")]
    red, gray = (rows({"class": "dog", "color": color}) for color in ("red", "gray"))
    for settings, prompts, words in (
        (closed, free, r"'a free prompt' comes without: give a GenEval file"),
        (closed, zebra, r"knows no zebra \(1 of 2 classes are unknown to it\)"),
        (closed, red, r"adherence\.colors: missing, and prompts ask for what is red"),
        (colored, gray, r"ask for gray, and the supported colours are red, orange"),
    ):
        with pytest.raises(DirectAlignError, match=words):
            check_rows(settings, prompts)
    check_rows(colored, red)
    check_rows(config.DetectorConfig(path=str(folders["owlv2"])), zebra)
    with pytest.raises(DirectAlignError, match="knows no zebra"):
        adherence_of(closed)(picture()[None], zebra)


def test_only_settings_of_a_detector_on_the_hub_are_fetched_to_check_it(
    folders, tmp_path, monkeypatch
):
    settings = config.DetectorConfig(path="someone/detector", threshold=0.0)
    with hub_stand_in() as hub:
        hub.publish("someone/detector", folders["rt_detr"])
        point_at(hub.url, tmp_path / "cache", monkeypatch)
        check_adherence(settings)
        assert hub.fetched == []
        check_adherence(settings, online=True)
        with pytest.raises(DirectAlignError, match="knows no zebra"):
            check_rows(settings, rows({"class": "zebra"}))
        assert hub.fetched and not any(name.endswith(".safetensors") for name in hub.fetched)
        words = r"adherence\.path: someone/missing: .*no such repository"
        with pytest.raises(DirectAlignError, match=words):
            check_adherence(config.DetectorConfig(path="someone/missing"), online=True)
        found = adherence_of(settings)(picture()[None], rows({"class": "dog"}))
        assert found["adherence"].tolist() == [1.0]
