"""Every value of the official presets against the flag or line of the released code that sets it.

Sources (github.com/Tencent-Hunyuan/SRPO; read, not copied): F = fastvideo/SRPO.py with
scripts/finetune/SRPO_training_hpsv2.sh, P = the same with SRPO_training_ps.sh, Q =
fastvideo/SRPO_Qwen.py with SRPO_training_qwen.sh (commit 69e8e81).
"""

from collections.abc import Iterator
from typing import Any

import pytest

from directalign.config import RunConfig
from directalign.config.presets import PRESETS

REALISM = ["Natural-lighting", "Detail", "Detailed", "Real"]
FLUX: dict[str, tuple[Any, str]] = {
    "method.name": ("srpo", "F SRPO_train"),
    "method.form": ("relative", "F SRP_cfg: (1 + k) pos - neg"),
    "method.control_phrases.positive": (REALISM, "F get_random_realism_adjective"),
    "method.control_phrases.negative": (
        ["Concept art", "Painting", "Anime", "Flat", "Oil"],
        "F get_random_cg_oily_adjective",
    ),
    "method.control_phrases.order": ("cycle", "F index % len"),
    "method.control_phrases.cycle_start": (1, "F range(init_steps + 1, ...)"),
    "method.branches": ("both", "F gradient_accumulation_steps 2, inversion = i % 2"),
    "method.denoise.k_pos.low_noise": (0.1, "F --discount_pos 0.1 0.25"),
    "method.denoise.k_pos.high_noise": (0.25, "F --discount_pos 0.1 0.25"),
    "method.inversion.k_neg.low_noise": (0.3, "F --discount_inv 0.3 0.01"),
    "method.inversion.k_neg.high_noise": (0.01, "F --discount_inv 0.3 0.01"),
    "method.noise_levels.kind": ("window", "F sigmas_l = linspace(schedule[5], schedule[25], N)"),
    "method.noise_levels.schedule_steps": (50, "F --vis_sampling_step default"),
    "method.noise_levels.schedule_shift": (3.0, "F --shift 3"),
    "method.noise_levels.first": (5, "F --train_timestep default 5 25"),
    "method.noise_levels.last": (25, "F --train_timestep default 5 25"),
    "method.noise_levels.points": (1000, "F --timestep_length 1000"),
    "method.noise_levels.groundtruth_ratio": (0.9, "F --groundtruth_ratio 0.9"),
    "method.noise_levels.edge": (5, "F random.randint(5, timestep_length - 5)"),
    "method.margin": (0.7, "F relu(-outputs + 0.7)"),
    "method.noise.source": ("rollout", "F noise = input_latents_new"),
    "method.noise.scope": ("shared", "F dist.broadcast(input_latents)"),
    "method.image_mapping": ("clamp", "F (image / 2 + 0.5).clamp(0, 1)"),
    "method.embedded_guidance": (3.5, "F guidance=[3.5] of the training call"),
    "method.truncate_timestep": (1000, "F int(sigma * 1000), timesteps / 1000"),
    "rollout.num_inference_steps": (25, "F --sampling_steps 25"),
    "rollout.shift": (3.0, "F --shift 3"),
    "rollout.embedded_guidance": (1.0, "F --train_guidence 1"),
    "rollout.truncate_timestep": (1000, "F run_sample_step: int(sigma * 1000)"),
    "train.learning_rate": (5e-6, "F --learning_rate 5e-6"),
    "train.schedule": ("constant", "F constant_with_warmup, --lr_warmup_steps 0"),
    "train.betas": ([0.9, 0.999], "F AdamW"),
    "train.weight_decay": (1e-4, "F --weight_decay 0.0001"),
    "train.max_grad_norm": (0.1, "F --max_grad_norm 0.1"),
}
PICKSCORE = FLUX | {
    "reward.scale": (5.0, "P logit_scale (100) * cosine / 20"),
    "method.denoise.k_pos.high_noise": (0.5, "P --discount_pos 0.1 0.5"),
    "method.inversion.k_neg.low_noise": (0.6, "P --discount_inv 0.6 0.01"),
    "method.noise_levels.last": (30, "P --train_timestep 5 30"),
    "rollout.embedded_guidance": (2.0, "P --train_guidence 2"),
}
QWEN = FLUX | {
    "reward.scale": (5.0, "Q --reward_model PickScore: logit_scale (100) * cosine / 20"),
    "method.control_phrases.negative": (
        ["Concept art", "Painting", "Anime"],
        "Q get_random_cg_oily_adjective",
    ),
    "method.control_phrases.cycle_start": (0, "Q step = ast, from 0"),
    "method.branches": ("denoise", "Q no inversion"),
    "method.injections": (2, "Q gradient_accumulation_steps 2, a new timestep each"),
    "method.denoise.k_pos.low_noise": (0.0, "Q SRP_cfg(..., 0.00)"),
    "method.denoise.k_pos.high_noise": (0.0, "Q SRP_cfg(..., 0.00)"),
    "method.inversion.k_neg.low_noise": (0.0, "Q no inversion"),
    "method.inversion.k_neg.high_noise": (0.0, "Q no inversion"),
    "method.noise_levels.schedule_shift": (1.0, "Q --shift 1"),
    "method.noise_levels.last": (40, "Q --train_timestep 5 40"),
    "method.noise_levels.points": (100, "Q --timestep_length 100"),
    "method.noise_levels.groundtruth_ratio": (0.6, "Q --groundtruth_ratio 0.6"),
    "method.noise_levels.edge": (2, "Q random.randint(2, timestep_length - 2)"),
    "method.margin": (None, "Q loss = -outputs"),
    "method.discount_shift": (3.0, "Q discount = sd3_time_shift(3, linspace(0, 1, N + 1))"),
    "method.noise.scope": ("fixed", "Q a generator without a seed, made anew at each step"),
    "method.image_mapping": ("min_max", "Q (image - min) / (max - min)"),
    "method.embedded_guidance": (None, "Q guidance=None"),
    "rollout.num_inference_steps": (26, "Q --sampling_steps 26"),
    "rollout.shift": (1.0, "Q --shift 1"),
    "rollout.embedded_guidance": (None, "Q guidance=None"),
    "rollout.cfg_scale": (4.0, "Q run_sample_step(..., 4.0)"),
    "train.learning_rate": (3e-6, "Q --learning_rate 3e-6"),
    "train.max_grad_norm": (50.0, "Q --max_grad_norm 50"),
}


def leaves(section: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


@pytest.mark.parametrize(
    ("preset", "released"),
    [("official_flux", FLUX), ("official_pickscore", PICKSCORE), ("official_qwen", QWEN)],
)
def test_every_value_is_the_released_one(preset, released):
    assert dict(leaves(PRESETS[preset])) == {key: value for key, (value, _) in released.items()}


RIVALS: dict[str, dict[str, Any]] = {
    "refl": {"name": "refl", "last_steps": 11},  # DEFAULT_REFL_LAST_N_STEPS of 25
    "draft_lv": {"name": "draft", "grad_steps": 1, "lv_samples": 3},  # 1 + num_noised_samples 2
    "drtune": {"name": "drtune", "trained_steps": 3, "early_stop": 10},  # stop ratio 0.4 of 25
    "leapalign": {"name": "leapalign", "nested_scale": 0.3, "similarity_floor": 0.1},  # alpha, tau
    "flowbp_sparse": {"name": "flowbp", "trained_steps": 3, "late_bias": 2.0, "rescale": 1.0},
    "flowbp_bridge": {"variant": "bridge", "trained_steps": 5, "nested_scale": 0.1, "rescale": 1.0},
    "flowbp_lagrange": {"variant": "lagrange", "rescale": 0.5, "nested_scale": 0.1},
}
"""Of github.com/RuoyuWang-2077/FlowBP, commit 93b220a, configs/final/flux1 and trainers/flux1."""


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_have_the_settings_that_flowbp_was_compared_with(name):
    """As a recipe gets them, with what the preset leaves to defaults."""
    given = {
        "name": "rival",
        "preset": f"released_{name}",
        "model": {"architecture": "flux", "path": "somewhere"},
        "reward": {"name": "clip", "path": "somewhere"},
        "data": {"prompts": "world"},
        "train": {"num_steps": 300},
    }
    run = RunConfig.model_validate(given)
    method = run.method.model_dump()
    assert {key: method[key] for key in RIVALS[name]} == RIVALS[name]
    assert (run.method.margin, run.method.form) == (0.55, "absolute")
    assert run.method.control_phrases.positive == []
    train, rollout = run.train, run.rollout
    assert (train.learning_rate, train.weight_decay) == (1e-5, 1e-4)
    assert (train.max_grad_norm, train.ema_decay) == (1.0, 0.995)
    assert (rollout.num_inference_steps, rollout.embedded_guidance) == (25, 4.0)
    assert (rollout.shift, rollout.truncate_timestep) == (None, None)
    assert (rollout.height, rollout.width) == (512, 512)
