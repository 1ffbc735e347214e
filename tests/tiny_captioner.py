"""A tiny random BLIP as a complete transformers folder; its words are those of the toy world."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from tiny import SIZES

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
COLORS = ("red", "blue", "green", "orange", "purple", "cyan", "pink", "yellow", "white", "black")
WORDS = ("a", "an", "on", "background", "star", "ring", "square", "circle", "triangle", *COLORS)


def write_blip(folder: Path) -> Path:
    """A BLIP that captions 32-pixel images with at least a word, and other images differently."""
    tokens = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    vocabulary = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]"))
    vocabulary.normalizer = normalizers.BertNormalizer()
    vocabulary.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = transformers.BertTokenizerFast(tokenizer_object=vocabulary, bos_token="[DEC]")
    size = {"height": 32, "width": 32}
    processor = transformers.BlipProcessor(transformers.BlipImageProcessor(size=size), tokenizer)
    sizes = SIZES["blip"]
    ids = {"bos_token_id": tokens["[DEC]"], "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    text = sizes | ids | {"vocab_size": len(tokens), "encoder_hidden_size": sizes["hidden_size"]}
    vision = sizes | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    network = transformers.BlipForConditionalGeneration(
        transformers.BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    )
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
        network.text_decoder.cls.predictions.bias[[*range(3), 4, 5]] = -1e4  # never said
        network.text_decoder.cls.predictions.bias[3] = -2.0  # the end
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
