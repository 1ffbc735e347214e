"""A complete tiny SigLIP folder with random weights: 32-pixel vision tower, a SentencePiece
vocabulary. `siglip_folder` is a session fixture."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import SiglipConfig, SiglipModel, SiglipTokenizer

SENTENCES = [
    "a red star on a sandy background",
    "a blue circle or a square",
    "a photo of an olive ring x",
]


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_siglip(tmp_path_factory.mktemp("siglip"))


def write_siglip(folder: Path, seed: int = 0) -> Path:
    """Weights, config, tokenizer and image settings in the files that SigLIP's makers publish."""
    tokenizer = SiglipTokenizer(str(write_vocabulary(folder / "spiece.model")), model_max_length=12)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 12}
    model = SiglipModel(
        SiglipConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8})
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    settings = {
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
    }
    settings |= {
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "image_processor_type": "SiglipImageProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def write_vocabulary(file: Path) -> Path:
    """A SentencePiece model of the letters and some pieces of `SENTENCES`; " x" is one of them."""
    written = io.BytesIO()
    special = {
        "pad_id": 0,
        "eos_id": 1,
        "unk_id": 2,
        "bos_id": -1,
        "user_defined_symbols": ["▁x"],
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 5),
        model_writer=written,
        vocab_size=45,
        hard_vocab_limit=False,
        **special,
    )
    file.write_bytes(written.getvalue())
    return file
