"""The configs of published models describe networks with the published numbers of parameters."""

from pathlib import Path

import pytest
from preflight_runs import a_run, changed

from directalign.config import ModelConfig
from directalign.preflight.memory import MetaRewards
from directalign.preflight.meta_models import known, meta_model

PUBLISHED = {  # millions of parameters
    "black-forest-labs/FLUX.1-dev": "transformer 11901 text_encoder 123.1 text_encoder_2 4762",
    "stabilityai/stable-diffusion-3.5-large": "transformer 8057 text_encoder_3 4762",
    "stabilityai/stable-diffusion-3.5-medium": "transformer 2243",
    "stabilityai/stable-diffusion-xl-base-1.0": "unet 2567 text_encoder_2 694.7 vae 83.7",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "unet 859.5 text_encoder 123.1 vae 83.7",
    "Qwen/Qwen-Image": "transformer 20430 text_encoder 8292 vae 126.9",
    "Tongyi-MAI/Z-Image-Turbo": "transformer 6155 text_encoder 4022",
    "black-forest-labs/FLUX.2-klein-4B": "transformer 3876 text_encoder 4022",
    "black-forest-labs/FLUX.2-dev": "transformer 32223 text_encoder 24011",
    "baidu/ERNIE-Image": "transformer 8034 text_encoder 3849",
    "lodestones/Chroma1-HD": "transformer 8900",
    "HiDream-ai/HiDream-I1-Full": "transformer 17105 text_encoder_3 4762 text_encoder_4 8030.3",
    "Kwai-Kolors/Kolors-diffusers": "unet 2579.5 text_encoder 6243.6",
    "Alpha-VLLM/Lumina-Image-2.0": "transformer 2610 text_encoder 2614",
}  # fmt: skip
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
CLIP_H = {"processor": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"}
QWEN2_VL = {"processor": "Qwen/Qwen2-VL-7B-Instruct"}
QWEN3_VL = {"processor": "Qwen/Qwen3-VL-8B-Instruct"}
SO400M = "google/siglip-so400m-patch14-384"
PUBLISHED_REWARDS = {
    986.1: ("clip", "xswu/HPSv2/HPS_v2.1_compressed.pt", {}),
    864.9: ("altclip", "BAAI/AltCLIP", {}),
    877.96: ("siglip", SO400M, {}),
    446.2: ("image_reward", "zai-org/ImageReward/ImageReward.pt", {}),
    430.0: ("aesthetic", "owner/name/aesthetic_predictor_v2_5.pth", {"backbone": SO400M}),
    305.0: ("aesthetic", "owner/name/head.pth", {"backbone": "openai/clip-vit-large-patch14"}),
    1105.0: ("mps", "owner/name/mps.safetensors", CLIP_H),
    3754.6: ("vlm", "Qwen/Qwen2.5-VL-3B-Instruct", {}),
    7750.0: ("hpsv3", "MizzenAI/HPSv3/HPSv3.safetensors", QWEN2_VL),
    8186.0: ("hpsv3", "Junjun2333/HPSv3-PlusPlus/hpsv3++.pth", QWEN3_VL),
}


@pytest.mark.parametrize("hub_id", PUBLISHED)
def test_a_published_model_has_its_published_size(hub_id):
    name = next(each["architecture"] for each in known().values() if hub_id in each["hub_ids"])
    args = {"llama": LLAMA} if name == "hidream" else {}
    found = meta_model(ModelConfig(architecture=name, path=hub_id, tune="full", args=args))
    assert found.folder.state == "not downloaded yet" and found.folder.warnings == ()
    words = PUBLISHED[hub_id].split()
    for part, millions in zip(words[::2], words[1::2], strict=True):
        assert found.count(part) / 1e6 == pytest.approx(float(millions), rel=1e-3), part


def rewards_of(folder: Path, **reward: str) -> MetaRewards:
    return MetaRewards(changed(a_run("sd", folder), reward=reward))


@pytest.mark.parametrize("millions", PUBLISHED_REWARDS)
def test_a_published_reward_has_its_published_size(tiny_sd, millions):
    name, path, more = PUBLISHED_REWARDS[millions]
    rewards = rewards_of(tiny_sd, name=name, path=path, **more)
    ((_, modules),) = rewards.modules.values()
    count = sum(parameter.numel() for module in modules for parameter in module.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=2e-3) and rewards.warnings == ()


def test_an_unknown_reward_is_taken_for_the_usual_one_with_a_warning(tiny_sd):
    for name, path in {"siglip": "a/b", "clip": "maker/model/weights.bin"}.items():
        (warning,) = rewards_of(tiny_sd, name=name, path=path).warnings
        expected = f"reward.path: {path} is not downloaded yet and not known here: figures"
        assert warning.startswith(expected)
