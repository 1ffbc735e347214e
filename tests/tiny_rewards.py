"""Tiny random reward models as complete transformers folders: CLIP, SigLIP, the Qwen VLs, and a
CLIP in open_clip's layout. Weights come from a seed, sizes from `tiny_sizes.json`.

The session fixtures `clip_folder`, `siglip_folder` and `vlm_folder` are read-only.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedModel, Qwen2Tokenizer

from tiny import SIZES, Qwen2VLProcessor, token_ids
from tools.build_toyworld.spec import SPECS
from tools.build_toyworld.tokenizers import clip_tokenizer


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory):
    return write_siglip(tmp_path_factory.mktemp("siglip"))


@pytest.fixture(scope="session")
def vlm_folder(tmp_path_factory):
    """A Qwen2.5-VL."""
    return write_vlm(tmp_path_factory.mktemp("vlm"))


def _write_json(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content))


def write_clip(folder: Path) -> Path:
    """A CLIP with a 32-pixel vision tower and the toy world's tokenizer."""
    tokenizer = clip_tokenizer(SPECS["world"])
    torch.manual_seed(0)
    sizes = SIZES["clip_reward"]
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    config = transformers.CLIPConfig(
        text_config=sizes | token_ids(tokenizer) | words,
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_json(folder, "preprocessor_config.json", SIZES["clip_processor"])
    return folder


def write_altclip(folder: Path) -> Path:
    """An AltCLIP with a 32-pixel vision tower; its weights have the published names."""
    folder.mkdir(parents=True, exist_ok=True)
    spiece = sentencepiece.SentencePieceProcessor(str(write_vocabulary(folder / "spiece.model")))
    (folder / "spiece.model").unlink()
    pieces = [spiece.id_to_piece(n) for n in range(3, len(spiece))]
    special = [(each, 0.0) for each in ("<s>", "<pad>", "</s>", "<unk>")]
    words = [(piece, -float(n)) for n, piece in enumerate(pieces)]
    tokenizer = transformers.XLMRobertaTokenizer(vocab=[*special, *words, ("<mask>", 0.0)])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = SIZES["clip_reward"]
    text = sizes | {"vocab_size": len(tokenizer), "max_position_embeddings": 90, "project_dim": 12}
    config = transformers.AltCLIPConfig(
        text_config=text,
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    model = transformers.AltCLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    weights = load_file(file := folder / "model.safetensors")
    weights["text_model.roberta.embeddings.position_ids"] = torch.arange(90)[None]
    assert "text_model.roberta.encoder.layer.1.output.dense.weight" in weights
    save_file(weights, file, {"format": "pt"})
    _write_json(folder, "preprocessor_config.json", SIZES["clip_processor"])
    return folder


OPEN_CLIP_NAMES = {
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding": "visual.conv1",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}


def open_clip_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a CLIPModel folder in open_clip's layout."""
    ours = transformers.CLIPModel.from_pretrained(folder).state_dict()
    theirs: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        if ".self_attn.k_proj." in name or ".self_attn.v_proj." in name:
            continue
        if ".self_attn.q_proj." in name:
            parts = ("q_proj", "k_proj", "v_proj")
            tensor = torch.cat([ours[name.replace("q_proj", part)] for part in parts])
            name = name.replace("self_attn.q_proj.", "attn.in_proj_")
        for old, new in OPEN_CLIP_NAMES.items():
            name = name.replace(old, new)
        transposed = name in ("visual.proj", "text_projection")
        theirs[name] = (tensor.T if transposed else tensor).contiguous()
    return theirs


def write_open_clip(
    folder: Path, clip_folder: Path, name: str = "weights.pt", config: bool = True
) -> Path:
    """A file as HPSv2 publishes its own, and the config beside it; the CLIP of `clip_folder` has
    two heads in both towers, and quick_gelu."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 3, "state_dict": open_clip_weights(clip_folder)}, folder / name)
    if config:
        _write_json(folder, "open_clip_config.json", {"model_cfg": SIZES["open_clip_config"]})
    return folder / name


SENTENCES = [
    "a red star on a sandy background",
    "a blue circle or a square",
    "a photo of an olive ring x",
]


def write_siglip(folder: Path, seed: int = 0) -> Path:
    """A SigLIP with a 32-pixel vision tower, in the files that its makers publish."""
    spiece = write_vocabulary(folder / "spiece.model")
    tokenizer = transformers.SiglipTokenizer(str(spiece), model_max_length=12)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = SIZES["siglip_reward"]
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": 12}
    config = transformers.SiglipConfig(
        text_config=sizes | words, vision_config=sizes | {"image_size": 32, "patch_size": 8}
    )
    model = transformers.SiglipModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    _write_json(folder, "preprocessor_config.json", SIZES["siglip_processor"])
    return folder


def write_vocabulary(file: Path) -> Path:
    """A SentencePiece model of the letters and some pieces of `SENTENCES`; " x" is one of them."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 5), model_writer=written, **SIZES["siglip_vocabulary"]
    )
    file.write_bytes(written.getvalue())
    return file


SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
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
VLMS = {
    "qwen2_vl": "Qwen2VL",  # full attention over the image
    "qwen2_5_vl": "Qwen2_5_VL",  # a layer of windows of 2 x 2 tokens, then one of full attention
    "qwen3_vl": "Qwen3VL",  # the tower's first layer is added in the language model's first
}


def make_vlm(kind: str, tokenizer: Qwen2Tokenizer) -> PreTrainedModel:
    """A Qwen VL of that kind, as the library initialises it."""
    rope = SIZES["vlm_rope"] | ({"mrope_interleaved": True} if kind == "qwen3_vl" else {})
    ends = {"bos_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    words = {"vocab_size": len(tokenizer) + 3, "rope_parameters": rope}
    marks = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start"}
    config = getattr(transformers, f"{VLMS[kind]}Config")(
        text_config=SIZES["vlm_text"] | ends | words,
        vision_config=SIZES["vlm_vision"] | SIZES[kind],
        tie_word_embeddings=False,  # as all but the smallest
        **{f"{name}_token_id": tokenizer.vocab[f"<|{mark}|>"] for name, mark in marks.items()},
    )
    return getattr(transformers, f"{VLMS[kind]}ForConditionalGeneration")(config)


def write_vlm(folder: Path, kind: str = "qwen2_5_vl", seed: int = 0, spread: float = 0.3) -> Path:
    """A model of that kind, of random weights with a spread under which answers and gradients are
    plainly there."""
    tokenizer = write_reader(folder)
    torch.manual_seed(seed)
    model = make_vlm(kind, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = spread * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def write_reader(folder: Path, text: Sequence[str] = TEXT) -> Qwen2Tokenizer:
    """Tokenizer, chat template and image settings: a processor's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = bpe_tokenizer(text)
    tokenizer.save_pretrained(folder)
    _write_json(folder, "chat_template.json", {"chat_template": TEMPLATE})
    _write_json(folder, "preprocessor_config.json", SIZES["vlm_processor"])
    return tokenizer


def bpe_tokenizer(text: Sequence[str]) -> Qwen2Tokenizer:
    """All bytes and the words of `text`, in the way of GPT-2."""
    bytes_only = pre_tokenizers.ByteLevel.alphabet()
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=bytes_only, show_progress=False)
    trained.train_from_iterator(text, trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        unk_token=None,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    return tokenizer


def processor(folder: Path) -> transformers.Qwen2VLProcessor:
    """The library's own, with its image processor of Pillow."""
    return Qwen2VLProcessor(
        transformers.Qwen2VLImageProcessorPil.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
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
    yes, no = (reader.tokenizer.encode(word, add_special_tokens=False)[0] for word in ("Yes", "No"))
    return logits[:, [yes, no]].softmax(-1)[:, 0]
