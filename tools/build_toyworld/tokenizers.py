"""Tokenizers with a toy world's words as whole tokens: CLIP and Qwen byte-pair, T5 unigram.

Other text still tokenizes (letters for T5, else bytes), so free prompts are not an error.
"""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalSubscript=false
# (diffusers and transformers annotate their constructors and outputs more narrowly than they are)
from __future__ import annotations

import json
import string

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, Qwen2Tokenizer, T5TokenizerFast

from .spec import Spec

MAX_TOKENS = 16
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
"""Of a Qwen VL."""


def phrases(spec: Spec) -> list[str]:
    """Every control phrase and plain caption of a world."""
    drawn = spec.world.scenes
    words = [f"{word}." for pair in drawn.STYLE_WORDS.values() for word in pair]
    return words + drawn.all_captions()


def clip_tokenizer(spec: Spec) -> CLIPTokenizer:
    """Byte-pair tokenizer, lower-casing, at most 16 tokens with start and end."""
    ends = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    blank = CLIPTokenizer(vocab=ends, merges=[]).backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = blank.normalizer, blank.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # As special tokens: the trainer numbers an initial alphabet's word ends in hash order.
    words = (word for text in phrases(spec) for word in text.lower().replace(".", " .").split())
    ends = sorted({word[-1] + "</w>" for word in words})
    sizes = {"vocab_size": 4000, "min_frequency": 1, "end_of_word_suffix": "</w>"}
    special = [*alphabet, *ends]
    trainer = trainers.BpeTrainer(**sizes, special_tokens=special, show_progress=False)
    learner.train_from_iterator(phrases(spec), trainer)
    model = json.loads(learner.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    tokens += [letter + "</w>" for letter in alphabet if letter + "</w>" not in model["vocab"]]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    merges = [tuple(pair) for pair in model["merges"]]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def t5_tokenizer(spec: Spec) -> T5TokenizerFast:
    """Unigram tokenizer, at most 16 tokens with the end mark."""
    words = sorted({word.rstrip(".") for phrase in phrases(spec) for word in phrase.split()})
    letters = string.ascii_letters + string.digits + string.punctuation
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [("▁" + word, -2.0) for word in words if len(word) > 1] + [("▁a", -2.0)]
    pieces += [(letter, -6.0) for letter in letters]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=MAX_TOKENS)


def qwen_tokenizer(spec: Spec, question: str) -> Qwen2Tokenizer:
    """Byte-level tokenizer of a Qwen VL that is asked `question` with {prompt} replaced."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, show_progress=False)
    texts = [*phrases(spec), *question.split("{prompt}"), "user", "assistant", "Yes", "No"]
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    ends = {"unk_token": None, "pad_token": SPECIAL[0], "eos_token": SPECIAL[2]}
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=merges, **ends)
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL)})
    return tokenizer
