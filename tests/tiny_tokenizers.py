"""Tokenizers of tiny pipelines: whole words of `WORDS`, and single letters."""

import io
import re
from functools import cache

import transformers
from sentencepiece import SentencePieceTrainer
from tokenizers import AddedToken
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import CLIPTokenizer, Qwen2Tokenizer, T5TokenizerFast

TEXT = "a red blue green star circle square on sandy grassy background photo painting ."
WORDS = TEXT.split()
MAX_SEQUENCE_LENGTH = 12


def clip_tokenizer(pad: str | None = None) -> CLIPTokenizer:
    """Whole words of `WORDS` and single letters; sequences of 16 tokens."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{each}</w>" for each in letters)]
    merges = []
    for word in (word for word in WORDS if len(word) > 1):
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces[:2] = [pieces[0] + pieces[1]]
            tokens.append(pieces[0])
    vocab = {token: place for place, token in enumerate(dict.fromkeys(tokens))}
    pairs = list(dict.fromkeys(merges))
    tokenizer = CLIPTokenizer(vocab=vocab, merges=pairs, model_max_length=16)
    if pad is not None:
        tokenizer.pad_token = pad
    return tokenizer


def t5_tokenizer() -> T5TokenizerFast:
    """Whole words of `WORDS` and single letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -2.0) for word in WORDS]
    known = {piece for piece, _ in pieces}
    pieces += [(chr(code), -8.0) for code in range(33, 127) if chr(code) not in known]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=MAX_SEQUENCE_LENGTH)


@cache
def sentencepiece_model() -> bytes:
    """The words of `WORDS` and single letters."""
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT, *map(chr, range(33, 127))]),
        model_writer=written,
        model_type="bpe",
        vocab_size=160,
        hard_vocab_limit=False,
        character_coverage=1.0,
        minloglevel=2,
    )
    return written.getvalue()


INSTRUCTION = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background"
)
CHAT = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + "
    "'<|im_end|>\\n' }}{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}\n"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
"""Qwen3's chat template, without tools."""
CHAT_OF_PARTS = (
    "{{- bos_token }}{%- for message in messages %}{{ '[' + message.role + ']' + "
    "message.content[0].text + '[/' + message.role + ']' }}{%- endfor %}"
)
"""Mistral's, of messages that are lists of parts."""


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Bytes, and whole words of `WORDS` and of Qwen-Image's instruction, which with its frame is 34
    tokens long as in the real vocabulary. Z-Image and FLUX.2 klein use it too."""
    words = dict.fromkeys([*re.findall("[a-z]+", INSTRUCTION), *WORDS])
    spaced = [f"Ġ{word}" for word in words if word.isalpha()]
    tokens, merges = sorted(ByteLevel.alphabet()), []
    for word in [*spaced, "system", "user", "assistant", "Describe"]:
        for end in range(1, len(word)):
            merges.append((word[:end], word[end]))
            tokens.append(word[: end + 1])
    tokenizer = Qwen2Tokenizer(
        vocab={token: place for place, token in enumerate(dict.fromkeys(tokens))},
        merges=list(dict.fromkeys(merges)),
        eos_token="<|im_end|>",
        chat_template=CHAT,
        model_max_length=4096,
    )
    special = ("<|im_start|>", "<think>", "</think>")
    tokenizer.add_tokens([AddedToken(name, special=True) for name in special])
    return tokenizer


def gemma_tokenizer() -> transformers.GemmaTokenizer:
    """Whole words of `WORDS` and single letters, after a first token."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *map(chr, range(33, 127))]
    merges = []
    for word in WORDS:
        for end in range(1, len(word) + 1):
            left = "▁" + word[: end - 1]
            merges.append((left, word[end - 1]))
            pieces.append(left + word[end - 1])
    vocab = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = transformers.GemmaTokenizer(
        vocab=vocab, merges=list(dict.fromkeys(merges)), model_max_length=4096
    )
    first = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer.backend_tokenizer.post_processor = first
    return tokenizer
