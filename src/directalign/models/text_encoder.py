"""Prompt embeddings: text encoders that are moved or freed to save memory, and a cache on disk.

The cache has one safetensors file per prompt. Its name is a hash of the prompt and of a fingerprint
of all else that determines the tensors (weights, dtype, number of tokens). Files are written
atomically; prompt, fingerprint and a digest of the tensors are stored in them and checked when they
are read.
"""

import gc
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..errors import first_line
from ..io.atomic import new_file
from ..toyworld.assets import cache_root
from ..types import Conditioning, DirectAlignError

SAMPLED = 64
"""Numbers of each weight that the fingerprint covers."""


def default_folder() -> Path:
    """`embeddings` in $DIRECTALIGN_CACHE, or in ~/.cache/directalign."""
    return cache_root() / "embeddings"


def fingerprint_of(modules: Mapping[str, nn.Module], probe: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes, dtypes and a sample of all weights, and of a long prompt's `probe`.

    The probe covers tokenizers, templates, the maximum length, and the library's version.
    """
    hasher = hashlib.sha256()
    for part, module in modules.items():
        for name, tensor in module.state_dict().items():
            sample = tensor.flatten()[:: max(1, tensor.numel() // SAMPLED)]
            hasher.update(f"{part}.{name} {tuple(tensor.shape)} ".encode())
            hasher.update(_digest({"sample": sample.cpu()}).encode())
    hasher.update(_digest(probe).encode())
    return hasher.hexdigest()


@dataclass(frozen=True)
class EmbeddingCache:
    """Embeddings of the encoders with one fingerprint; each (1, n, ...) has its own length n."""

    folder: Path
    fingerprint: str

    def path_of(self, prompt: str) -> Path:
        """The prompt's file."""
        key = hashlib.sha256(f"{self.fingerprint}\n{prompt}".encode()).hexdigest()
        return self.folder / self.fingerprint[:16] / key[:2] / f"{key}.safetensors"

    def has(self, prompt: str) -> bool:
        """Whether the file exists; it may be damaged."""
        return self.path_of(prompt).exists()

    def fault(self, prompt: str) -> str | None:
        """A message if the header is truncated or of another prompt, else None."""
        path, expected = self.path_of(prompt), {"prompt": prompt, "fingerprint": self.fingerprint}
        try:
            with safe_open(path, framework="pt") as opened:
                found = opened.metadata() or {}
        except (OSError, SafetensorError) as error:
            return f"{path}: truncated or not a safetensors file ({first_line(error)})"
        is_whole = "digest" in found and expected.items() <= found.items()
        return None if is_whole else f"{path}: not the embedding of this prompt"

    def read(self, prompt: str) -> dict[str, Tensor]:
        """The tensors on the CPU. Raises DirectAlignError for a missing or damaged file.

        A damaged file is deleted.
        """
        path = self.path_of(prompt)
        if not path.exists():
            raise DirectAlignError(
                f"no embedding of {prompt!r:.80} in {self.folder}, and the text encoders are "
                "freed: set model.text_encoders: offload"
            )
        fault = self.fault(prompt)
        if fault is None:
            with safe_open(path, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
                if _digest(tensors) == opened.metadata()["digest"]:
                    return tensors
            fault = f"{path}: its numbers were altered"
        path.unlink()
        raise DirectAlignError(
            f"{fault}: it was deleted; start again with --resume, which writes it again"
        )

    def write(self, prompt: str, tensors: Mapping[str, Tensor]) -> None:
        """Write the prompt's tensors atomically; other processes may write the same file."""
        path = self.path_of(prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        about = {"prompt": prompt, "fingerprint": self.fingerprint, "digest": _digest(held)}
        with new_file(path) as partial:
            save_file(held, partial, metadata=about)

    def check_room(self, prompt: str, count: int) -> None:
        """Raise DirectAlignError if `count` files of `prompt`'s size do not fit on the disk."""
        size, free = self.path_of(prompt).stat().st_size, shutil.disk_usage(self.folder).free
        if size * count > free:
            raise DirectAlignError(
                f"{self.folder}: {count} more prompts need {size * count / 1e9:.1f} GB and "
                f"{free / 1e9:.1f} GB are free: set the environment variable DIRECTALIGN_CACHE to "
                "a larger disk, or model.text_encoders: offload"
            )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].cpu().contiguous()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        hasher.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return hasher.hexdigest()


Embed = Callable[[list[str]], dict[str, Tensor]]
CPU = torch.device("cpu")
PROBE = " ".join(f"{number} red stars over a sandy shore, a photo;" for number in range(200))
"""Longer than the maximum length of any encoder."""


class PromptEncoder:
    """`encoder(prompts)` gives tensors by name, each (b, ...), on the device, without gradient.

    `embed` computes them with `modules`, which are on the device always (mode `keep`) or only
    during use (`offload`, and `free` until `free()` drops them).
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
        with self.on_device():
            return self.embed(list(prompts))

    def conditioning(self, prompts: Sequence[str], empty: Mapping[str, Tensor]) -> Conditioning:
        """Embeddings of the prompts; `empty`, each (1, ...), is the unconditional prompt's."""
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
        """Encode missing prompts into a cache in `folder`; returns messages for replaced files.

        Each prompt is encoded by itself and stored unpadded. `show` may wrap the missing prompts
        for a progress bar. Raises DirectAlignError if the disk is too small for them.
        """
        with self.on_device():
            fingerprint = fingerprint_of(self.modules, self.embed([PROBE]))
            self.cache = cache = EmbeddingCache(folder, fingerprint)
            unique = dict.fromkeys(prompts)
            there = {prompt: cache.fault(prompt) for prompt in unique if cache.has(prompt)}
            missing = [prompt for prompt in unique if prompt not in there or there[prompt]]
            for place, prompt in enumerate(show(missing) if missing else ()):
                cache.write(prompt, self.embed([prompt]))
                if place == 0:
                    cache.check_room(prompt, len(missing) - 1)
        return [fault for fault in there.values() if fault]

    def free(self) -> None:
        """Drop the encoders and free their memory; then only stored prompts can be read."""
        assert self.cache is not None, "store the prompts first"
        self.modules.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """The encoders are on the device inside, and where `mode` puts them afterwards."""
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
    """Concatenate (1, n, ...) to (b, max n, ...), zeros at the end of shorter rows."""
    return pad_sequence([row[0] for row in rows], batch_first=True)


def joined(rows: Sequence[Tensor]) -> dict[str, Tensor]:
    """Rows (1, n, ...) as `sequence` (b, max n, ...) and its boolean `mask` (b, max n)."""
    masks = [torch.ones(row.shape[:2], dtype=torch.bool, device=row.device) for row in rows]
    return {"sequence": padded(rows), "mask": padded(masks)}
