"""Learned control tokens (soft prompts): vectors in place of control words in a text embedding.

After textual inversion (arXiv 2208.01618). A file holds "tokens" (n, d), the kind of reward they
were fitted to and a fingerprint of its embedding table. "FILE.safetensors. a red star" is
tokenised as n placeholder words before ". a red star", and a forward hook on the table replaces
their vectors. The prompt, the full stop and the special tokens are as for words, so vectors copied
from the table give exactly the features of their words.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake
from transformers import PreTrainedTokenizerBase

from ..io.atomic import new_file, require_new
from ..types import DirectAlignError
from .common import read_annotated

SUFFIX = ".safetensors"
MAKE = "make it with directalign reward soft-prompts"
FIT = "fit tokens to this one with directalign reward soft-prompts"
FACTS = ("kind", "fingerprint", "table", "made")
SAMPLED_ROWS = 256
"""Rows of the embedding table that its fingerprint reads."""
BEFORE = re.compile(r"(?P<file>.+?\.safetensors)\. (?P<prompt>.*)", re.DOTALL)
"""A prompt with a file of learned tokens before it."""
Vectors = Float[Tensor, "n d"]


@dataclass(frozen=True)
class ControlTokens:
    """Vectors (n, d) for the embedding `table` (name in the model) of a `kind` of reward.

    `fingerprint` is that of the table; `made` records how the vectors were fitted.
    """

    tokens: Vectors
    kind: str
    fingerprint: str
    table: str
    made: str


def is_tokens_file(phrase: str) -> bool:
    """Whether a control phrase names a file of learned tokens."""
    return phrase.endswith(SUFFIX)


def fingerprint(table: Vectors) -> str:
    """Hash of an embedding table's shape and sampled rows.

    Rows are rounded to bfloat16, so that the hash does not depend on the storage dtype.
    """
    rows = torch.linspace(0, len(table) - 1, min(len(table), SAMPLED_ROWS)).long()
    sample = table.detach()[rows.to(table.device)].to("cpu", torch.bfloat16).contiguous()
    content = str(tuple(table.shape)).encode() + sample.view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def write_tokens(file: Path, made: ControlTokens) -> None:
    """Save as safetensors; creates the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    facts = {name: str(getattr(made, name)) for name in FACTS}
    tokens = {"tokens": made.tokens.detach().float().cpu().contiguous()}
    require_new(file)  # another process may have written it meanwhile
    with new_file(file) as partial:
        save_file(tokens, partial, metadata={"format": "pt", **facts})


def read_tokens(file: Path, key: str) -> ControlTokens:
    """The tokens of a file; errors name `key`.

    Raises DirectAlignError: no such file, or one of another content.
    """
    tokens, facts = read_annotated(file, key, "tokens", f"{MAKE}, or correct the path")
    complete = all(facts.get(name) for name in FACTS)
    if tokens is None or tokens.ndim != 2 or tokens.numel() == 0 or not complete:
        raise DirectAlignError(
            f"{key}: {file}: not a file of learned tokens (a tensor `tokens` and what it was "
            f"fitted to); {MAKE}"
        )
    return ControlTokens(tokens.float(), *(facts[name] for name in FACTS))


def check_fits(
    found: ControlTokens, file: Path | str, kind: str, table: Vectors | None, key: str
) -> None:
    """Refuse tokens of another kind of reward, width or embedding `table` (None: unknown)."""
    if found.kind != kind:
        raise DirectAlignError(
            f"{key}: {file}: fitted to a reward of kind {found.kind}, and this is {kind}; {FIT}"
        )
    if table is None:
        return
    width, own = found.tokens.shape[1], table.shape[1]
    why = f"{width} numbers a token, this one has {own}"
    if width == own:
        if found.fingerprint == fingerprint(table):
            return
        why = "another text embedding of the same width"
    raise DirectAlignError(f"{key}: {file}: fitted to another {kind} reward ({why}); {FIT}")


def check_phrases(phrases: Sequence[str], kind: str, folder: Path | None, key: str) -> None:
    """Check the files of learned tokens among control phrases, without loading the reward.

    `folder` holds the reward's own weights, None if they are not here or not in safetensors.

    Raises DirectAlignError as `read_tokens`, `check_fits` and `check_length`.
    """
    for phrase in filter(is_tokens_file, phrases):
        found = read_tokens(Path(phrase).expanduser(), key)
        check_fits(found, phrase, kind, _tensor_in(folder, found.table), key)
        name = found.table.replace("token_embedding", "position_embedding")
        positions = _tensor_in(folder, name)
        if positions is not None:
            check_length(len(found.tokens), len(positions), f"{key}: {phrase}")


def _tensor_in(folder: Path | None, name: str) -> Tensor | None:
    """A tensor of a folder of safetensors; None if no file has one of this name."""
    for file in sorted(folder.glob("*.safetensors")) if folder is not None else ():
        with safe_open(file, framework="pt") as opened:
            if name in set(opened.keys()):
                return opened.get_tensor(name)
    return None


@dataclass(eq=False)
class SoftPrompts:
    """The learned tokens of one reward's text tower, read from their files at first use.

    Args:
        kind: the kind of reward (`reward.name`).
        table: its token embedding; `name` is how the model's state dict calls its weight.
        longest: maximum text length in tokens; learned ones may take half of it.
        clean: what the reward does to a text before it is tokenised.
        placeholder: a word that is one token, whose vectors are replaced; `joint` separates two.
        held: vectors by the name before the prompt; entries set by a caller need no file, and their
            gradient is intact.
    """

    kind: str
    table: nn.Embedding
    name: str
    tokenizer: PreTrainedTokenizerBase
    longest: int
    clean: Callable[[str], str] = str
    placeholder: str = "x"
    joint: str = " "
    held: dict[str, Tensor] = field(default_factory=dict)

    @contextmanager
    def placed(self, prompts: Sequence[str]) -> Iterator[list[str]]:
        """Within it, the yielded texts must be encoded in one batch, in this order."""
        parts = [BEFORE.fullmatch(prompt) for prompt in prompts]
        vectors = [None if part is None else self._vectors(part["file"]) for part in parts]
        if not any(parts):
            yield [self.clean(prompt) for prompt in prompts]
            return
        texts = [
            self.joint.join([self.placeholder] * len(vector)) + self.clean(f". {part['prompt']}")
            if part is not None and vector is not None
            else self.clean(prompt)
            for prompt, part, vector in zip(prompts, parts, vectors, strict=True)
        ]
        placeholder = self._ids(self.placeholder)[0]

        def replace(module: nn.Module, ids: Any, embedded: Any) -> Float[Tensor, "b l d"]:
            del module
            rows = list(embedded)
            for number, vector in enumerate(vectors):
                if vector is not None:
                    where = (ids[0][number] == placeholder).nonzero()[: len(vector), 0]
                    assert len(where) == len(vector), f"{len(where)} for {len(vector)} tokens"
                    rows[number] = rows[number].index_copy(0, where, vector.to(embedded))
            return torch.stack(rows)

        hook = self.table.register_forward_hook(replace)
        try:
            yield texts
        finally:
            hook.remove()

    def embedding_of(self, words: str) -> Vectors:
        """The table's own vectors of a few words, (n, d)."""
        return self.table.weight[self._ids(self.clean(words))].detach().clone()

    def made(self, tokens: Vectors, how: str) -> ControlTokens:
        """The tokens with the metadata of a file."""
        return ControlTokens(
            tokens.detach(), self.kind, fingerprint(self.table.weight), self.name, how
        )

    def _vectors(self, name: str) -> Tensor:
        if name not in self.held:
            key = "control_phrases"
            found = read_tokens(Path(name).expanduser(), key)
            weight = self.table.weight
            table = None if is_fake(weight) else weight  # without data: `check_phrases` has read it
            check_fits(found, name, self.kind, table, key)
            check_length(len(found.tokens), self.longest, f"{key}: {name}")
            self.held[name] = found.tokens.to(weight)
        return self.held[name]

    def _ids(self, words: str) -> list[int]:
        return list(self.tokenizer(words, add_special_tokens=False)["input_ids"])


def check_length(count: int, longest: int, where: str) -> None:
    """Refuse tokens that leave less than half of the text length for the prompt."""
    if count > longest // 2:
        raise DirectAlignError(
            f"{where}: {count} learned tokens, and the reward reads {longest} in all; take "
            f"{longest // 2} at most, the rest is for the prompt"
        )
