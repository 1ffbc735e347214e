"""Detectors load and find what transformers' own processors find with the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    Mask2FormerImageProcessor,
    Owlv2ImageProcessor,
    RTDetrImageProcessor,
)

from directalign import config
from directalign.evaluation.adherence import adherence_of, check_adherence, check_rows
from directalign.evaluation.adherence import detector as detector_files
from directalign.evaluation.adherence.detector import (
    COLORS,
    GREY,
    TEMPLATES,
    ColorReader,
    Detector,
    crop,
)
from directalign.evaluation.adherence.geneval import Found
from directalign.evaluation.eval_prompts import PromptRow, checked_facts
from directalign.rewards.clip import ClipReward
from directalign.types import DirectAlignError
from hub_stand_in import hub_stand_in, point_at
from tiny_clip import clip_folder
from tiny_detectors import CLASSES, MODELS, write_detector

__all__ = ["clip_folder"]

KEY = "evaluate.adherence"
PROCESSORS = {"mask2former": Mask2FormerImageProcessor, "owlv2": Owlv2ImageProcessor}


@pytest.fixture(scope="session")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("detectors")
    return {kind: write_detector(root / kind, kind) for kind in MODELS}


def load(folder: Path, **more: Any) -> Detector:
    return detector_files.load_detector(config.DetectorConfig(path=str(folder), **more), "cpu", KEY)


def picture(height: int = 80, width: int = 60, seed: int = 0) -> Tensor:
    """Smooth enough that rounding to 8 bits between two passes of a resize does not show, in levels
    of 8 bits."""
    small = torch.rand(1, 3, 6, 5, generator=torch.Generator().manual_seed(seed))
    image = torch.nn.functional.interpolate(
        small, (height, width), mode="bicubic", align_corners=False
    )[0].clamp(0, 1)
    return (image * 255).round() / 255


def original(kind: str, folder: Path) -> Any:
    return PROCESSORS.get(kind, RTDetrImageProcessor).from_pretrained(folder)


def levels(image: Tensor) -> Any:
    return (image * 255).round().to(torch.uint8).numpy()


def rows(*include: dict[str, Any], tag: str = "two_object") -> list[PromptRow]:
    facts = checked_facts(
        {"tag": tag, "include": [{"count": 1, **entry} for entry in include], "exclude": []}, "here"
    )
    return [PromptRow("a prompt", tag, facts)]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("size", [(80, 60), (64, 64), (50, 131), (300, 200)])
def test_images_reach_a_detector_as_transformers_prepares_them(
    kind: str, size: tuple[int, int], detectors: dict[str, Path]
) -> None:
    image = picture(*size)
    theirs = original(kind, detectors[kind])(images=levels(image), return_tensors="pt")[
        "pixel_values"
    ]
    pixels = load(detectors[kind]).pixels
    std = torch.tensor(pixels.std)[:, None, None]
    ours = pixels(image[None])
    assert ours.shape == theirs.shape
    assert ((ours - theirs) * std).abs().max() < 0.01


@pytest.mark.parametrize("kind", ["rt_detr", "rt_detr_v2", "d_fine"])
def test_boxes_are_those_that_transformers_makes_of_the_same_answer(
    kind: str, detectors: dict[str, Path]
) -> None:
    detector, image = load(detectors[kind]), picture()
    with torch.no_grad():
        output = detector.model(pixel_values=detector.pixels(image[None]))
    threshold = float(output.logits.sigmoid().flatten().sort().values[-9])
    theirs = original(kind, detectors[kind]).post_process_object_detection(
        output, threshold=threshold, target_sizes=[(80, 60)]
    )[0]
    assert_same(
        detector.find(image, CLASSES, threshold),
        theirs["scores"],
        [CLASSES[n] for n in theirs["labels"]],
        theirs["boxes"],
    )


def test_owlv2_is_asked_in_words_and_its_boxes_are_of_the_padded_square(
    detectors: dict[str, Path],
) -> None:
    detector, image, things = load(detectors["owlv2"]), picture(40, 64), ["dog", "owl"]
    tokens = AutoTokenizer.from_pretrained(detectors["owlv2"])(
        ["a photo of a dog", "a photo of a owl"],
        padding="max_length",
        max_length=16,
        return_tensors="pt",
    )
    with torch.no_grad():
        output = detector.model(
            pixel_values=detector.pixels(image[None]),
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
        )
    theirs = original("owlv2", detectors["owlv2"]).post_process_object_detection(
        output, threshold=0.0, target_sizes=[(40, 64)]
    )[0]
    assert len(theirs["scores"]) == 9
    assert_same(
        detector.find(image, things, 0.0),
        theirs["scores"],
        [things[n] for n in theirs["labels"]],
        theirs["boxes"],
    )


def assert_same(found: list[Found], scores: Tensor, names: list[str], boxes: Tensor) -> None:
    """Equal as sets: transformers sorts by score, or not at all."""
    ours = sorted((each.score, each.thing, each.box) for each in found)
    theirs = sorted(zip(scores.tolist(), names, map(tuple, boxes.tolist()), strict=True))
    assert [each[1] for each in ours] == [each[1] for each in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine[0] == pytest.approx(other[0], abs=1e-6)
        assert mine[2] == pytest.approx(other[2], abs=1e-3)


def test_mask2former_finds_masks_with_the_scores_and_boxes_of_them(
    detectors: dict[str, Path],
) -> None:
    detector, image = load(detectors["mask2former"]), picture(96, 96)
    found = detector.find(image, CLASSES, 0.05)
    with torch.no_grad():
        output = detector.model(pixel_values=detector.pixels(image[None]))
    processor: Any = original("mask2former", detectors["mask2former"])
    theirs = processor.post_process_instance_segmentation(
        output, threshold=0.05, target_sizes=[(96, 96)], return_binary_maps=True
    )[0]
    best = max(info["score"] for info in theirs["segments_info"])
    surest = max(found, key=lambda each: each.score)
    assert surest.score == pytest.approx(
        best, abs=0.01
    )  # transformers takes the mean over a mask of 384 x 384
    for each in found:
        assert each.mask is not None and each.mask.shape == (96, 96)
        left, top, right, bottom = map(int, each.box)
        assert each.mask[top:bottom, left:right].sum() == each.mask.sum() > 0
        assert (
            each.mask[top].any()
            and each.mask[bottom - 1].any()
            and each.mask[:, left].any()
            and each.mask[:, right - 1].any()
        )


@pytest.mark.parametrize("kind", MODELS)
def test_weights_are_frozen_and_no_gradient_is_kept(kind: str, detectors: dict[str, Path]) -> None:
    detector = load(detectors[kind])
    before = {name: tensor.clone() for name, tensor in detector.model.state_dict().items()}
    detector.find(picture().requires_grad_(), ["dog", "cat"], 0.0)
    assert not detector.model.training
    assert all(not parameter.requires_grad for parameter in detector.model.parameters())
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in detector.model.state_dict().items()
    )


def test_a_thing_is_found_under_the_prompts_name_for_it(detectors: dict[str, Path]) -> None:
    found = load(detectors["rt_detr"]).find(picture(), ["computer mouse"], 0.0)
    assert {each.thing for each in found} == {"computer mouse"} and len(found) == 12


@pytest.mark.parametrize("kind", MODELS)
def test_images_are_judged_from_end_to_end(
    kind: str, detectors: dict[str, Path], clip_folder: Path
) -> None:
    settings = config.DetectorConfig(
        path=str(detectors[kind]), threshold=0.0, colors=config.ClipConfig(path=str(clip_folder))
    )
    judge = adherence_of(settings)
    prompts_of_facts = rows(
        {"class": "dog", "color": "red"},
        {"class": "wine glass", "position": ["left of", 0]},
        tag="position",
    )
    judged = judge.judged(torch.stack([picture(), picture(seed=1)]), prompts_of_facts * 2)
    assert [[verdict.fact for verdict in each.verdicts] for each in judged] == [
        ["a dog", "a red dog", "a wine glass", "a wine glass to the left of a dog"]
    ] * 2
    assert all(each.verdicts[0].right and each.verdicts[1].saw in COLORS for each in judged)
    output = judge(torch.stack([picture(), picture(seed=1)]), prompts_of_facts * 2)
    assert (
        output["adherence"].tolist()
        == output["adherence_position"].tolist()
        == [float(each.right) for each in judged]
    )


def test_usual_thresholds_are_those_of_the_kind_unless_others_are_given(
    detectors: dict[str, Path],
) -> None:
    limits = detector_files.limits_of(config.DetectorConfig(path="x"), "mask2former")
    assert (limits.of("colors"), limits.of("counting"), limits.max_overlap) == (0.3, 0.9, 1.0)
    given = detector_files.limits_of(
        config.DetectorConfig(path="x", threshold=0.0, counting_threshold=0.4, max_overlap=0.7),
        "owlv2",
    )
    assert (given.of("colors"), given.of("counting"), given.max_overlap) == (0.0, 0.4, 0.7)
    assert set(detector_files.KINDS) == set(MODELS)


# --- colours --------------------------------------------------------------------------------------


def test_a_colour_is_the_nearest_of_the_phrases(clip_folder: Path) -> None:
    clip = ClipReward.load(str(clip_folder))
    image = picture()
    thing = Found("dog", 0.9, (10.2, 20.7, 40.0, 60.0))
    direction = torch.stack(
        [
            torch.nn.functional.normalize(
                clip.encode_text([t.format(color=color, thing="dog") for t in TEMPLATES]).mean(0),
                dim=0,
            )
            for color in COLORS
        ]
    )
    wanted = COLORS[int((clip.encode(image[None, :, 20:60, 10:40]) @ direction.T).argmax())]
    assert ColorReader(clip).read(image, [thing, thing], "dog") == [wanted, wanted]


def test_around_a_mask_everything_is_grey() -> None:
    image, mask = torch.zeros(3, 8, 8), torch.zeros(8, 8, dtype=torch.bool)
    mask[2:4, 2:4] = True
    cut = crop(image, Found("dog", 0.9, (1.0, 2.0, 5.0, 4.0), mask))
    assert cut.shape == (3, 2, 4)
    assert (cut[:, :, 1:3] == 0).all() and (cut[:, :, [0, 3]] == GREY).all()


@pytest.mark.parametrize(
    "box",
    [(-5.0, -5.0, 3.0, 3.0), (7.0, 7.0, 7.0, 7.0), (20.0, 20.0, 30.0, 30.0), (3.0, 3.0, 3.2, 3.2)],
)
def test_a_cut_stays_within_the_image_and_holds_a_pixel(
    box: tuple[float, float, float, float],
) -> None:
    height, width = crop(torch.rand(3, 8, 8), Found("dog", 0.9, box)).shape[1:]
    assert 1 <= height <= 8 and 1 <= width <= 8


# --- what is refused ------------------------------------------------------------------------------


def refused(words: str, **settings: Any) -> None:
    """By the check before loading, and by loading, in the same words."""
    with pytest.raises(DirectAlignError, match=words):
        check_adherence(config.DetectorConfig(**settings))
    with pytest.raises(DirectAlignError, match=words):
        adherence_of(config.DetectorConfig(**settings))


@pytest.fixture
def copy(detectors: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(detectors["rt_detr"], tmp_path / "copy"))


def test_no_folder_and_no_detector_are_named(
    tmp_path: Path, clip_folder: Path, detectors: dict[str, Path]
) -> None:
    refused(r"evaluate\.adherence\.path: .*missing: no such folder", path=str(tmp_path / "missing"))
    refused(
        r"evaluate\.adherence\.path: .*type clip, which is no supported.* mask2former, rt_detr",
        path=str(clip_folder),
    )
    refused(
        r"evaluate\.adherence\.colors\.path: .*rt_detr",
        path=str(detectors["rt_detr"]),
        colors={"path": str(detectors["rt_detr"])},
    )


def test_cut_weights_and_missing_files_are_named(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(r"model\.safetensors: not a complete safetensors file", path=str(copy))
    weights.unlink()
    refused(r"model\.safetensors is missing", path=str(copy))
    (copy / "config.json").write_text("[1")
    refused(r"config\.json: not readable as JSON", path=str(copy))
    (copy / "config.json").unlink()
    refused(r"config\.json is missing", path=str(copy))


def test_image_settings_that_cannot_be_followed_are_named(copy: Path) -> None:
    file = copy / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "resample": 3}))
    refused(r"preprocessor_config\.json: cannot read resample", path=str(copy))
    file.write_text(json.dumps({**settings, "size": {"width": 64}}))
    refused(r"preprocessor_config\.json: cannot read 'height'", path=str(copy))
    file.unlink()
    refused(r"preprocessor_config\.json is missing", path=str(copy))


def test_an_owlv2_without_its_tokenizer_is_refused(
    detectors: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(
        shutil.copytree(
            detectors["owlv2"],
            tmp_path / "owl",
            ignore=shutil.ignore_patterns("tokenizer*", "vocab*", "merges*"),
        )
    )
    refused(r"tokenizer\.json .* is missing", path=str(folder))


def test_prompts_that_a_detector_cannot_judge_are_refused(
    detectors: dict[str, Path], clip_folder: Path
) -> None:
    closed = config.DetectorConfig(path=str(detectors["rt_detr"]))
    with pytest.raises(
        DirectAlignError, match=r"'a free prompt' comes without: give a GenEval file"
    ):
        check_rows(closed, [PromptRow("a free prompt")])
    with pytest.raises(
        DirectAlignError, match=r"knows no zebra \(1 of 2 classes are unknown to it\)"
    ):
        check_rows(closed, rows({"class": "computer mouse"}, {"class": "zebra"}))
    with pytest.raises(
        DirectAlignError, match=r"adherence\.colors: missing, and prompts ask for what is red"
    ):
        check_rows(closed, rows({"class": "dog", "color": "red"}))
    colored = closed.model_copy(update={"colors": config.ClipConfig(path=str(clip_folder))})
    with pytest.raises(
        DirectAlignError, match=r"ask for gray, and the supported colours are red, orange"
    ):
        check_rows(colored, rows({"class": "dog", "color": "gray"}))
    check_rows(colored, rows({"class": "dog", "color": "red"}))
    check_rows(config.DetectorConfig(path=str(detectors["owlv2"])), rows({"class": "zebra"}))
    with pytest.raises(DirectAlignError, match="knows no zebra"):
        adherence_of(closed)(picture()[None], rows({"class": "zebra"}))


def test_of_a_detector_on_the_hub_settings_alone_are_fetched_to_check_it(
    detectors: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config.DetectorConfig(path="someone/detector")
    with hub_stand_in() as hub:
        hub.publish("someone/detector", detectors["rt_detr"])
        point_at(hub.url, tmp_path / "cache", monkeypatch)
        check_adherence(settings)
        assert hub.fetched == []
        check_adherence(settings, online=True)
        with pytest.raises(DirectAlignError, match="knows no zebra"):
            check_rows(settings, rows({"class": "zebra"}))
        assert hub.fetched and not any(name.endswith(".safetensors") for name in hub.fetched)
        with pytest.raises(
            DirectAlignError, match=r"adherence\.path: someone/missing: .*no such repository"
        ):
            check_adherence(config.DetectorConfig(path="someone/missing"), online=True)
        assert adherence_of(settings.model_copy(update={"threshold": 0.0}))(
            picture()[None], rows({"class": "dog"})
        )["adherence"].tolist() == [1.0]
