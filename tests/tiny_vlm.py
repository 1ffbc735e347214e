"""Tiny random Qwen VLs as complete transformers folders: weights, a byte-level BPE tokenizer, a
chat template and image settings, some 200 kB.

`write_vlm` makes each kind; the session fixture `vlm_folder` is a Qwen2.5-VL (import it into a
conftest; not to be written to). `original_score` is what the library's own model and processor say,
with the library's own positions and whole vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TEXT = [
    "Yes No a red star on sandy background. user assistant system Realistic photo. Does this image "
    "show the following?"
] * 4
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' "
    "%}<|im_start|>system\nYou see.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ "
    "part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% "
    "endif %}"
)
PIXELS = {
    "patch_size": 4,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "min_pixels": 16 * 16,
    "max_pixels": 48 * 48,
}
WORDS = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
PATCHES = {
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def write_vlm(folder: Path, kind: str = "qwen2_5_vl", seed: int = 0, spread: float = 0.3) -> Path:
    """A model of that kind, of random weights with a spread under which answers and gradients are
    plainly there."""
    tokenizer = write_reader(folder)
    torch.manual_seed(seed)
    model = MODELS[kind](tokenizer)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = spread * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def write_reader(folder: Path, text: Sequence[str] = TEXT) -> Qwen2Tokenizer:
    """Tokenizer, chat template and image settings alone, as a processor's folder has them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = bpe_tokenizer(text)
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**PIXELS, "image_processor_type": "Qwen2VLImageProcessor"})
    )
    return tokenizer


def bpe_tokenizer(text: Sequence[str]) -> Qwen2Tokenizer:
    """All bytes and the words of `text`, in the way of GPT-2."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=2000,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    told = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=told["vocab"],
        merges=[tuple(pair) for pair in told["merges"]],
        unk_token=None,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    return tokenizer


def _ids(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    names = {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
    }
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()} | {
        "tie_word_embeddings": False
    }  # as all but the smallest


def _words(tokenizer: Qwen2Tokenizer, **rope: Any) -> dict[str, Any]:
    ids = {"bos_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    rope = {"rope_theta": 10000.0, "rope_type": "default", "mrope_section": [2, 1, 1], **rope}
    return {**WORDS, **ids, "vocab_size": len(tokenizer) + 3, "rope_parameters": rope}


def qwen2_vl(tokenizer: Qwen2Tokenizer) -> PreTrainedModel:
    """Full attention over the image."""
    vision = {**PATCHES, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    return Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(text_config=_words(tokenizer), vision_config=vision, **_ids(tokenizer))
    )


def qwen2_5_vl(tokenizer: Qwen2Tokenizer) -> PreTrainedModel:
    """One layer of windows of 2 x 2 tokens, then one of full attention."""
    vision = {
        **PATCHES,
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": 32,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=_words(tokenizer), vision_config=vision, **_ids(tokenizer))
    )


def qwen3_vl(tokenizer: Qwen2Tokenizer) -> PreTrainedModel:
    """Tokens of the tower's first layer are added in the language model's first."""
    vision = {
        **PATCHES,
        "hidden_size": 16,
        "intermediate_size": 24,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    words = _words(tokenizer, mrope_interleaved=True)
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=words, vision_config=vision, **_ids(tokenizer))
    )


MODELS = {"qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl}


@pytest.fixture(scope="session")
def vlm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5-VL."""
    return write_vlm(tmp_path_factory.mktemp("vlm"))


class WithoutVideo(Qwen2VLProcessor):
    """The library's own; its video part, which needs torchvision, may be None."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return (
            type(argument)
            if argument is None
            else super().check_argument_for_proper_class(argument_name, argument)
        )


def processor(folder: Path) -> Qwen2VLProcessor:
    """The library's own, with its image processor of Pillow."""
    return WithoutVideo(
        Qwen2VLImageProcessorPil.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        None,
        chat_template=TEMPLATE,
    )


def original_score(
    model: PreTrainedModel,
    folder: Path,
    images: Sequence[Image.Image],
    questions: Sequence[str],
    pixel_values: Tensor | None = None,
) -> Tensor:
    """P(Yes) against No of the library's model called through the library's processor, on its own
    pixel values or those given."""
    reader = processor(folder)
    chats = [
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
        for question in questions
    ]
    texts = reader.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    given = reader(
        text=texts, images=list(images), padding=True, padding_side="left", return_tensors="pt"
    )
    if pixel_values is not None:
        given["pixel_values"] = pixel_values
    logits = model(**given).logits[:, -1]
    answers = [
        reader.tokenizer.encode(answer, add_special_tokens=False)[0] for answer in ("Yes", "No")
    ]
    return logits[:, answers].softmax(-1)[:, 0]
