"""A vision-language model as a judge: the probability that it answers yes to a question that holds control phrase and prompt.

score = scale · P(yes),  P(yes) = softmax over the logits of `yes` and `no` at the place of the answer; in [0, scale].
Qwen2-VL, Qwen2.5-VL and Qwen3-VL (transformers folders or hub ids); frozen, with the gradient through preprocessing, vision tower and
language model to the pixels. A sure model gives hardly any gradient, P'(z) = P (1 − P): at P = .999 a thousandth of its logit's. Take
`answer: log_odds` then, score = scale · (logit of yes − logit of no), unbounded, mostly within −10 to 10, and the same order of images.
Left out: what a model would write beyond its first token, and thinking aloud before the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import config, hub
from ..types import DirectAlignError, Images, PerSample
from . import folders
from .published import locate
from .recomputing import recompute
from .vlm_chat import Chat, read_chat
from .vlm_model import SETTINGS, Seen, check_fits, check_weights, frozen, kind_of, read, see, settings_folder
from .vlm_pixels import VlmPixels


class VlmReward:
    """A frozen Qwen VL (`interfaces.Reward`); features are the image's tokens, scores lie in [0, scale], or are log-odds."""

    name = "vlm"
    reads_prompt = True
    differentiable = True

    def __init__(self, model: PreTrainedModel, chat: Chat, pixels: VlmPixels, settings: config.Vlm, answers: tuple[int, int]) -> None:
        self.model, self.chat, self.pixels, self.settings, self.answers = model, chat, pixels, settings, answers

    def encode(self, images: Images) -> Seen:
        """Images (b, 3, h, w) in [0, 1], any size, through the vision tower."""
        return see(self.model.model, self.pixels, images)

    def score(self, features: Seen, prompts: Sequence[str]) -> PerSample:
        """Of each image, how surely the answer to the question with its prompt is yes."""
        assert len(prompts) == len(features.tokens), f"{len(prompts)} prompts for {len(features.tokens)} images"
        log_odds = self._log_odds(features, [self.settings.question.replace("{prompt}", prompt) for prompt in prompts])
        return self.settings.scale * (log_odds if self.settings.answer == "log_odds" else log_odds.sigmoid())

    def _log_odds(self, features: Seen, questions: list[str]) -> PerSample:
        """Logit of yes minus logit of no: of the vocabulary's rows only these two are computed, in float32 or better."""
        asked = self.chat.ask(questions, features.tokens.shape[1], features.tokens.device)
        hidden = read(self.model.model, features, asked)
        yes, no = self.model.lm_head.weight[list(self.answers)].to(torch.promote_types(hidden.dtype, torch.float32))
        return hidden.to(yes.dtype) @ yes - hidden.to(no.dtype) @ no


def load(settings: config.Vlm, device: torch.device | str = "cpu", key: str = "reward") -> VlmReward:
    """The reward of a recipe's section, its weights in `settings.dtype`; `key` is where it stands, for errors."""
    folder = locate(settings.path, f"{key}.path", (*SETTINGS, *folders.WEIGHTS))
    kind = check_weights(folder, f"{key}.path")
    chat, pixels, answers = _reader(settings, folder if settings.processor is None else locate(settings.processor, f"{key}.processor", SETTINGS), key)
    model = folders.load_model(kind, folder, f"{key}.path", getattr(torch, settings.dtype))
    check_fits(model.config, pixels, chat, _blamed(settings, key))
    frozen(model, device)
    if settings.gradient_checkpointing:
        recompute(model.model)
    return VlmReward(model, chat, pixels, settings, answers)


def check(settings: config.Vlm, key: str = "reward", online: bool = False) -> None:
    """Files, kind of model, image settings, template and answers; of the weights only that they are there and whole, where they are here."""
    folder = settings_folder(settings.path, f"{key}.path", online)
    if folder is not None:
        (kind_of if hub.is_hub_id(settings.path) else check_weights)(folder, f"{key}.path")
    reader = folder if settings.processor is None else settings_folder(settings.processor, f"{key}.processor", online)
    if reader is not None:
        _reader(settings, reader, key)


def one_token(tokenizer: PreTrainedTokenizerBase, answer: str, key: str) -> int:
    """The token of an answer. Raises DirectAlignError where it takes none or several."""
    ids = list(tokenizer(answer, add_special_tokens=False)["input_ids"])
    if len(ids) != 1:
        raise DirectAlignError(f"{key}: {answer!r} is {len(ids)} tokens of this model, and an answer is one: give another word, or other capitals")
    return ids[0]


def _reader(settings: config.Vlm, folder: Path, key: str) -> tuple[Chat, VlmPixels, tuple[int, int]]:
    """Chat, preprocessing and the two answers' tokens of a folder."""
    blamed = _blamed(settings, key)
    pixels = VlmPixels.read(folder, blamed).bounded(settings.max_pixels)
    tokenizer, template = read_chat(folder, blamed)
    answers = one_token(tokenizer, settings.yes, f"{key}.yes"), one_token(tokenizer, settings.no, f"{key}.no")
    if answers[0] == answers[1]:
        raise DirectAlignError(f"{key}.no: {settings.no!r} is the same token as {key}.yes: give another answer")
    return Chat(tokenizer, template), pixels, answers


def _blamed(settings: config.Vlm, key: str) -> str:
    return f"{key}.path" if settings.processor is None else f"{key}.processor"
