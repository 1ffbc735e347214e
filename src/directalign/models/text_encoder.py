"""What text encoders made of prompts, on disk: one safetensors file for each, found again by content.

A file's name is a hash of the prompt and of a fingerprint of everything else that shapes the tensors, so an embedding of
other weights, another dtype or another length of tokens is never taken for this one. Files appear whole or not at all, and
carry prompt, fingerprint and a digest of their tensors, which are checked when they are read.
"""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..toyworld.assets import cache_root
from ..types import Conditioning, DirectAlignError

SAMPLED = 64
"""Numbers of each weight that go into the fingerprint."""


def default_folder() -> Path:
    """`embeddings` in $DIRECTALIGN_CACHE, or in ~/.cache/directalign."""
    return cache_root() / "embeddings"


def fingerprint_of(modules: Mapping[str, nn.Module], probe: Mapping[str, Tensor]) -> str:
    """Tells encoders apart: names, shapes, dtypes and a sample of all weights, and what they made of one long prompt.

    The probe stands for what no weight shows: tokenizers, templates, the length at which prompts are cut, the library's version.
    """
    told = hashlib.sha256()
    for part, module in modules.items():
        for name, tensor in module.state_dict().items():
            sample = tensor.flatten()[:: max(1, tensor.numel() // SAMPLED)]
            told.update(f"{part}.{name} {tuple(tensor.shape)} ".encode())
            told.update(_digest({"sample": sample.cpu()}).encode())
    told.update(_digest(probe).encode())
    return told.hexdigest()


@dataclass(frozen=True)
class EmbeddingCache:
    """The embeddings that encoders of one fingerprint made, each tensor (1, ...) as long as its prompt needs."""

    folder: Path
    fingerprint: str

    def path_of(self, prompt: str) -> Path:
        """Where the prompt's tensors are, or would be."""
        key = hashlib.sha256(f"{self.fingerprint}\n{prompt}".encode()).hexdigest()
        return self.folder / self.fingerprint[:16] / key[:2] / f"{key}.safetensors"

    def has(self, prompt: str) -> bool:
        """Whether there is a file, whole or not."""
        return self.path_of(prompt).exists()

    def fault(self, prompt: str) -> str | None:
        """What is wrong with the file by its header: torn, or of another prompt; None if nothing is."""
        try:
            with safe_open(self.path_of(prompt), framework="pt") as opened:
                return self._strangeness(opened.metadata(), prompt)
        except (OSError, SafetensorError) as error:
            return f"{self.path_of(prompt)}: truncated or not a safetensors file ({str(error).splitlines()[0]})"

    def read(self, prompt: str) -> dict[str, Tensor]:
        """The tensors on the CPU. Raises DirectAlignError for a file that is missing, torn, of another prompt or altered."""
        path = self.path_of(prompt)
        if not path.exists():
            raise DirectAlignError(
                f"no embedding of {prompt!r:.80} in {self.folder}, and the text encoders are freed: set model.text_encoders: offload"
            )
        fault = self.fault(prompt)
        if fault is None:
            with safe_open(path, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
                fault = (
                    None
                    if _digest(tensors) == opened.metadata()["digest"]
                    else f"{path}: its numbers were altered"
                )
            if fault is None:
                return tensors
        raise DirectAlignError(
            f"{fault}: delete it, and start again with --resume to have it made anew"
        )

    def write(self, prompt: str, tensors: Mapping[str, Tensor]) -> None:
        """Put the prompt's tensors on disk, whole or not at all, whoever else writes the same."""
        path = self.path_of(prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(
                held,
                partial,
                metadata={
                    "prompt": prompt,
                    "fingerprint": self.fingerprint,
                    "digest": _digest(held),
                },
            )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def check_room(self, prompt: str, count: int) -> None:
        """Raises DirectAlignError when `count` files as large as the one of `prompt` do not fit on the disk."""
        size, free = self.path_of(prompt).stat().st_size, shutil.disk_usage(self.folder).free
        if size * count > free:
            raise DirectAlignError(
                f"{self.folder}: {count} more prompts need {size * count / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: "
                "set the environment variable DIRECTALIGN_CACHE to a larger disk, or model.text_encoders: offload"
            )

    def _strangeness(self, told: Mapping[str, str] | None, prompt: str) -> str | None:
        expected = {"prompt": prompt, "fingerprint": self.fingerprint}
        if (
            told is not None
            and "digest" in told
            and {key: told.get(key) for key in expected} == expected
        ):
            return None
        return f"{self.path_of(prompt)}: not written here for this prompt"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    told = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        told.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        told.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return told.hexdigest()


Embed = Callable[[list[str]], dict[str, Tensor]]
CPU = torch.device("cpu")
PROBE = " ".join(f"{number} red stars over a sandy shore, a photo;" for number in range(200))
"""Longer than any encoder reads."""


class PromptEncoder:
    """`encoder(prompts)` gives tensors by name, each (b, ...), on the device, without gradient.

    `embed` turns prompts into those tensors with the help of `modules`, which are moved for it as `mode` says: `keep` on the
    device, `offload` to the CPU between uses, `free` likewise until they are dropped.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], embed: Embed, device: torch.device, mode: str
    ) -> None:
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
        unconditional = {
            name: tensor.expand(len(prompts), *tensor.shape[1:]) for name, tensor in empty.items()
        }
        return Conditioning(tuple(prompts), self(prompts), unconditional)

    @torch.no_grad()
    def store(
        self,
        prompts: Sequence[str],
        folder: Path,
        show: Callable[[list[str]], Iterable[str]] = iter,
    ) -> list[str]:
        """Encode into a cache in `folder` what is not in it yet; what was wrong with the files that had to be made again.

        Each prompt is encoded by itself, so that what is stored depends on it alone, and unpadded. `show` may wrap the prompts
        that are left to do, for a progress bar. Raises DirectAlignError when the disk is too small for them.
        """
        with self._at_work():
            self.cache = cache = EmbeddingCache(
                folder, fingerprint_of(self.modules, self.embed([PROBE]))
            )
            there = {
                prompt: cache.fault(prompt)
                for prompt in dict.fromkeys(prompts)
                if cache.has(prompt)
            }
            missing = [
                prompt for prompt in dict.fromkeys(prompts) if prompt not in there or there[prompt]
            ]
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
    filled = [
        row if row.dim() < 2 or row.shape[1] == longest else _filled(row, longest) for row in rows
    ]
    return torch.cat(filled)


def _filled(row: Tensor, length: int) -> Tensor:
    extra = row.new_zeros(row.shape[0], length - row.shape[1], *row.shape[2:])
    return torch.cat([row, extra], 1)
