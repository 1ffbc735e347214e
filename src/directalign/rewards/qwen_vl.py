"""A vision-language model as a reward: its probability of answering yes about image and prompt.

score = scale · P(yes), where P(yes) = softmax over the logits of `yes` and `no` at the first answer
token; in [0, scale]. Qwen2-VL, Qwen2.5-VL and Qwen3-VL (transformers folders or hub ids), frozen,
with the gradient through preprocessing, vision tower and language model to the pixels. Where the
model is certain the gradient vanishes, P'(z) = P (1 − P): at P = .999 it is a thousandth of the
logit's. `answer: log_odds` gives score = scale · (logit of yes − logit of no): unbounded, mostly
within −10 to 10, with the same ranking of images. Not supported: text beyond the first token, and
reasoning before the answer.

`encode_images` runs the vision tower once per image; `last_hidden_state` runs the language model
on a chat around those image tokens. A chat's user turn is one image and one text, in the model's
own template. Image tokens get positions (time, row, column) that start where the text before them
ends; the text after continues behind the image's longer side (multimodal rotary positions).
Shorter chats are padded on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Bool, Float, Int
from jinja2 import TemplateError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .. import config
from ..errors import first_line
from ..io import hub
from ..io.image_settings import VlmPixels
from ..types import DirectAlignError, Images, PerSample
from . import weights as files
from .common import BaseReward, Device, read_json, recompute


class VlmReward(BaseReward):
    """A frozen Qwen VL (`interfaces.Reward`); features are image tokens.

    Scores lie in [0, scale], or are log-odds.
    """

    name = "vlm"

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        chat: Chat,
        pixels: VlmPixels,
        settings: config.QwenVLConfig,
        answers: tuple[int, int],
    ) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self.chat, self.pixels, self.settings, self.answers = chat, pixels, settings, answers

    @classmethod
    def _load(cls, settings: config.QwenVLConfig, device: Device, key: str) -> VlmReward:
        folder = files.locate(settings.path, f"{key}.path", (*SETTINGS, *files.FOLDER_WEIGHTS))
        kind = files.class_of(folder, f"{key}.path", *KINDS.values())
        files.check_folder(folder, f"{key}.path", kind)
        reader = files.reader_folder(settings, folder, key, True, SETTINGS)
        assert reader is not None
        chat, pixels, answers = _reader(settings, reader, key)
        model: Any = files.load_model(kind, folder, f"{key}.path", getattr(torch, settings.dtype))
        check_fits(model.config, pixels, chat, files.processor_key(settings, key))
        recompute(model.model, settings.gradient_checkpointing)
        return cls(model.to(device), chat, pixels, settings, answers)

    @classmethod
    def meta(cls, settings: config.QwenVLConfig, key: str, configs: Any) -> VlmReward:
        folder = configs.folder(settings.path)
        kind, found = meta_config(settings.path, f"{key}.path", configs)
        model = kind(kind.config_class.from_dict(found)).to(getattr(torch, settings.dtype))
        recompute(model.model, settings.gradient_checkpointing)
        if settings.processor is not None:
            folder = configs.folder(settings.processor, "preprocessor_config.json")
        pixels = VlmPixels.of(configs.image_settings(folder), found, f"{key}.path")
        pixels = pixels.bounded(settings.max_pixels)
        return cls(model, Chat(configs.tokenizer(), ""), pixels, settings, (0, 1))

    @classmethod
    def _check(cls, settings: config.QwenVLConfig, key: str, online: bool) -> None:
        folder = files.locate_offline(settings.path, f"{key}.path", SETTINGS, online)
        if folder is not None:
            kind = files.class_of(folder, f"{key}.path", *KINDS.values())
            if not hub.is_hub_id(settings.path):
                files.check_folder(folder, f"{key}.path", kind)
        reader = files.reader_folder(settings, folder, key, online, SETTINGS)
        if reader is not None:
            _reader(settings, reader, key)

    def encode(self, images: Images) -> ImageTokens:
        """Images (b, 3, h, w) in [0, 1], any size, through the vision tower."""
        return encode_images(self.model.model, self.pixels, images)

    def score(self, features: ImageTokens, prompts: Sequence[str]) -> PerSample:
        """scale · P(yes) or scale · log-odds (b,) of the question about image and prompt."""
        questions = [self.settings.question.replace("{prompt}", prompt) for prompt in prompts]
        chats = self.chat.for_images(questions, features)
        hidden = last_hidden_state(self.model.model, features, chats)
        # Of the vocabulary's rows only these two are multiplied, in float32 or wider.
        yes, no = self.model.lm_head.weight[list(self.answers)].to(
            torch.promote_types(hidden.dtype, torch.float32)
        )
        log_odds = hidden.to(yes.dtype) @ yes - hidden.to(no.dtype) @ no
        return self.settings.scale * (
            log_odds if self.settings.answer == "log_odds" else log_odds.sigmoid()
        )


def one_token(tokenizer: transformers.PreTrainedTokenizerBase, answer: str, key: str) -> int:
    """The token id of an answer. Raises DirectAlignError if it is not exactly one token."""
    ids = list(tokenizer(answer, add_special_tokens=False)["input_ids"])
    if len(ids) != 1:
        raise DirectAlignError(
            f"{key}: {answer!r} is {len(ids)} tokens of this model, and an answer is one: give "
            "another word, or other capitals"
        )
    return ids[0]


def _reader(
    settings: config.QwenVLConfig, folder: Path, key: str
) -> tuple[Chat, VlmPixels, tuple[int, int]]:
    """Chat, preprocessing and the two answers' tokens of a folder."""
    reader_key = files.processor_key(settings, key)
    pixels = VlmPixels.read(folder, reader_key).bounded(settings.max_pixels)
    tokenizer, template = read_chat(folder, reader_key)
    yes = one_token(tokenizer, settings.yes, f"{key}.yes")
    no = one_token(tokenizer, settings.no, f"{key}.no")
    if yes == no:
        raise DirectAlignError(
            f"{key}.no: {settings.no!r} is the same token as {key}.yes: give another answer"
        )
    return Chat(tokenizer, template), pixels, (yes, no)


KINDS = {
    "qwen2_vl": transformers.Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": transformers.Qwen2_5_VLForConditionalGeneration,
    "qwen3_vl": transformers.Qwen3VLForConditionalGeneration,
}
SETTINGS = (*files.FOLDER_SETTINGS, "chat_template*", "added_tokens.json")
"""Files fetched from a repository beside its weights."""


@dataclass(frozen=True)
class ImageTokens:
    """Image tokens (b, n, d) of equally large images, in a grid of `rows` x `columns` = n.

    `deeper` are Qwen3-VL's tokens for the first layers of its language model.
    """

    tokens: Float[Tensor, "b n d"]
    deeper: tuple[Float[Tensor, "b n d"], ...]
    rows: int
    columns: int


def encode_images(backbone: Any, pixels: VlmPixels, images: Images) -> ImageTokens:
    """The vision tower of a model without its head, on images (b, 3, h, w) in [0, 1], any size."""
    rows, columns = pixels.grid(images.shape[-2], images.shape[-1])
    grid = torch.tensor([[1, rows, columns]] * len(images), device=images.device)
    out = backbone.visual(pixels(images).to(backbone.dtype), grid_thw=grid)
    if isinstance(out, tuple):  # a tensor or a pair before transformers 5
        tokens, deeper = out
    else:
        tokens = out if isinstance(out, Tensor) else out.pooler_output
        deeper = getattr(out, "deepstack_features", ())
    each = (len(images), -1, tokens.shape[-1])
    deeper = tuple(more.reshape(each) for more in deeper)
    return ImageTokens(tokens.reshape(each), deeper, rows // pixels.merge, columns // pixels.merge)


def last_hidden_state(
    backbone: Any, image: ImageTokens, chats: ChatBatch, positions: Tensor | None = None
) -> Float[Tensor, "b d"]:
    """Hidden state (b, d) of the last token of each chat.

    `positions` (3, b, length); None takes multimodal rotary positions.
    """
    embedded = backbone.get_input_embeddings()(chats.ids)
    embedded = embedded.masked_scatter(chats.of_image[..., None], image.tokens.to(embedded.dtype))
    deeper: dict[str, Any] = {}
    if image.deeper:
        deeper["visual_pos_masks"] = chats.of_image
        deeper["deepstack_visual_embeds"] = [more.flatten(0, 1) for more in image.deeper]
    if positions is None:
        positions = rotary_positions(chats, image.rows, image.columns)
    hidden = backbone.language_model(
        inputs_embeds=embedded,
        attention_mask=chats.attended,
        position_ids=positions,
        use_cache=False,
        **deeper,
    ).last_hidden_state
    return hidden[torch.arange(len(hidden), device=hidden.device), chats.attended.sum(1) - 1]


def meta_config(path: str, key: str, configs: Any) -> tuple[Any, dict[str, Any]]:
    """Class and config.json of a model by folder or hub id; `configs` as in `BaseReward.meta`."""
    folder = configs.folder(path)
    if folder is not None:
        return files.class_of(folder, key, *KINDS.values()), read_json(folder / "config.json", key)
    found = configs.published(path, key, "vlm")
    return next(kind for kind in KINDS.values() if kind.__name__ == found["_class_name"]), found


def check_fits(model_config: Any, pixels: VlmPixels, chat: Chat, key: str) -> None:
    """Refuse image settings or a vocabulary that belong to another model."""
    vision = model_config.vision_config
    wanted = (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
    if (pixels.patch, pixels.merge, pixels.frames) != wanted:
        raise DirectAlignError(
            f"{key}: its image settings make patches of {pixels.patch}, merged by {pixels.merge}, "
            f"of {pixels.frames} frames, and the model reads {wanted[0]}, {wanted[1]}, "
            f"{wanted[2]}; name its own processor"
        )
    known = model_config.get_text_config().vocab_size
    if len(chat.tokenizer) > known or chat.image_id != model_config.image_token_id:
        raise DirectAlignError(
            f"{key}: its tokenizer has {len(chat.tokenizer)} tokens and the model knows {known}, "
            "or other ones; name its own processor"
        )


IMAGE = "<|image_pad|>"
"""Placeholder of an image, or of one of its tokens, in all models of this kind."""


@dataclass(frozen=True)
class ChatBatch:
    """Token ids (b, length) of chats with equally large images.

    `attended` is 0 for padding, else 1.
    """

    ids: Int[Tensor, "b length"]
    attended: Int[Tensor, "b length"]
    of_image: Bool[Tensor, "b length"]


class Chat:
    """Tokenizer and template; a chat ends after the last `end`, or before the answer if None."""

    def __init__(
        self, tokenizer: transformers.PreTrainedTokenizerBase, template: str, end: str | None = None
    ) -> None:
        self.tokenizer, self.template, self.end = tokenizer, template, end
        image_id: Any = tokenizer.convert_tokens_to_ids(IMAGE)
        self.image_id = int(image_id)

    def for_images(self, texts: Sequence[str], image: ImageTokens) -> ChatBatch:
        """One chat per text, each with one of the encoded images.

        Raises DirectAlignError for a text that contains the image token.
        """
        count, image_tokens = image.tokens.shape[:2]
        assert len(texts) == count, f"{len(texts)} prompts for {count} images"
        rows = list[Tensor]()
        for row in map(self._ids, texts):
            start = row.index(self.image_id)
            row[start : start + 1] = [self.image_id] * image_tokens
            rows.append(torch.tensor(row))
        pad: Any = self.tokenizer.pad_token_id or 0
        ids = pad_sequence(rows, batch_first=True, padding_value=pad)
        attended = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        device = image.tokens.device
        return ChatBatch(ids.to(device), attended.to(device), (ids == self.image_id).to(device))

    def render(self, text: str) -> str:
        """The chat as text, with one token for the image."""
        content = [{"type": "image"}, {"type": "text", "text": text}]
        chat: Any = [{"role": "user", "content": content}]
        rendered: Any = self.tokenizer.apply_chat_template(
            chat, chat_template=self.template, tokenize=False, add_generation_prompt=True
        )
        if self.end is None:
            return rendered
        return rendered[: rendered.rindex(self.end) + len(self.end)]

    def _ids(self, text: str) -> list[int]:
        ids = list(self.tokenizer(self.render(text))["input_ids"])
        if ids.count(self.image_id) != 1:
            raise DirectAlignError(
                f"the prompt {text!r} holds {IMAGE}, the placeholder of the image: remove it"
            )
        return ids


def read_chat(folder: Path, key: str) -> tuple[transformers.PreTrainedTokenizerBase, str]:
    """Tokenizer and chat template of a folder: the processor's template, else the tokenizer's.

    Raises DirectAlignError: either is missing or unreadable, or has no placeholder of an image.
    """
    tokenizer = files.read_tokenizer(folder, key)
    file, template = folder / "chat_template.json", tokenizer.chat_template
    if file.exists():
        template = read_json(file, key).get("chat_template")
    if not isinstance(template, str):
        raise DirectAlignError(
            f"{key}: {folder}: chat_template.json (or .jinja) is missing or empty; copy it from "
            "the original checkpoint"
        )
    if IMAGE not in tokenizer.get_vocab():
        raise DirectAlignError(
            f"{key}: {folder}: its tokenizer has no {IMAGE}; take the tokenizer of a Qwen VL"
        )
    try:
        count = Chat(tokenizer, template).render("").count(IMAGE)
    except TemplateError as error:
        raise DirectAlignError(
            f"{key}: {folder}: its chat template cannot be used ({first_line(error)}); copy "
            "it from the original checkpoint"
        ) from error
    if count != 1:
        raise DirectAlignError(
            f"{key}: {folder}: its chat template shows no image; take the chat_template.json of a "
            "Qwen VL"
        )
    return tokenizer, template


def rotary_positions(chats: ChatBatch, rows: int, columns: int) -> Int[Tensor, "3 b length"]:
    """Time, row and column of every token, for images of `rows` x `columns` tokens.

    Those of padding are not used.
    """
    start = chats.of_image.int().argmax(1, keepdim=True)
    place = torch.arange(chats.ids.shape[1], device=chats.ids.device) - start
    image = torch.stack([torch.zeros_like(place), place // columns, place % columns])
    behind = place - rows * columns + max(rows, columns)
    return start + torch.where(chats.of_image, image, torch.where(place < 0, place, behind))
