"""What text encoders made of prompts, on disk: one safetensors file for each, found again by content.

A file's name is a hash of the prompt and of a fingerprint of everything else that shapes the tensors, so an embedding of
other weights, another dtype or another length of tokens is never taken for this one. Files appear whole or not at all, and
carry prompt, fingerprint and a digest of their tensors, which are checked when they are read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..toyworld.assets import cache_root
from ..types import DirectAlignError

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
            raise DirectAlignError(f"no embedding of {prompt!r:.80} in {self.folder}, and the text encoders are freed: set model.text_encoders: offload")
        fault = self.fault(prompt)
        if fault is None:
            with safe_open(path, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
                fault = None if _digest(tensors) == opened.metadata()["digest"] else f"{path}: its numbers were altered"
            if fault is None:
                return tensors
        raise DirectAlignError(f"{fault}: delete it, and start again with --resume to have it made anew")

    def write(self, prompt: str, tensors: Mapping[str, Tensor]) -> None:
        """Put the prompt's tensors on disk, whole or not at all, whoever else writes the same."""
        path = self.path_of(prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(held, partial, metadata={"prompt": prompt, "fingerprint": self.fingerprint, "digest": _digest(held)})
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
        if told is not None and "digest" in told and {key: told.get(key) for key in expected} == expected:
            return None
        return f"{self.path_of(prompt)}: not written here for this prompt"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    told = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        told.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        told.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return told.hexdigest()
