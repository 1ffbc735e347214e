"""Off-topic prompts: which of the world's they are, what is said of their images, and that a run is held against its own base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from directalign.preflight.checks import check_control_prompts
from tiny_runs import recipe, trained

from directalign import config
from directalign.data.prompts import held_out_captions, train_captions
from directalign.evaluation import image_metrics
from directalign.evaluation.control_prompts import (
    OffTopic,
    off_topic_pairs,
    off_topic_prompts,
    styles_named,
)
from directalign.evaluation.eval_prompts import FIRST_SEED, Pairs
from directalign.evaluation.in_training import Measurer
from directalign.models import load_model
from directalign.rewards import load_reward
from directalign.types import DirectAlignError, Images, PerSample

PHOTO = config.ControlPhrases(
    positive=["Realistic photo", "Natural lighting"], negative=["CG render"]
)


@pytest.fixture
def others(tmp_path: Path) -> Path:
    file = tmp_path / "others.txt"
    file.write_text("a map of a city\na bowl of soup\n")
    return file


def off(run: config.RunConfig, source: str) -> config.RunConfig:
    return run.model_copy(
        update={"evaluate": run.evaluate.model_copy(update={"control_prompts": source})}
    )


def test_the_world_has_held_out_captions_in_styles_that_nobody_wants() -> None:
    prompts = off_topic_prompts("world", PHOTO)
    assert len(prompts) == 3 * 35 and {prompt.split(". ")[0] for prompt in prompts} == {
        "CG render",
        "Oil painting",
        "Anime",
    }
    assert {prompt.split(". ")[1] for prompt in prompts} == set(held_out_captions())
    assert set(prompts).isdisjoint(train_captions())
    assert {
        prompt.split(". ")[0]
        for prompt in off_topic_prompts("world", config.ControlPhrases(positive=["Anime"]))
    } == {
        "Realistic photo",
        "CG render",
        "Oil painting",
    }
    with pytest.raises(
        DirectAlignError, match=r"evaluate\.control_prompts: world: .*names every style"
    ):
        off_topic_prompts(
            "world",
            config.ControlPhrases(
                positive=["Realistic photo", "CG render", "Brush strokes", "Flat cartoon"]
            ),
        )


def test_its_seeds_are_its_own() -> None:
    pairs = off_topic_pairs(["a", "b"], 5)
    assert (
        len(pairs) == 5
        and set(pairs.seeds).isdisjoint(range(FIRST_SEED, 2 * FIRST_SEED + 100))
        and pairs.first(2) == off_topic_pairs(["a", "b"], 2)
    )


def test_style_is_kept_where_the_judge_sees_what_the_prompt_asks_for(
    pipelines: dict[str, Path], prompts: Path
) -> None:
    def judge(images: Images, asked: Sequence[str]) -> Mapping[str, PerSample]:
        everything_is_anime = {
            f"style_{style}": torch.full((len(asked),), float(style == "anime"))
            for style in ("photo", "cg", "painting", "anime")
        }
        return {**everything_is_anime, "content": torch.ones(len(asked))}

    run = off(recipe("flux", pipelines["flux"], prompts), "world")
    images = torch.rand(3, 3, 8, 8)
    watched = OffTopic(run, lambda pairs: images, lambda pairs: images * 0.5)
    each = watched.per_image(images, lambda seen, asked: {"reward": seen.mean((1, 2, 3))}, judge)
    share = sum(prompt.startswith("Anime") for prompt in watched.pairs.prompts) / 3
    found = watched.summary(images, each)
    assert (
        found["off_topic_style_kept"]["value"] == pytest.approx(share)
        and found["off_topic_style_kept"]["n"] == 3
    )
    assert found["off_topic_content"]["value"] == 1.0
    assert found["off_topic_reward"] == pytest.approx(images.mean().item(), abs=1e-6)
    assert found["off_topic_color_drift"] == pytest.approx(
        image_metrics.color_drift(images, images * 0.5)
    )
    assert styles_named(("Oil painting. a red star", "CG render. a ring")) == ("painting", "cg")


def test_before_training_nothing_has_leaked(
    pipelines: dict[str, Path], prompts: Path, others: Path
) -> None:
    run = off(recipe("flux", pipelines["flux"], prompts), str(others))
    found = Measurer(run, load_model(run.model, "cpu"), load_reward(run.reward), None).measure(3)
    assert (
        found["off_topic_color_drift"] < 1e-6
        and "off_topic_reward" in found
        and "off_topic_style_kept" not in found
    )
    moved = Measurer(run, trained(run), load_reward(run.reward), None).measure(3)
    assert (
        moved["off_topic_color_drift"] > 0
        and moved["off_topic_reward"] != found["off_topic_reward"]
    )


def test_a_model_trained_in_full_keeps_its_base_images_from_before(
    pipelines: dict[str, Path], prompts: Path, others: Path
) -> None:
    run = off(recipe("flux", pipelines["flux"], prompts), str(others))
    run = run.model_copy(update={"model": run.model.model_copy(update={"tune": "full"})})
    model = load_model(run.model, "cpu")
    measurer = Measurer(run, model, load_reward(run.reward), None)
    measurer.prepare()
    assert measurer.control_prompts is not None
    kept = measurer.control_prompts.base_images
    with torch.no_grad():
        for parameter in model.denoiser.parameters():
            parameter.mul_(1.2)
    assert measurer.control_prompts.base_images is kept
    assert (
        measurer.measure(3)["off_topic_color_drift"]
        == pytest.approx(image_metrics.color_drift(measurer.control_prompts.images(), kept))
        != 0
    )


def test_as_many_pairs_as_are_measured_during_the_run(
    pipelines: dict[str, Path], prompts: Path, others: Path
) -> None:
    run = off(recipe("flux", pipelines["flux"], prompts), str(others))
    asked: list[Pairs] = []
    watched = OffTopic(
        run,
        lambda pairs: asked.append(pairs) or torch.rand(len(pairs), 3, 8, 8),
        lambda pairs: torch.rand(len(pairs), 3, 8, 8),
    )
    watched.images()
    assert len(asked[0]) == run.evaluate.num_samples_during == 3 and set(asked[0].prompts) == {
        "a map of a city",
        "a bowl of soup",
    }


def test_prompts_that_are_trained_on_are_refused_before_the_run(
    pipelines: dict[str, Path], prompts: Path, others: Path, tmp_path: Path
) -> None:
    run = recipe("flux", pipelines["flux"], prompts)
    assert check_control_prompts(run) == [] and check_control_prompts(off(run, str(others))) == [
        ("off topic", f"2 prompts from {others}")
    ]
    assert check_control_prompts(off(run, "hf:owner/name")) == [
        ("off topic", "hf:owner/name, read when the run starts")
    ]
    others.write_text("a red star\nsoup\n")
    with pytest.raises(
        DirectAlignError,
        match=r"evaluate\.control_prompts: .*1 of its prompts are trained on, first 'a red star'",
    ):
        check_control_prompts(off(run, str(others)))
    with pytest.raises(DirectAlignError, match="no such"):
        check_control_prompts(off(run, str(tmp_path / "none.txt")))
