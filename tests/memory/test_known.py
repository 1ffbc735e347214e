"""The configs of published models describe networks with the published numbers of parameters."""

from __future__ import annotations

import math

import pytest

from directalign.config import ModelConfig
from directalign.memory.architecture import REFERENCES, known, model_architecture
from directalign.memory.judge_parts import USUAL_MODEL
from directalign.memory.weightless import Part, shapes
from directalign.models import MODELS, model_class
from directalign.rewards import REWARDS

PUBLISHED = {  # millions
    "black-forest-labs/FLUX.1-dev": {
        "transformer": 11_901,
        "text_encoder": 123.1,
        "text_encoder_2": 4_762,
        "vae": 83.8,
    },
    "stabilityai/stable-diffusion-3.5-large": {
        "transformer": 8_057,
        "text_encoder_2": 694.7,
        "text_encoder_3": 4_762,
    },
    "stabilityai/stable-diffusion-3.5-medium": {"transformer": 2_243},
    "stabilityai/stable-diffusion-xl-base-1.0": {
        "unet": 2_567,
        "text_encoder_2": 694.7,
        "vae": 83.7,
    },
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {
        "unet": 859.5,
        "text_encoder": 123.1,
        "vae": 83.7,
    },
    "Qwen/Qwen-Image": {"transformer": 20_430, "text_encoder": 8_292, "vae": 126.9},
    "Tongyi-MAI/Z-Image-Turbo": {"transformer": 6_155, "text_encoder": 4_022},
    "black-forest-labs/FLUX.2-klein-4B": {"transformer": 3_876, "text_encoder": 4_022},
}


@pytest.mark.parametrize("hub_id", PUBLISHED)
def test_a_published_model_has_its_published_size(hub_id: str) -> None:
    family = next(told["architecture"] for told in known().values() if hub_id in told["hub_ids"])
    found = model_architecture(ModelConfig(family=family, path=hub_id))
    assert found.state == "not downloaded yet" and found.doubts == ()
    for part, millions in PUBLISHED[hub_id].items():
        assert found.count(part) / 1e6 == pytest.approx(millions, rel=1e-3), part


PUBLISHED_REWARDS = {  # millions
    "clip_vit_h": 986.1,
    "siglip_so400m": 877.96,
    "siglip2_so400m": 1136.0,
    "image_reward": 446.2,
    "qwen2_5_vl_7b": 8292.2,
    "qwen2_5_vl_3b": 3754.6,
    "qwen2_vl_7b": 8291.4,
    "qwen3_vl_8b": 8767.1,
}


@pytest.mark.parametrize("name", PUBLISHED_REWARDS)
def test_a_published_reward_has_its_published_size(name: str) -> None:
    settings = known()[name]["parts"]["reward"]
    found = sum(
        math.prod(shape) for shape in shapes(Part.of(settings["_class_name"], settings)).values()
    )
    assert found / 1e6 == pytest.approx(PUBLISHED_REWARDS[name], rel=1e-4)


def test_each_file_says_where_it_is_from_and_has_every_part() -> None:
    for name, told in known().items():
        assert told["source"].startswith("https://huggingface.co/") and told["hub_ids"], name
        family = told["architecture"] in MODELS and model_class(told["architecture"])
        assert family is not None or told["architecture"] in REWARDS
        wanted = {"reward"} if not family else {family.part, "vae", *family.text_parts}
        assert set(told["parts"]) == wanted, name


def test_every_family_has_a_model_to_fall_back_on() -> None:
    assert set(REFERENCES) == set(MODELS)
    for family, name in REFERENCES.items():
        assert known()[name]["architecture"] == family
    assert {known()[name]["architecture"] for name in USUAL_MODEL.values()} == {
        "clip",
        "siglip",
        "image_reward",
        "vlm",
    }


def test_an_unknown_hub_id_is_taken_for_the_usual_model_and_says_so() -> None:
    found = model_architecture(ModelConfig(family="sd", path="someone/their-finetune"))
    assert found.count("unet") == 859_520_964
    assert found.doubts == (
        "model.path: someone/their-finetune is not downloaded yet and not known here: figures are those of stable-diffusion-v1-5/stable-diffusion-v1-5",
    )
