"""Load the parts of a checkpoint, each with the class that model_index.json names.

Missing, truncated or wrong files raise DirectAlignError before the first weights are loaded.
Weights are read from safetensors only: nothing is unpickled or downloaded.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from ..io.pretrained import from_pretrained, load_network
from ..types import DirectAlignError
from . import single_file
from .checkpoint_source import Source
from .weight_files import read_json, variant_of_part, weights_files

LIBRARIES = {
    "diffusers": diffusers,
    "transformers": transformers,
    "kolors": diffusers.pipelines.kolors,
}
"""Where classes of parts are, by the library that model_index.json names."""
BASES = (
    diffusers.ModelMixin,
    diffusers.SchedulerMixin,
    transformers.PreTrainedModel,
    transformers.PreTrainedTokenizerBase,
)
"""Classes of these may be parts: no Auto* class, which would follow what other files say."""
MANY_LAYERS = 10_000
Parts = Mapping[str, type | None]
"""Class of each part by name, None for any."""


def load_parts(
    source: Source, pipeline: str, parts: Parts, dtypes: Mapping[str, torch.dtype]
) -> dict[str, Any]:
    """The parts of a checkpoint by name; models are frozen and in eval mode.

    `pipeline` is the class name that model_index.json must have. `parts` maps each part to its
    class, None for any. `dtypes` gives the dtype of each model. Raises DirectAlignError with file,
    content and remedy.
    """
    if source.pipeline is not None:
        return _pipeline_parts(source.pipeline, parts)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    if source.build is None:
        classes = check_parts(source, pipeline, parts)
    else:
        classes = _part_classes(source, source.index(), parts)
    build = source.build or partial(_load_part, source)
    return {
        name: build(name, part, dtypes.get(name, torch.float32)) for name, part in classes.items()
    }


def _pipeline_parts(pipeline: Any, parts: Parts) -> dict[str, Any]:
    """The parts of a pipeline in memory, models frozen and in eval mode, and a new scheduler."""
    found = {name: getattr(pipeline, name, None) for name in parts}
    for name, part in found.items():
        wanted = parts[name]
        if part is None or (wanted is not None and not isinstance(part, wanted)):
            needed = wanted.__name__ if wanted else name
            made = f"pipe.{name} = {needed}.from_config(pipe.{name}.config)"
            remedy = made if name == "scheduler" and part else "load the pipeline again"
            raise DirectAlignError(
                f"pipe.{name}: is a {type(part).__name__}, a {needed} is needed: {remedy}"
            )
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    if (scheduler := found.get("scheduler")) is not None:
        found["scheduler"] = type(scheduler).from_config(scheduler.config)
    return found


def check_parts(
    source: Source, pipeline: str, parts: Parts, weights: bool = True
) -> dict[str, type]:
    """The class of each part, after checking all files by configs and (with `weights`) headers.

    Raises DirectAlignError for a missing or truncated file or variant, or another architecture.
    """
    index_file = source.folder / "model_index.json"
    index, held = source.index(), _held(source)
    if index.get("_class_name") != pipeline:
        raise DirectAlignError(
            f"{index_file}: holds a {index.get('_class_name')}, not a {pipeline}: "
            "set model.architecture to match model.path"
        )
    if held is not None and held.layout.part not in index:
        raise DirectAlignError(
            f"{held.file}: holds {held.layout.name}, and {index_file} is a {pipeline}: "
            "give model.components and model.architecture to match"
        )
    classes = _part_classes(source, index, parts)
    for name, part in classes.items():
        if held is not None and name in held.parts:
            single_file.check(held, name, part, source.folder)
        else:
            _check_part(source.place(name), part, _variant(source, name), weights)
    return classes


def _variant(source: Source, part: str) -> str | None:
    if part in source.elsewhere:
        return None
    files = [(file.parent.name, file.name) for file in source.folder.glob("*/*.safetensors")]
    names = {each: [name for folder, name in files if folder == each] for each, _ in files}
    return variant_of_part(part, names, source.variant)


def _held(source: Source) -> single_file.Contents | None:
    return None if source.single_file is None else single_file.contents(source.single_file)


def _part_classes(source: Source, index: Mapping[str, Any], parts: Parts) -> dict[str, type]:
    classes = dict[str, type]()
    for name, wanted in parts.items():
        index_file = source.folder / "model_index.json"
        if name in source.elsewhere:
            index_file = source.place(name) / "config.json"
        entry = index.get(name)
        pair = entry if isinstance(entry, list) and len(entry) == 2 else (None, entry)
        library, class_name = pair
        found = getattr(LIBRARIES.get(str(library)), str(class_name), None)
        if str(class_name).endswith("Processor"):  # it may need torchvision, its tokenizer does not
            found = transformers.PreTrainedTokenizerFast
        if not isinstance(found, type) or not issubclass(found, BASES):
            raise DirectAlignError(
                f"{index_file}: {name} is {class_name} of {library}, which is no class of models, "
                "tokenizers or schedulers there: give a complete folder"
            )
        if wanted is not None and not issubclass(found, wanted):
            raise DirectAlignError(
                f"{index_file}: {name} is a {class_name}, a {wanted.__name__} is needed: "
                "give another model.path"
            )
        classes[name] = found
    return classes


def _check_part(folder: FilePath, part: Any, variant: str | None, weights: bool) -> None:
    if not folder.is_dir():
        raise DirectAlignError(
            f"{folder}: no such folder: give a complete diffusers folder in model.path"
        )
    if issubclass(part, nn.Module):
        settings = read_json(folder / "config.json")
        if weights:
            weights_files(folder, variant)
        for key, value in settings.items():
            if "layers" in key and isinstance(value, int) and value > MANY_LAYERS:
                raise DirectAlignError(
                    f"{folder / 'config.json'}: {key} is {value:,}, more than any network has; "
                    "restore the file"
                )
    else:
        _check_vocabulary(folder, part)


def _check_vocabulary(folder: FilePath, part: Any) -> None:
    """transformers would make an empty tokenizer if its files are missing."""
    vocabulary: dict[str, str] = getattr(part, "vocab_files_names", {})
    others = [name for key, name in vocabulary.items() if key != "tokenizer_file"]
    whole = (folder / "tokenizer.json").is_file() or (
        others and all((folder / name).is_file() for name in others)
    )
    if vocabulary and not whole:
        raise DirectAlignError(
            f"{folder}: lacks {', '.join(vocabulary.values())}: copy the tokenizer's files again"
        )


def _load_part(source: Source, name: str, part: Any, dtype: torch.dtype) -> Any:
    folder, held = source.place(name), _held(source)
    if held is not None and name in held.parts:
        return single_file.load(held, name, part, source.folder, dtype)
    if issubclass(part, nn.Module):
        return load_network(part, folder, dtype, variant=_variant(source, name))
    made = from_pretrained(part, folder)
    steps = getattr(made, "config", {}).get("num_train_timesteps", 1)
    if not isinstance(steps, int) or steps < 1:
        raise DirectAlignError(
            f"{folder / 'scheduler_config.json'}: num_train_timesteps is {steps}; restore the file"
        )
    return made
