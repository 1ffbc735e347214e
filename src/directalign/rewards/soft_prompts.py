"""Learned control tokens (soft prompts): vectors in place of control words in a reward's text embedding (after textual inversion, arXiv 2208.01618).

A file holds "tokens" (n, d), the kind of reward they were fitted to and a fingerprint of its embedding table.
"FILE.safetensors. a red star" is tokenised as n placeholder words before ". a red star", and a forward hook on the table
replaces their vectors. The prompt, the full stop and the special tokens are as for words, so vectors copied from the table
give exactly the features of their words.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..types import DirectAlignError

SUFFIX = ".safetensors"
FACTS = ("kind", "fingerprint", "table", "made")
SAMPLED_ROWS = 256
"""Rows of the embedding table that its fingerprint reads."""
BEFORE = re.compile(r"(.+?\.safetensors)\. (.*)", re.DOTALL)
Vectors = Float[Tensor, "n d"]


@dataclass(frozen=True)
class ControlTokens:
    """Vectors (n, d) for the embedding `table` (its name in the model, and fingerprint) of a `kind` of reward; `made` records how they were fitted."""

    tokens: Vectors
    kind: str
    fingerprint: str
    table: str
    made: str


def is_tokens_file(phrase: str) -> bool:
    """Whether a control phrase names a file of learned tokens."""
    return phrase.endswith(SUFFIX)


def split(prompt: str) -> tuple[str | None, str]:
    """(file of learned tokens before the prompt, the prompt); None if words or nothing precede it."""
    found = BEFORE.fullmatch(prompt)
    return (found[1], found[2]) if found else (None, prompt)


def fingerprint(table: Vectors) -> str:
    """Hash of an embedding table's shape and sampled rows, rounded to bfloat16 so that it does not depend on the storage dtype."""
    rows = torch.linspace(0, len(table) - 1, min(len(table), SAMPLED_ROWS)).long()
    kept = table.detach()[rows.to(table.device)].to("cpu", torch.bfloat16).contiguous()
    return hashlib.sha256(
        str(tuple(table.shape)).encode() + kept.view(torch.uint8).numpy().tobytes()
    ).hexdigest()[:16]


def write_tokens(file: Path, made: ControlTokens) -> None:
    """Save as safetensors; creates the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    facts = {name: str(getattr(made, name)) for name in FACTS}
    save_file(
        {"tokens": made.tokens.detach().float().cpu().contiguous()},
        file,
        metadata={"format": "pt", **facts},
    )


def read_tokens(file: Path, key: str) -> ControlTokens:
    """The tokens of a file; errors name `key`.

    Raises: DirectAlignError where there is no such file, or one of another content.
    """
    if not file.is_file():
        raise DirectAlignError(
            f"{key}: {file}: no such file of learned tokens; make it with directalign reward soft-prompts, or correct the path"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            facts, names = opened.metadata() or {}, set(opened.keys())
            tokens = opened.get_tensor("tokens") if "tokens" in names else None
    except (SafetensorError, OSError) as error:
        raise DirectAlignError(
            f"{key}: {file}: not a complete safetensors file ({error}); copy it again, or make it with directalign reward soft-prompts"
        ) from error
    if (
        tokens is None
        or tokens.ndim != 2
        or len(tokens) == 0
        or not all(facts.get(name) for name in FACTS)
    ):
        raise DirectAlignError(
            f"{key}: {file}: not a file of learned tokens (a tensor `tokens` and what it was fitted to); make it with directalign reward soft-prompts"
        )
    if not tokens.isfinite().all():
        raise DirectAlignError(
            f"{key}: {file}: holds numbers that are not finite; make it again with directalign reward soft-prompts"
        )
    return ControlTokens(tokens.float(), *(facts[name] for name in FACTS))


def check_fits(
    found: ControlTokens, file: Path | str, kind: str, table: Vectors | None, key: str
) -> None:
    """Refuse tokens of another kind of reward, width or embedding table; a `table` of None is not known yet."""
    if found.kind != kind:
        raise DirectAlignError(
            f"{key}: {file}: fitted to a reward of kind {found.kind}, and this is {kind}; fit tokens to it with directalign reward soft-prompts"
        )
    if table is not None and (
        found.tokens.shape[1] != table.shape[1] or found.fingerprint != fingerprint(table)
    ):
        wide = f"{found.tokens.shape[1]} numbers a token, this one has {table.shape[1]}"
        why = (
            wide
            if found.tokens.shape[1] != table.shape[1]
            else "another text embedding of the same width"
        )
        raise DirectAlignError(
            f"{key}: {file}: fitted to another {kind} reward ({why}); fit tokens to this one with directalign reward soft-prompts"
        )


def check_phrases(phrases: Sequence[str], kind: str, folder: Path | None, key: str) -> None:
    """Check every file of learned tokens among control phrases, without loading the reward of this `kind`.

    `folder` holds the reward's own weights, None where they are not on this machine or not in safetensors.

    Raises: as `read_tokens`, `check_fits` and `check_length`.
    """
    for phrase in filter(is_tokens_file, phrases):
        found = read_tokens(Path(phrase).expanduser(), key)
        table = _tensor_in(folder, found.table)
        check_fits(found, phrase, kind, table, key)
        places = _tensor_in(folder, found.table.replace("token_embedding", "position_embedding"))
        if places is not None:
            check_length(len(found.tokens), len(places), f"{key}: {phrase}")


def _tensor_in(folder: Path | None, name: str) -> Tensor | None:
    """A tensor of a folder of safetensors; None where no file has one of this name."""
    for file in sorted(folder.glob("*.safetensors")) if folder is not None else ():
        with safe_open(file, framework="pt") as opened:
            if name in set(opened.keys()):
                return opened.get_tensor(name)
    return None


class SoftPrompts:
    """The learned tokens of one reward's text tower, read from their files at first use.

    Args:
        kind: the kind of reward (`reward.name`).
        table: its token embedding; `name` is how the model's state dict calls its weight.
        longest: tokens that the text side reads; learned ones may take half of them.
        placeholder: a word that is one token, whose places the vectors take; `joint` stands between two of them.
    """

    def __init__(
        self,
        kind: str,
        table: nn.Embedding,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        longest: int,
        placeholder: str = "x",
        joint: str = " ",
    ) -> None:
        self.kind, self.table, self.name, self.longest = kind, table, name, longest
        self.tokenizer, self.placeholder, self.joint = tokenizer, placeholder, joint
        self.held: dict[str, Tensor] = {}
        """Vectors by the name before the prompt; entries set by the caller need no file and keep their gradient."""

    @contextmanager
    def placed(self, prompts: Sequence[str]) -> Iterator[list[str]]:
        """Context in which the yielded texts must be tokenised and encoded, in one batch and in this order."""
        parts = [split(prompt) for prompt in prompts]
        vectors = [None if name is None else self._vectors(name) for name, _ in parts]
        if all(each is None for each in vectors):
            yield list(prompts)
            return
        texts = [
            rest if each is None else f"{self.joint.join([self.placeholder] * len(each))}. {rest}"
            for each, (_, rest) in zip(vectors, parts, strict=True)
        ]

        def replace(module: nn.Module, ids: Any, embedded: Any) -> Tensor:
            del module
            return self._replaced(ids[0], embedded, vectors)

        hook = self.table.register_forward_hook(replace)
        try:
            yield texts
        finally:
            hook.remove()

    def embedding_of(self, words: str) -> Vectors:
        """The table's own vectors of a few words, (n, d)."""
        return self.table.weight[self._ids(words)].detach().clone()

    def made(self, tokens: Vectors, how: str) -> ControlTokens:
        """The tokens with the metadata of a file."""
        return ControlTokens(
            tokens.detach(), self.kind, fingerprint(self.table.weight), self.name, how
        )

    def _vectors(self, name: str) -> Tensor:
        if name not in self.held:
            found = read_tokens(Path(name).expanduser(), "words")
            check_fits(found, name, self.kind, self.table.weight, "words")
            check_length(len(found.tokens), self.longest, f"words: {name}")
            self.held[name] = found.tokens.to(self.table.weight)
        return self.held[name]

    def _replaced(
        self,
        ids: Int[Tensor, "b l"],
        embedded: Float[Tensor, "b l d"],
        vectors: Sequence[Tensor | None],
    ) -> Float[Tensor, "b l d"]:
        place = self._ids(self.placeholder)[0]
        rows = []
        for row, each, vector in zip(ids, embedded, vectors, strict=True):
            if vector is None:
                rows.append(each)
                continue
            where = (row == place).nonzero()[: len(vector), 0]
            assert len(where) == len(vector), f"{len(where)} places for {len(vector)} tokens"
            rows.append(each.index_copy(0, where, vector.to(each)))
        return torch.stack(rows)

    def _ids(self, words: str) -> list[int]:
        return list(self.tokenizer(words, add_special_tokens=False)["input_ids"])


def check_length(count: int, longest: int, where: str) -> None:
    """Refuse tokens that leave less than half of the text length for the prompt."""
    if count > longest // 2:
        raise DirectAlignError(
            f"{where}: {count} learned tokens, and the reward reads {longest} in all; take {longest // 2} at most, the rest is for the prompt"
        )
