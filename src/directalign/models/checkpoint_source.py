"""Find or download a checkpoint: a diffusers folder, a hub repository, a single file with
components of either, or an embedded pipeline (world:...).

From a hub repository, configs, tokenizers, scheduler and the safetensors of one variant are
downloaded; no other formats, and no single files beside the folders. `components` loads the parts.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import config
from ..io import hub, text
from ..toyworld import assets
from ..toyworld.worlds import world_of
from ..types import DirectAlignError
from . import single_file
from .weight_files import chosen, read_json, variant_of_part

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
SMALL = (".json", ".txt", ".model", ".jinja")
"""Configs, vocabularies, schedulers, chat templates."""
ROOT = ("model_index.json", "directalign.json")
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of pipelines that no model here reads."""


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine.

    `name` is the recipe's model.path; `folder` a diffusers folder with every part. Weights in
    `single_file` replace the folder's. `variant` selects the weight files (fp16), None the plain
    ones.
    """

    name: str
    folder: Path
    single_file: Path | None = None
    variant: str | None = None
    build: Callable[[str, type, torch.dtype], Any] | None = None
    """Makes a part from its name, class and dtype in place of reading its files (memory estimates).
    """
    pipeline: Any = None
    """A diffusers pipeline in memory, whose parts are used as they are; `folder` says where it was
    loaded from and need not exist."""
    elsewhere: Mapping[str, Path] = field(default_factory=dict)
    """Folders of parts that the checkpoint comes without, by part (`model.args`)."""

    @property
    def device(self) -> torch.device | None:
        """That of the pipeline in memory."""
        return None if self.pipeline is None else self.pipeline.device

    def index(self) -> dict[str, Any]:
        """The content of model_index.json, or the config of the pipeline in memory."""
        if self.pipeline is not None:
            return dict(self.pipeline.config)
        return read_json(self.folder / ROOT[0]) | {
            part: ["transformers", self._class_of(part)] for part in self.elsewhere
        }

    def place(self, part: str) -> Path:
        """The folder of a part."""
        return self.elsewhere.get(part, self.folder / part)

    def _class_of(self, part: str) -> str | None:
        if part.startswith("tokenizer"):
            return "PreTrainedTokenizerFast"
        return next(
            iter(read_json(self.place(part) / "config.json").get("architectures", [])), None
        )


def open_source(model: config.ModelConfig, weights: bool = True) -> Source:
    """The recipe's checkpoint, downloaded if it is on the hub, with or without the weights.

    Raises DirectAlignError if it is missing, cannot be downloaded, or is not a checkpoint.
    """
    if model.path.endswith(PICKLES):
        remedy = "convert it: torch.load(..., weights_only=True), then safetensors.torch.save_file"
        raise DirectAlignError(
            f"model.path: {model.path}: pickled weights can run code when they are read, and are "
            f"not read here: {remedy}"
        )
    if not model.path.endswith(".safetensors"):
        if separate_parts(model).keys() - model.args.keys():  # before anything large is downloaded
            check_separate(model, _folder(model.path, "model.path", model, weights=False))
        load = partial(_download_language_model, weights=weights)
        elsewhere = named_parts(model, load)
        folder = _folder(model.path, "model.path", model, weights)
        return Source(model.path, folder, variant=model.variant, elsewhere=elsewhere)
    file = Path(model.path).expanduser()
    held = single_file.contents(file)
    if model.components is None:
        from . import model_class  # which imports this module

        example = model_class(model.architecture).components
        raise DirectAlignError(
            f"model.components: missing; {file} holds {held.layout.name} without its configs and "
            f"tokenizers: give a diffusers folder or hub id of that architecture, such as {example}"
        )
    folder = _folder(model.components, "model.components", model, weights, held.parts)
    return Source(model.path, folder, file, model.variant)


def separate_parts(model: config.ModelConfig) -> Mapping[str, tuple[str, ...]]:
    """For each key of `model.args` that may name a folder, the parts that it holds.

    Raises DirectAlignError for other keys, unless they are for a class of the user's own, and for a
    value that is no text.
    """
    if ".py:" in model.architecture:
        return {}
    from . import model_class  # which imports this module

    found: Mapping[str, tuple[str, ...]] = model_class(model.architecture).separate_parts
    if unknown := sorted(model.args.keys() - found.keys()):
        if found:
            known = f"{model.architecture} takes {' and '.join(found)} only"
            raise DirectAlignError(f"model.args: {unknown[0]}: {known}: correct or remove it")
        raise DirectAlignError(
            f"model.args: {unknown[0]} is for a class of your own, my_model.py:MyModel, not for "
            f"{model.architecture}: remove it"
        )
    for key in found.keys() & model.args.keys():
        if not isinstance(value := model.args[key], str):
            raise DirectAlignError(
                f"model.args.{key}: {json.dumps(value)}: is no text: give a folder or hub id"
            )
    return found


def check_separate(model: config.ModelConfig, folder: Path | None) -> None:
    """Raise DirectAlignError for parts that neither `folder` nor `model.args` has.

    None: the release that is not downloaded yet, which has none of them. A folder of another
    pipeline is not checked: it is refused as such when its parts are.
    """
    from . import model_class  # which imports this module

    missing = {key: parts for key, parts in separate_parts(model).items() if key not in model.args}
    if missing and folder is not None:
        held = read_json(folder / ROOT[0]).get("_class_name")
        if held != model_class(model.architecture).pipeline:
            return
    for key, parts in missing.items():
        lacking = [part for part in parts if folder is None or not (folder / part).is_dir()]
        if lacking:
            raise DirectAlignError(
                f"model.args: {key} is missing; {model.path} comes without {' and '.join(lacking)}:"
                f" give the folder or hub id of its {key.capitalize()}, args: {{{key}: owner/name}}"
            )


def named_parts(
    model: config.ModelConfig, place_of: Callable[[str, str], Path | None]
) -> dict[str, Path]:
    """The folders that `model.args` names, by part.

    `place_of` takes a path and its key, and gives the folder, None if it is not here.
    """
    found = dict[str, Path]()
    for key, parts in separate_parts(model).items():
        path, name = model.args.get(key, ""), f"model.args.{key}"
        place = place_of(path, name) if key in model.args else None
        if place is not None and not place.is_dir():
            raise DirectAlignError(f"{name}: {path}: no such folder: give a folder or hub id")
        if place is not None and not (place / "config.json").is_file():
            raise DirectAlignError(
                f"{name}: {path}: holds no config.json: give a folder or hub id in the format of "
                "transformers"
            )
        found |= {} if place is None else dict.fromkeys(parts, place)
    return found


def _download_language_model(path: str, key: str, weights: bool) -> Path:
    """The folder of a path or hub id in the format of transformers."""
    if not hub.is_hub_id(path):
        return Path(path).expanduser()
    names = [name for name in hub.listing(path, key) or ["config.json"] if "/" not in name]
    wanted = [name for name in names if name.endswith(SMALL)]
    wanted += chosen(names, None, f"{key}: {path}") if weights and len(names) > 1 else []
    return hub.download(path, wanted, key)


def _folder(
    path: str, key: str, model: config.ModelConfig, weights: bool, held: Collection[str] = ()
) -> Path:
    """The diffusers folder of a path or hub id; weights of the parts `held` are not downloaded."""
    if hub.is_hub_id(path):
        return _download(path, key, model, weights, held)
    if model.revision is not None:
        raise DirectAlignError(
            f"model.revision: {model.revision} is for the hub, and {key}: {path} is not a hub id "
            "(owner/name): leave it out"
        )
    return assets.resolve(path) if world_of(path) else Path(path).expanduser()


def _download(
    repo: str, key: str, model: config.ModelConfig, weights: bool, held: Collection[str]
) -> Path:
    folder = hub.download(repo, ROOT, key, model.revision)
    if not (folder / ROOT[0]).is_file():
        raise DirectAlignError(
            f"{key}: {repo}: holds no {ROOT[0]}: a repository in diffusers format is needed, "
            "not one of single files"
        )
    named = (parts for key, parts in separate_parts(model).items() if key in model.args)
    elsewhere = {part for parts in named for part in parts}
    parts = [part for part in _parts(folder) if part not in elsewhere]
    heavy = [part for part in parts if weights and part not in held]
    names = hub.listing(repo, key, model.revision)
    if names is None:
        return _cached(repo, key, folder, parts, heavy)
    inside = {part: [name for name in names if name.startswith(f"{part}/")] for part in parts}
    wanted = [name for part in parts for name in inside[part] if name.endswith(SMALL)]
    for part in heavy:
        if f"{part}/config.json" in names:  # tokenizers and schedulers have none
            variant = variant_of_part(part, inside, model.variant)
            wanted += chosen(inside[part], variant, f"{key}: {repo}/{part}")
    return hub.download(repo, [*ROOT, *wanted], key, model.revision)


def _cached(repo: str, key: str, folder: Path, parts: list[str], heavy: list[str]) -> Path:
    """The cached snapshot, for use without a connection."""
    lacking = [part for part in parts if not (folder / part).is_dir()]
    lacking += [
        f"weights of {part}"
        for part in heavy
        if (folder / part / "config.json").is_file()
        and not any((folder / part).glob("*.safetensors"))
    ]
    if lacking:
        raise DirectAlignError(
            f"{key}: {repo}: the hub is out of reach, and the cache {folder} lacks "
            f"{', '.join(lacking)}: go online for the first run"
        )
    return folder


def _parts(folder: Path) -> list[str]:
    """The parts in model_index.json."""
    return [
        name
        for name, value in read_json(folder / ROOT[0]).items()
        if isinstance(value, list) and value[:1] not in ([], [None]) and name not in UNUSED
    ]


# --- whether it is still the same -----------------------------------------------------------------

SAMPLE, STRIDE = 2**12, 2**20
"""Bytes that a fingerprint reads of every STRIDE bytes of a file, besides the header's start."""


def fingerprint(model: config.ModelConfig) -> str | None:
    """Of the base model's weights and scheduler; None if they are not on this machine."""
    try:
        source = open_source(model, weights=False)
        files: dict[str, Path] = {}
        held: Collection[str] = ()
        if source.single_file is not None:
            files, held = {"": source.single_file}, single_file.contents(source.single_file).parts
        parts = [part for part in _parts(source.folder) if part not in source.elsewhere]
        inside = {part: sorted((source.folder / part).iterdir()) for part in parts}
        names = {part: [file.name for file in found] for part, found in inside.items()}
        for part in names.keys() - set(held):
            if "config.json" in names[part]:
                variant = variant_of_part(part, names, source.variant)
                for name in chosen(names[part], variant, source.folder / part):
                    files[f"{part}/{name}"] = source.folder / part / name
    except (DirectAlignError, OSError):
        return None
    files["scheduler"] = source.folder / "scheduler" / "scheduler_config.json"
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        if file.is_file():
            size = file.stat().st_size
            digest.update(f"{name} {size} ".encode())
            with file.open("rb") as stream:
                for place in range(0, size, STRIDE):
                    stream.seek(place)
                    digest.update(stream.read(SAMPLE if size > 64 * STRIDE else STRIDE))
    return digest.hexdigest()[:16]


def check_base(
    model: config.ModelConfig, run: Path, recorded: Mapping[str, Any] | None = None
) -> None:
    """Refuse a base model or adapters other than those of the run in folder `run`.

    `recorded`: its `model` section and the `base` fingerprint; None reads summary.json. Nothing is
    checked for a run without the record; the base not while it is not downloaded.
    """
    file, known = run / "summary.json", recorded or {}
    if recorded is None and file.is_file():
        known = text.read_json(file, "restore this record of the run")
    before, base = known.get("model", {}), known.get("base")
    for name in before.keys() & {"architecture", "tune", "lora"}:
        now = model.model_dump(mode="json")[name]
        was = before[name]
        if name == "lora":  # of an earlier version, without newer keys
            was = config.LoRAConfig().model_dump(mode="json") | was
        if now != was:
            raise DirectAlignError(
                f"{run / 'run.yaml'}: model.{name}: {now} is not what the run was trained with; "
                f"restore {was}"
            )
    found = base and fingerprint(model)
    if found and found != base:
        raise DirectAlignError(
            f"model.path: {model.path}: its weights or scheduler are not those that {run} was "
            f"trained on ({found}, not {base}): restore them, or name the version in "
            "model.revision of run.yaml"
        )
