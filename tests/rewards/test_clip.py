"""CLIP and SigLIP: the cosines that transformers' models and processors give; cleaned prompts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer

from directalign import config
from directalign.methods.objective import build_objective
from directalign.rewards import load_reward
from directalign.rewards.clip import ClipReward
from directalign.types import Batch
from published_layouts import images_drawn
from rewards.cases import scores_of
from tiny_rewards import write_clip, write_open_clip

PROMPTS = ["Realistic photo. a red star on a navy background", "a blue ring or a square"]
IMAGES = images_drawn(2, 48, 40, 1)


@pytest.fixture
def reward(clip_folder):
    return ClipReward.load(str(clip_folder))


@torch.no_grad()
@pytest.mark.parametrize(("name", "length"), [("clip", 16), ("altclip", 77), ("siglip", 12)])
def test_the_score_is_the_cosine_that_transformers_gives(name, length, sections):
    settings = sections(name)
    reward, model = load_reward(settings), AutoModel.from_pretrained(settings.path)
    tokenizer = AutoTokenizer.from_pretrained(settings.path)
    texts = [each.lower() for each in PROMPTS] if name == "siglip" else PROMPTS
    tokens = tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    masked = {} if name == "siglip" else {"attention_mask": tokens["attention_mask"]}
    pixels = reward.preprocessing(IMAGES)
    out = model(pixel_values=pixels, input_ids=tokens["input_ids"], **masked)
    image, text = (F.normalize(each, dim=-1) for each in (out.image_embeds, out.text_embeds))
    assert (reward.encode(IMAGES) - image).abs().max() < 1e-5
    assert (reward.encode_text(PROMPTS) - text).abs().max() < 1e-5
    assert torch.allclose(scores_of(reward, IMAGES, PROMPTS), (image * text).sum(-1), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["", "a red star"])
def test_the_relative_reward_of_an_antonym_pair_is_the_logit_of_clip_iqa(clip_folder, prompt):
    """arXiv 2207.12396, with the prompt, if any, behind both texts."""
    model, tokenizer = (kind.from_pretrained(clip_folder) for kind in (AutoModel, AutoTokenizer))
    reward = ClipReward.load(str(clip_folder), scale=float(model.logit_scale.exp()))
    phrases = config.ControlPhrases(positive=["Good photo"], negative=["Bad photo"])
    settings = config.ObjectiveConfig(form="relative", control_phrases=phrases)
    found = build_objective(reward, settings)(IMAGES, Batch(0, (prompt, prompt))).reward
    texts = [f"{word} photo. {prompt}".strip() for word in ("good", "bad")]
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    logits = model(pixel_values=reward.preprocessing(IMAGES), **tokens).logits_per_image
    torch.testing.assert_close(found.sigmoid(), logits.softmax(-1)[:, 0], atol=1e-5, rtol=1e-5)


def test_siglip_ignores_case_with_any_tokenizer(siglip_folder, tmp_path):
    copy = Path(shutil.copytree(siglip_folder, tmp_path / "copy"))
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"do_lower_case": False}))
    reward = load_reward(config.SiglipConfig(path=str(copy)))
    upper = scores_of(reward, IMAGES, [prompt.upper() for prompt in PROMPTS])
    assert torch.equal(upper, scores_of(reward, IMAGES, PROMPTS))


CLEANED = {
    "\u201cA red star\u201d &amp; it\u2019s \uff32\uff25\uff24": '"a red star" & it\'s red',
    "a &amp;amp; b": "a & b",
    "  A  Red\n\tSTAR ": "a red star",
    "caf\u00c3\u00a9 \u2014 na\u00efve": "caf\u00e9 \u2014 na\u00efve",
    "\ufb01sh &lt;b&gt; &#39;x&#39;": "fish <b> 'x'",
    "e\u0301 \u00c5NGSTR\u00d6M": "\u00e9 \u00e5ngstr\u00f6m",
    "\u00a0a\u3000b\u2003c": "a b c",
    "\u0130stanbul \u00df \u1e9e": "i\u0307stanbul \u00df \u00df",
    "a\u200bb\ufeff\u00ad": "a\u200bb\u00ad",
    "\x1b[31mred\x1b[0m \x07 x": "red x",
}
"""Texts, and what `get_clean_fn("lower")` of open_clip_torch 3.3.0 makes of them."""


def test_prompts_are_cleaned_as_the_makers_do(tmp_path):
    folder = write_clip(tmp_path / "clip")
    pickscore = shutil.copytree(folder, tmp_path / "PickScore_v1")
    weights = write_open_clip(tmp_path / "hps", folder)
    file = {"path": str(weights), "processor": str(folder)}
    table: list[tuple[dict[str, Any], bool]] = [
        ({"path": str(folder)}, True),
        (file, True),
        ({"path": str(pickscore)}, False),
        ({"path": str(pickscore), "clean_text": True}, True),
        (file | {"clean_text": False}, False),
    ]
    for settings, cleaned in table:
        reward: Any = load_reward(config.ClipConfig.model_validate(settings))
        given = list[str]()
        tokenize: Any = reward.tokenizer

        def record(
            texts: list[str], given: list[str] = given, tokenize: Any = tokenize, **named: Any
        ) -> Any:
            given.extend(texts)
            return tokenize(texts, **named)

        reward.tokenizer = record
        reward.encode_text(list(CLEANED))
        assert given == list(CLEANED.values() if cleaned else CLEANED)
    words = ClipReward.load(str(folder)).soft_prompts
    assert words.embedding_of("&quot;A\u2026&quot;").equal(words.embedding_of('"a\u2026"'))
