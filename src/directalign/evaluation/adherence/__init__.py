"""Prompt adherence fact by fact: by a detector and GenEval's rules, or a vision-language model.

A judge is made from its settings, which are checked before loading:

    adherence_of(settings, device)(images, rows) -> {"adherence": (b,), "adherence_<tag>": (b,)}

A vision-language model gets facts, or a prompt without facts, as yes-or-no questions. A fact is
true where P(yes) > 0.5. Unlike a detector this works for any prompt, but a VLM counts badly and
tends to say yes: comparisons of two models are more reliable than absolute values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ... import config
from ...config.load import is_recipe, load_run, parse_section
from ...io.yaml_text import parse_yaml
from ...rewards import clip, qwen_vl
from ...rewards.weights import locate, read_model_type
from ...types import DirectAlignError, Images, PerSample
from ..eval_prompts import PromptRow
from . import detector
from .detector import KEY
from .geneval import Judged, Verdict, facts_of, numbers

OPTION = "--adherence"
DECISION = 0.5


def adherence_settings(text: str) -> config.AdherenceConfig:
    """Of a recipe with `evaluate.adherence`, of the section itself in YAML, or of a model's path.

    A bare path gets the defaults of its kind of model, and no CLIP for colours.

    Raises: DirectAlignError for no or an invalid section, and for no or another kind of model.
    """
    if text.lstrip().startswith("{"):
        section = parse_yaml(text, f"{OPTION} {text!r:.80}", "is not YAML")
        remedy = "write {name: detector, path: ...} or {name: vlm, path: ...}"
        return parse_section(config.AdherenceConfig, section, OPTION, remedy)
    if is_recipe(text):
        found = load_run(text).evaluate.adherence
        if found is None:
            raise DirectAlignError(
                f"{OPTION} {text}: has no evaluate.adherence; "
                "add it (name: detector or vlm, and path), or give the path of a model"
            )
        return found
    folder = locate(text, OPTION, ("config.json",))
    kind = read_model_type(folder, OPTION, "transformers detector or VLM")
    if kind in qwen_vl.KINDS:
        return config.QwenVLConfig(path=text)
    if kind in detector.KINDS:
        return config.DetectorConfig(path=text)
    raise DirectAlignError(
        f"{OPTION} {text}: holds a model of type {kind}; known are the detectors "
        f"{', '.join(detector.KINDS)}, and the VLMs {', '.join(qwen_vl.KINDS)}"
    )


def check_adherence(settings: config.AdherenceConfig, online: bool = False) -> None:
    """Refuse what loading would refuse, without weights; on the hub only when `online`."""
    if isinstance(settings, config.QwenVLConfig):
        require_probability(settings)
        qwen_vl.VlmReward.check(settings, KEY, online)
        return
    detector.check_detector(settings, online)
    if settings.colors is not None:
        clip.ClipReward.check(settings.colors, f"{KEY}.colors", online)


def check_rows(settings: config.AdherenceConfig, rows: Sequence[PromptRow]) -> None:
    """Check that the prompts can be judged: a detector takes those with facts about its classes.

    Raises: DirectAlignError for a prompt without facts, an unknown class, an unsupported colour.
    """
    if isinstance(settings, config.DetectorConfig):
        folder = locate(settings.path, detector.PATH_KEY, ("config.json",))
        check_facts(settings, rows, detector.classes_of(folder))


def check_facts(
    settings: config.DetectorConfig, rows: Sequence[PromptRow], classes: Mapping[int, str] | None
) -> None:
    """As `check_rows`, for a detector of these classes (None: any)."""
    free = next((row.prompt for row in rows if not row.facts), None)
    if free is not None:
        raise DirectAlignError(
            f"{KEY}: a detector judges facts, and {free!r:.60} comes without: "
            "give a GenEval file of prompts, or set name: vlm"
        )
    objects = [each for row in rows for each in (*row.facts["include"], *row.facts["exclude"])]
    colors = [entry["color"] for entry in objects if "color" in entry]
    if colors and settings.colors is None:
        raise DirectAlignError(
            f"{KEY}.colors: missing, and prompts ask for what is {colors[0]}; "
            "give a CLIP, e.g. path: openai/clip-vit-large-patch14"
        )
    unnamed = next((color for color in colors if color not in detector.COLORS), None)
    if unnamed is not None:
        raise DirectAlignError(
            f"{KEY}: prompts ask for {unnamed}, and the supported colours are "
            f"{', '.join(detector.COLORS)}; leave those prompts out, or set name: vlm"
        )
    things = dict.fromkeys(entry["class"] for entry in objects)
    known = set((classes or {}).values())
    unknown = [thing for thing in things if detector.coco_name(thing) not in known]
    if classes is not None and unknown:
        raise DirectAlignError(
            f"{KEY}.path: {settings.path} knows no {unknown[0]} ({len(unknown)} of {len(things)} "
            "classes are unknown to it); take an OWLv2"
        )


@dataclass(frozen=True)
class VlmJudge:
    """Judges by the answers of a frozen `vlm` reward."""

    reward: qwen_vl.VlmReward

    @torch.no_grad()
    def judge(self, image: detector.Image, row: PromptRow) -> Judged:
        """A verdict on each fact of the row, or on its prompt; the image is encoded once."""
        texts = [fact.text for fact in facts_of(row.facts)] if row.facts else [row.prompt]
        features = self.reward.encode(image[None])
        verdicts = []
        for text in texts:
            p = float(self.reward.score(features, [text]))
            verdicts.append(Verdict(text, p > DECISION, f"P(yes) {p:.3f}"))
        return Judged(row.facts["tag"] if row.facts else None, tuple(verdicts))


def require_probability(settings: config.QwenVLConfig) -> None:
    """Raises DirectAlignError for answers that are not a probability."""
    if settings.answer != "probability" or settings.scale != 1:
        raise DirectAlignError(
            f"{KEY}: answer: {settings.answer}, scale: {settings.scale:g}; "
            "a fact is decided by P(yes): leave both out"
        )


@dataclass(frozen=True)
class Adherence:
    """A frozen judge on its device, which judges one image at a time."""

    by: detector.DetectorJudge | VlmJudge
    settings: config.AdherenceConfig
    device: torch.device | str

    def __call__(self, images: Images, rows: Sequence[PromptRow]) -> dict[str, PerSample]:
        """`numbers` of images (b, 3, h, w) in [0, 1], one row each, on the CPU."""
        return numbers(self.judged(images, rows))

    def judged(self, images: Images, rows: Sequence[PromptRow]) -> list[Judged]:
        """The verdicts on every image. Raises DirectAlignError as `check_rows`."""
        by, settings = self.by, self.settings
        if isinstance(by, detector.DetectorJudge) and isinstance(settings, config.DetectorConfig):
            check_facts(settings, rows, by.detector.classes)
        pairs = zip(images, rows, strict=True)
        return [by.judge(image.to(self.device), row) for image, row in pairs]


def adherence_of(settings: config.AdherenceConfig, device: torch.device | str = "cpu") -> Adherence:
    """Load the judge of a section."""
    if isinstance(settings, config.QwenVLConfig):
        require_probability(settings)
        by = VlmJudge(qwen_vl.VlmReward.from_config(settings, device, KEY))
    else:
        by = detector.DetectorJudge.load(settings, device)
    return Adherence(by, settings, device)
