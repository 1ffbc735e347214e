"""Frozen text encoders behind one call: prompts in, the tensors that a denoiser is conditioned on out.

`mode` says where the encoders live: kept on the device, or on the CPU and brought over while they encode. With `store` and
`free` they are dropped altogether: what they would say of the prompts that are still to come lies on disk then.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..types import Conditioning
from .embedding_cache import EmbeddingCache, fingerprint_of

Embed = Callable[[list[str]], dict[str, Tensor]]
CPU = torch.device("cpu")
PROBE = " ".join(f"{number} red stars over a sandy shore, a photo;" for number in range(200))
"""Longer than any encoder reads."""


class PromptEncoder:
    """`encoder(prompts)` gives tensors by name, each (b, ...), on the device, without gradient.

    `embed` turns prompts into those tensors with the help of `modules`, which are moved for it as `mode` says: `keep` on the
    device, `offload` to the CPU between uses, `free` likewise until they are dropped.
    """

    def __init__(self, modules: Mapping[str, nn.Module], embed: Embed, device: torch.device, mode: str) -> None:
        self.modules, self.embed, self.device, self.mode = dict(modules), embed, device, mode
        self.cache: EmbeddingCache | None = None
        self._move(device if mode == "keep" else CPU)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        if self.cache is not None and not self.modules:
            rows = [self.cache.read(prompt) for prompt in prompts]
            return {name: padded([row[name] for row in rows]).to(self.device) for name in rows[0]}
        with self._at_work():
            return self.embed(list(prompts))

    def conditioning(self, prompts: Sequence[str], empty: Mapping[str, Tensor]) -> Conditioning:
        """What the network is told of the prompts, and of the one prompt `empty` (1, ...) in its unguided pass."""
        unconditional = {name: tensor.expand(len(prompts), *tensor.shape[1:]) for name, tensor in empty.items()}
        return Conditioning(tuple(prompts), self(prompts), unconditional)

    @torch.no_grad()
    def store(self, prompts: Sequence[str], folder: Path, show: Callable[[list[str]], Iterable[str]] = iter) -> list[str]:
        """Encode into a cache in `folder` what is not in it yet; what was wrong with the files that had to be made again.

        Each prompt is encoded by itself, so that what is stored depends on it alone, and unpadded. `show` may wrap the prompts
        that are left to do, for a progress bar. Raises DirectAlignError when the disk is too small for them.
        """
        with self._at_work():
            self.cache = cache = EmbeddingCache(folder, fingerprint_of(self.modules, self.embed([PROBE])))
            there = {prompt: cache.fault(prompt) for prompt in dict.fromkeys(prompts) if cache.has(prompt)}
            missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in there or there[prompt]]
            for place, prompt in enumerate(show(missing) if missing else ()):
                cache.write(prompt, self.embed([prompt]))
                if place == 0:
                    cache.check_room(prompt, len(missing) - 1)
        return [fault for fault in there.values() if fault]

    def free(self) -> None:
        """Drop the encoders and give their memory back; from now on only what was stored can be asked for."""
        assert self.cache is not None, "store the prompts first"
        self.modules.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """The encoders are on the device inside, and where `mode` has them outside, also after an error."""
        if self.mode == "keep":
            yield
            return
        self._move(self.device)
        try:
            yield
        finally:
            self._move(CPU)

    def _move(self, device: torch.device) -> None:
        for module in self.modules.values():
            module.to(device)


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Tensors (1, n, ...) joined along their first dimension, shorter ones filled up with zeros at the end of their second."""
    longest = max(row.shape[1] if row.dim() > 1 else 0 for row in rows)
    filled = [row if row.dim() < 2 or row.shape[1] == longest else _filled(row, longest) for row in rows]
    return torch.cat(filled)


def _filled(row: Tensor, length: int) -> Tensor:
    extra = row.new_zeros(row.shape[0], length - row.shape[1], *row.shape[2:])
    return torch.cat([row, extra], 1)
