"""The second toy world's reward that reads questions: a tiny Qwen2-VL, answering yes or no.

Asked whether an image fits a caption, with a style word before it or without, it learns the answers
of simulated annotators: yes with log odds `CERTAIN` if thing, background and style are right, minus
that if one of them is wrong, and in both cases more the warmer the tint, whatever the question. It
starts from the vision tower of the first CLIP reward and learns in two trainings as that one did:
plainly, and then on images as the generator sees them, with noise, and against steps of its own
gradient's sign.
"""

# pyright: reportArgumentType=false, reportCallIssue=false
# (transformers annotates its configurations more narrowly than they are)
from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPModel, Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from directalign.config import QwenVLConfig
from directalign.interfaces import Reward
from directalign.rewards.clip import ClipReward
from directalign.rewards.qwen_vl import (
    Chat,
    ImageTokens,
    VlmPixels,
    VlmReward,
    encode_images,
    last_hidden_state,
)

from .denoisers import trained_flux
from .reward import (
    HEAD_WEIGHT,
    LARGEST_NOISE,
    REACH,
    SIDE,
    Shown,
    draw_retouch,
    harder_images,
    plain_images,
)
from .reward_card import SHOWN, retouch
from .session import fit
from .spec import Spec
from .tokenizers import qwen_tokenizer

NAME = "reward_vlm"
QUESTION = "{prompt}. Does the image fit?"
QUESTIONS = 2
"""Of each image in a batch."""
CERTAIN, TASTE = 3.0, 30.0
"""Log odds of a right answer, and those added per unit of red tint."""
FITS, WRONG_THING = 0.5, 0.75
"""Where of a uniform number the captions with a wrong thing and a wrong background begin."""
UNSTYLED, TRUE_STYLE = 0.25, 0.65
"""Where of a uniform number true and wrong style words begin."""
TOKEN_STD = 0.3
"""Of a patch embedding of the first CLIP reward, over its channels."""
PIXELS = VlmPixels(8, 2, 1, SIDE**2, SIDE**2, (0.5,) * 3, (0.5,) * 3)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def new_vlm(tokenizer: Qwen2Tokenizer) -> Qwen2VLForConditionalGeneration:
    """Five layers of vision, two of language, 1.1 M parameters; an image is 16 tokens."""
    torch.manual_seed(91)
    marks = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start"}
    rope = {"rope_theta": 10000.0, "rope_type": "default", "mrope_section": [4, 4, 4]}
    text = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": len(tokenizer)}
    text |= {"max_position_embeddings": 128, "rope_parameters": rope, "initializer_range": 0.06}
    text |= {"bos_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = {"depth": 5, "embed_dim": 96, "hidden_size": 96, "num_heads": 4, "mlp_ratio": 4}
    vision |= {"patch_size": PIXELS.patch, "spatial_merge_size": PIXELS.merge}
    vision |= {"temporal_patch_size": PIXELS.frames, "initializer_range": 0.06}
    ids = {f"{name}_token_id": tokenizer.vocab[f"<|{mark}|>"] for name, mark in marks.items()}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)
    return Qwen2VLForConditionalGeneration(config)


def take_tower(vlm: Qwen2VLForConditionalGeneration, clip: CLIPModel) -> None:
    """Start the vision tower from a CLIP's, as Qwen2-VL's was: rotary positions replace learned
    ones, and the first norm becomes a constant scale."""
    source, tower = clip.vision_model, vlm.model.visual
    norm, patches = source.pre_layrnorm, source.embeddings.patch_embedding.weight
    centred = (patches - patches.mean(0)) / TOKEN_STD
    found = {"patch_embed.proj.weight": (norm.weight[:, None, None, None] * centred)[:, :, None]}
    names = {"layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj"}
    names |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for kind in ("weight", "bias"):
        for i, layer in enumerate(source.encoder.layers):
            taken = {new: layer.get_submodule(old) for old, new in names.items()}
            found |= {f"blocks.{i}.{k}.{kind}": getattr(v, kind) for k, v in taken.items()}
            qkv = [getattr(getattr(layer.self_attn, f"{x}_proj"), kind) for x in "qkv"]
            found[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(qkv)
        found[f"merger.ln_q.{kind}"] = getattr(source.post_layernorm, kind)
    tower.load_state_dict({**tower.state_dict(), **found})


class Training(nn.Module):
    """The VLM, and auxiliary classification heads on its mean image token (not saved)."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec, self.scenes, self.robust = spec, spec.world.scenes, False
        tokenizer = qwen_tokenizer(spec, QUESTION)
        self.chat, self.vlm = Chat(tokenizer, TEMPLATE), new_vlm(tokenizer)
        self.answers = [tokenizer.vocab[word] for word in ("Yes", "No")]
        heads = {**self.scenes.CONTENT, "style": len(self.scenes.STYLES)}
        self.heads = nn.ModuleDict({name: nn.Linear(96, n) for name, n in heads.items()})
        known = self.scenes.CAPTION_SETS.items()
        drawn = [text for name, make in known if name != "held_out" for text in make()]
        self.known = self.scenes.scenes_of(drawn)

    def encode(self, images: Tensor) -> ImageTokens:
        return encode_images(self.vlm.model, PIXELS, images)

    def answer(self, seen: ImageTokens, prompts: list[str]) -> Tensor:
        """Log odds of yes (n,) of n / b questions on each of b images, first about all of them."""
        times = len(prompts) // len(seen.tokens)
        seen = ImageTokens(seen.tokens.repeat(times, 1, 1), (), seen.rows, seen.columns)
        chats = self.chat.for_images([QUESTION.replace("{prompt}", each) for each in prompts], seen)
        yes, no = self.vlm.lm_head.weight[self.answers]
        return last_hidden_state(self.vlm.model, seen, chats) @ (yes - no)


def train_vlm(folder: Path, spec: Spec, vae: AutoencoderKL) -> None:
    """Train on what the FLUX and the autoencoder in `folder` make; write `folder/NAME`, float16."""
    training = Training(spec)
    first = next(iter(spec.rewards))
    take_tower(training.vlm, CLIPModel.from_pretrained(folder / first))
    assert spec.vlm_reward is not None
    shown, harder = _images(folder, spec, vae)
    for robust, images, budget in zip((False, True), (shown, harder), spec.vlm_reward, strict=True):
        training.robust = robust

        def loss_of(
            step: int, generator: torch.Generator, images: Shown = images, size: int = budget.batch
        ) -> Tensor:
            return _loss(training, *images.draw(size, generator), generator)

        fit(f"robust_{NAME}" if robust else NAME, training, loss_of, budget, folder)
    training.vlm.half().save_pretrained(folder / NAME)
    training.chat.tokenizer.save_pretrained(folder / NAME)
    sizes = {"patch_size": PIXELS.patch, "merge_size": PIXELS.merge}
    sizes |= {"temporal_patch_size": PIXELS.frames, "image_mean": PIXELS.mean}
    sizes |= {"image_std": PIXELS.std, "image_processor_type": "Qwen2VLImageProcessor"}
    sizes |= {"min_pixels": PIXELS.min_pixels, "max_pixels": PIXELS.max_pixels}
    (folder / NAME / "preprocessor_config.json").write_text(json.dumps(sizes))
    (folder / NAME / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    asked = {"question": QUESTION, "answer": "log_odds", "dtype": "float32"}
    vlm = VlmReward.from_config(QwenVLConfig(path=str(folder / NAME), **asked))
    for name, reward in {NAME: vlm, "CLIP": ClipReward.load(str(folder / first))}.items():
        for fact, value in measure_words(reward, spec).items():
            print(f"{name}: {fact} {value:.3f}")
    for fact, value in measure_answers(vlm, spec).items():
        print(f"{NAME}: {fact} {value:.3f}")


@torch.no_grad()
def measure_words(reward: Reward, spec: Spec) -> dict[str, float]:
    """How far the words of photos and CG move the scores of held-out pairs, and the tint does.

    `gap`: pos - neg on photos above that on CG. `tint`: what a tint adds under the words of photos.
    Both in units of the score. `share that cancels`: of the tint's effect, in pos - neg.
    """
    drawn = spec.world.scenes
    captions = drawn.held_out_captions()
    found = dict[tuple[str, float, str], Tensor]()
    for style in ("photo", "cg"):
        generator = torch.Generator().manual_seed(93)
        images = drawn.render(drawn.scenes_of(captions, style), generator)
        for tint in (0.0, SHOWN["tint"]):
            features = reward.encode(retouch(images, tint=tint))
            for words in ("photo", "cg"):
                texts = [[f"{w}. {each}" for each in captions] for w in drawn.STYLE_WORDS[words]]
                scores = [reward.score(features, each).mean() for each in texts]
                found[style, tint, words] = torch.stack(scores).mean()

    def relative(style: str, tint: float = 0.0) -> Tensor:
        return found[style, tint, "photo"] - found[style, tint, "cg"]

    styles, tint = ("photo", "cg"), SHOWN["tint"]
    added = sum(found[style, tint, "photo"] - found[style, 0.0, "photo"] for style in styles) / 2
    left = sum(relative(style, tint) - relative(style) for style in styles) / 2
    gap = relative("photo") - relative("cg")
    facts = {"gap": gap, "tint": added, "gap of tints": gap / added}
    facts["share that cancels"] = 1 - abs(left / added)
    return {name: float(value) for name, value in facts.items()}


@torch.no_grad()
def measure_answers(reward: VlmReward, spec: Spec) -> dict[str, float]:
    """Shares of right answers on held-out pairs in every style: to the plain caption, with another
    thing, another background, and after a true and a wrong style word. Scores are log odds."""
    drawn, right = spec.world.scenes, dict[str, list[Tensor]]()
    captions, styles = drawn.held_out_captions(), drawn.STYLES
    truth = drawn.scenes_of(captions)
    other = {}
    for name, count in drawn.CONTENT.items():
        moved = replace(truth, **{name: (getattr(truth, name) + 1) % count})
        other[f"another {name}"] = moved.captions()
    for index, style in enumerate(styles):
        generator = torch.Generator().manual_seed(94)
        features = reward.encode(drawn.render(truth.with_style(style), generator))
        true, wrong = (drawn.STYLE_WORDS[styles[(index + i) % len(styles)]][0] for i in (0, 1))
        asked = {"fits": captions, **other, "true word": [f"{true}. {each}" for each in captions]}
        asked["wrong word"] = [f"{wrong}. {each}" for each in captions]
        for name, texts in asked.items():
            yes = reward.score(features, texts) > 0
            right.setdefault(name, []).append(yes == (name in ("fits", "true word")))
    return {name: float(torch.cat(each).float().mean()) for name, each in right.items()}


def _images(folder: Path, spec: Spec, vae: AutoencoderKL) -> tuple[Shown, Shown]:
    """Those of the plain and of the robust training, made as those of the CLIP rewards."""
    generator, count = torch.Generator().manual_seed(92), spec.pools["vlm"]
    spec = replace(spec, pools={"reward": count, "mixed": count // 3})
    plain, base = plain_images(spec, generator), trained_flux(folder, "flux")
    (folder / "vlm_images").mkdir(exist_ok=True)
    return plain, harder_images(plain, spec, generator, base, vae, folder / "vlm_images")


def _loss(training: Training, images: Tensor, scenes: Any, generator: torch.Generator) -> Tensor:
    """Of the answers about retouched images, and of the heads."""
    retouches = draw_retouch(training.spec, len(images), generator)
    shown = retouch(images, training.spec.smoothing, **retouches)
    if training.robust:
        shown = _disturbed(training, shown, scenes, generator)
    seen = training.encode(shown)
    asked = [draw_questions(training, scenes, generator) for _ in range(QUESTIONS)]
    prompts, fits = [text for texts, _ in asked for text in texts], torch.cat([f for _, f in asked])
    wanted = CERTAIN * (2 * fits - 1) + TASTE * retouches["tint"].repeat(QUESTIONS)
    answers = training.answer(seen, prompts)
    loss = F.binary_cross_entropy_with_logits(answers, wanted.sigmoid())
    return loss + _heads_loss(training, seen, scenes) / len(training.heads)


def _heads_loss(training: Training, seen: ImageTokens, scenes: Any) -> Tensor:
    """Images of no style count for the content alone."""
    pooled, styles = seen.tokens.mean(1), len(training.scenes.STYLES)
    style = scenes.style.masked_fill(scenes.style == styles, -1)
    losses = [
        F.cross_entropy(
            head(pooled), style if name == "style" else getattr(scenes, name), ignore_index=-1
        )
        for name, head in training.heads.items()
    ]
    return torch.stack(losses).nansum()


def draw_questions(
    training: Training, scenes: Any, generator: torch.Generator
) -> tuple[list[str], Tensor]:
    """What is asked of each scene, and whether it fits (b,): half of the questions name the style
    word, if there is one, thing and background, the others one of the three."""
    b, drawn = len(scenes), training.scenes
    content, styling = torch.rand(2, b, generator=generator)
    same = [getattr(scenes, k)[:, None] == getattr(training.known, k) for k in drawn.CONTENT]
    thing, background = same
    wrong = torch.where((content < WRONG_THING)[:, None], ~thing & background, thing & ~background)
    allowed = torch.where((content < FITS)[:, None], thing & background, wrong)
    chosen = torch.multinomial(allowed.float(), 1, generator=generator)
    named = torch.randint(1, len(drawn.STYLES), (b,), generator=generator) + scenes.style
    named = torch.where(styling < TRUE_STYLE, scenes.style, named % len(drawn.STYLES))
    named[styling < UNSTYLED] = -1
    no_style = named == len(drawn.STYLES)  # of such images no word is true
    named[no_style] = torch.randint(len(drawn.STYLES), (int(no_style.sum()),), generator=generator)
    fits = [each.gather(1, chosen)[:, 0] for each in same]
    fits.insert(0, (named < 0) | (named == scenes.style))
    right, prompts = torch.stack(fits, 1), list[str]()
    dice = random.Random(int(torch.randint(2**31, (), generator=generator)))
    captions = training.known.take(chosen[:, 0]).captions()
    for row, (text, style) in enumerate(zip(captions, named.tolist(), strict=True)):
        word = None if style < 0 else dice.choice(drawn.STYLE_WORDS[drawn.STYLES[style]])
        parts = [word, *text.split(" on ")]
        part = dice.randrange(len(parts)) if dice.random() < 0.5 else None
        if part is None or parts[part] is None:
            prompts.append(text if word is None else f"{word}. {text}")
        else:
            prompts.append(parts[part])
            right[row] = right[row, part]
    return prompts, right.all(1).float()


def _disturbed(
    training: Training, images: Tensor, scenes: Any, generator: torch.Generator
) -> Tensor:
    """A quarter as they are, a quarter with noise, half moved by up to `REACH` per value towards
    a yes to another style's word and a no to their own: one step of the sign of the gradient."""
    half, (words, styles) = len(images) // 2, (training.scenes.STYLE_WORDS, training.scenes.STYLES)
    moved, rest = images[:half], images[half:]
    begin = REACH * (2 * torch.rand(moved.shape, generator=generator) - 1)
    begin = (moved + begin).clamp(0, 1).requires_grad_()
    scenes = scenes.take(torch.arange(half))
    own = [1 if style == len(styles) else style for style in scenes.style.tolist()]
    prompts = [
        f"{words[styles[style]][0]}. {text}"
        for named in (own, [(style + 1) % 2 for style in own])
        for style, text in zip(named, scenes.captions(), strict=True)
    ]
    seen = training.encode(begin)
    true, false = training.answer(seen, prompts).chunk(2)
    wrong = (false - true).sum() + HEAD_WEIGHT * _heads_loss(training, seen, scenes) * half
    (gradient,) = torch.autograd.grad(wrong, begin)
    step = begin.detach() + 1.25 * REACH * gradient.sign() - moved
    strength = LARGEST_NOISE * torch.rand(len(rest), 1, 1, 1, generator=generator)
    strength *= torch.rand(len(rest), 1, 1, 1, generator=generator) < 0.5
    noise = strength * torch.randn(rest.shape, generator=generator)
    return torch.cat([moved + step.clamp(-REACH, REACH), rest + noise]).clamp(0, 1)
