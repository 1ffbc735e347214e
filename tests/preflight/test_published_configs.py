"""The configs of published models describe networks with the published numbers of parameters."""

# ruff: noqa: F811
from __future__ import annotations

import pytest
from preflight_runs import a_run

from directalign.config import ModelConfig, RunConfig
from directalign.models import MODELS, model_class
from directalign.preflight.memory import MetaRewards
from directalign.preflight.meta_models import USUAL, known, meta_model
from directalign.rewards import REWARDS
from tiny import tiny_sd  # noqa: F401 (fixture)

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
PUBLISHED_REWARDS = {
    986.1: {"name": "clip", "path": "xswu/HPSv2/HPS_v2.1_compressed.pt"},
    877.96: {"name": "siglip", "path": "google/siglip-so400m-patch14-384"},
    446.2: {"name": "image_reward", "path": "zai-org/ImageReward/ImageReward.pt"},
    430.0: {
        "name": "aesthetic",
        "path": "owner/name/aesthetic_predictor_v2_5.pth",
        "backbone": "google/siglip-so400m-patch14-384",
    },
    305.0: {
        "name": "aesthetic",
        "path": "owner/name/head.pth",
        "backbone": "openai/clip-vit-large-patch14",
    },
    1105.0: {
        "name": "mps",
        "path": "owner/name/mps.safetensors",
        "processor": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    },
    3754.6: {"name": "vlm", "path": "Qwen/Qwen2.5-VL-3B-Instruct"},
    7750.0: {
        "name": "hpsv3",
        "path": "MizzenAI/HPSv3/HPSv3.safetensors",
        "processor": "Qwen/Qwen2-VL-7B-Instruct",
    },
}


@pytest.mark.parametrize("hub_id", PUBLISHED)
def test_a_published_model_has_its_published_size(hub_id: str) -> None:
    name = next(each["architecture"] for each in known().values() if hub_id in each["hub_ids"])
    found = meta_model(ModelConfig(architecture=name, path=hub_id, tune="full"))
    assert found.folder.state == "not downloaded yet" and found.folder.warnings == ()
    for part, millions in PUBLISHED[hub_id].items():
        assert found.count(part) / 1e6 == pytest.approx(millions, rel=1e-3), part


@pytest.mark.parametrize("millions", PUBLISHED_REWARDS)
def test_a_published_reward_has_its_published_size(tiny_sd, millions: float) -> None:
    judges = MetaRewards(
        RunConfig.model_validate(
            a_run("sd", tiny_sd).model_dump() | {"reward": PUBLISHED_REWARDS[millions]}
        )
    )
    ((_, modules),) = judges.modules.values()
    count = sum(parameter.numel() for module in modules for parameter in module.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=2e-3) and judges.warnings == ()


@pytest.mark.parametrize(
    "reward",
    [{"name": "siglip", "path": "a/b"}, {"name": "clip", "path": "maker/model/weights.bin"}],
    ids=str,
)
def test_an_unknown_reward_is_taken_for_the_usual_one_with_a_warning(
    tiny_sd, reward: dict[str, str]
) -> None:
    (warning,) = MetaRewards(
        RunConfig.model_validate(a_run("sd", tiny_sd).model_dump() | {"reward": reward})
    ).warnings
    expected = f"reward.path: {reward['path']} is not downloaded yet and not known here: figures"
    assert warning.startswith(expected)


def test_each_file_says_where_it_is_from_and_has_every_part() -> None:
    for name, each in known().items():
        assert each["source"].startswith("https://huggingface.co/") and each["hub_ids"], name
        is_model = each["architecture"] in MODELS
        assert is_model or each["architecture"] in REWARDS
        parts = {model_class(each["architecture"]).part, "vae"} if is_model else {"reward"}
        assert set(each["parts"]) >= parts, name
    assert set(USUAL.values()) <= set(known())
