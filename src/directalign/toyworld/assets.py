"""The toy worlds' weights, and how they become complete folders.

Shipped as 16-bit safetensors, each shared part once. `export` writes float32 diffusers and
transformers folders that load without this package; `resolve("world:flux")` returns such a folder
from a cache.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ..types import DirectAlignError
from .worlds import WORLDS, World, world_of


def file(world: World, name: str) -> Path:
    """One shipped file, e.g. `judges/style.safetensors`."""
    path = world.assets / name
    if not path.exists():
        raise DirectAlignError(
            f"embedded asset {name} is missing from {world.assets}: reinstall the package, or "
            "train it with `python -m tools.build_toyworld DIR` of the repository"
        )
    return path


def resolve(path: str) -> Path:
    """A folder on disk: a model of a toy world (world:flux) from the cache, else `path`.

    A damaged folder of the cache is written again.
    """
    world = world_of(path)
    if world is None:
        return Path(path)
    name = path.removeprefix(f"{world.name}:")
    if name not in world.models:
        names = ", ".join(f"{world.name}:{each}" for each in world.models)
        raise DirectAlignError(f"no embedded model {path!r}: choose {names}")
    folder = cache_root() / f"{world.name}-{_digest(world.assets)[:12]}" / name
    whole = folder.with_suffix(".sha256")
    if folder.exists() and (not whole.exists() or whole.read_text() != _digest(folder)):
        shutil.rmtree(folder)
    if not folder.exists():
        _make(folder.parent)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder.parent) as partial:
            _write(world, name, Path(partial) / name)
            whole.write_text(_digest(Path(partial) / name))
            try:
                (Path(partial) / name).replace(folder)
            except OSError:
                if not folder.exists():  # otherwise another process has written it first
                    raise
    return folder


def export(folder: Path, world: World = WORLDS["world"]) -> list[Path]:
    """Write all models of a world into `folder` as complete folders.

    Raises: DirectAlignError if one exists.
    """
    there = [name for name in world.models if (folder / name).exists()]
    if there:
        raise DirectAlignError(f"{folder / there[0]} exists already: choose an empty folder")
    for name in world.models:
        _write(world, name, folder / name)
    return [folder / name for name in world.models]


def _make(folder: Path) -> None:
    """Create a folder of the cache. Raises DirectAlignError with the remedy if it cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, "Permission denied")
    except OSError as error:
        raise DirectAlignError(
            f"{folder}: cannot be written ({error.strerror}); set the environment variable "
            "DIRECTALIGN_CACHE to a folder that you may write to"
        ) from error


def cache_root() -> Path:
    """Cache folder: $DIRECTALIGN_CACHE, else `directalign` in $XDG_CACHE_HOME or ~/.cache."""
    return Path(
        os.environ.get("DIRECTALIGN_CACHE")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "directalign"
    )


def _digest(folder: Path) -> str:
    """Of the names and contents of all files, read again when a size or a time differs."""
    found = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return _digest_of(folder, tuple((path, s.st_size, s.st_mtime_ns) for path, s in found))


@lru_cache(maxsize=64)
def _digest_of(folder: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, *_ in files:
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def _write(world: World, name: str, folder: Path) -> None:
    if name in world.rewards:
        _copy_part(file(world, name), folder)
        return
    for part, source in world.pipelines[name].items():
        _copy_part(file(world, source), folder / part)
    if (
        "unet" in world.pipelines[name]
    ):  # a Stable Diffusion pipeline scales its latents but does not shift them
        _edit_json(folder / "vae/config.json", shift_factor=None)
    for lora in file(world, name).glob("*.safetensors"):
        _merge(load_file(lora), folder / "transformer/diffusion_pytorch_model.safetensors")
    for path in file(world, name).glob("*.json"):
        shutil.copy(path, folder / path.name)


def _copy_part(source: Path, target: Path) -> None:
    """Copy one part's folder, its weights widened to float32."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix == ".safetensors":
            stored = load_file(path).items()
            wide = {key: each.float() if each.is_floating_point() else each for key, each in stored}
            save_file(wide, target / path.name, metadata={"format": "pt"})
            shutil.copymode(path, target / path.name)
        else:
            shutil.copy(path, target / path.name)
    config = target / "config.json"
    if config.exists() and "dtype" in json.loads(config.read_text()):
        _edit_json(config, dtype="float32")


def _merge(lora: dict[str, torch.Tensor], target: Path) -> None:
    """Add a LoRA in diffusers' names, alpha equal to rank, to the weights of a transformer."""
    weights, up = load_file(target), "lora_B.weight"
    for name in (each for each in lora if each.endswith(up)):
        layer, down = name.removeprefix("transformer."), lora[name.replace(up, "lora_A.weight")]
        weights[layer.replace(up, "weight")] += lora[name].float() @ down.float()
    save_file(weights, target, metadata={"format": "pt"})


def _edit_json(path: Path, **values: object) -> None:
    found = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(found | values, indent=2) + "\n", encoding="utf-8")


def write_pictures(
    folder: Path, count: int, style: str = "photo", seed: int = 0, world: World = WORLDS["world"]
) -> Path:
    """Render `count` random scenes of a world in one of its styles into an empty or new folder.

    Equal seeds give equal files.
    """
    drawn = world.scenes
    if style not in drawn.STYLES:
        raise DirectAlignError(
            f"style {style!r} is not of {world.title}: choose {', '.join(drawn.STYLES)}"
        )
    if count < 1:
        raise DirectAlignError(f"count {count}: ask for at least one picture")
    if folder.exists() and any(folder.iterdir()):
        raise DirectAlignError(f"{folder} is not empty: choose a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    scenes = drawn.draw_scenes(count, generator).with_style(style)
    pixels = (
        (drawn.render(scenes, generator).permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    )
    for index, (caption, picture) in enumerate(zip(scenes.captions(), pixels, strict=True)):
        Image.fromarray(picture).save(folder / f"{index:05d}.png")
        (folder / f"{index:05d}.txt").write_text(caption + "\n", encoding="utf-8")
    return folder
