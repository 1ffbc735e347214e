"""Files of reward models: located here or on the hub, checked, read without running code.

Two kinds: transformers folders (safetensors, tokenizer, image settings), and single files as their
authors published them: `.safetensors`, or `.pt`, `.pth`, `.bin` with only tensors
(`weights_only`). Files that pickle whole objects are refused. Every missing, truncated, unknown or
misshapen part is one error that names the recipe's key, the file and the remedy.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from struct import error as StructError
from typing import Any, TypeVar
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .. import config
from ..errors import first_line, named
from ..io import hub
from ..io.hub import on_the_hub
from ..io.image_settings import IMAGE_SETTINGS
from ..io.pretrained import UNREADABLE, contents, from_pretrained, load_network
from ..io.tensors import (
    Shapes,
    check_names,
    check_safetensors,
    check_weights,
    shapes_of,
    tensor_shapes,
)
from ..toyworld.assets import resolve
from ..types import DirectAlignError
from . import common

WRAPPERS = ("state_dict", "module", "model")
"""Keys under which checkpoints store their tensors beside the optimiser's."""
FOLDER_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "vocab.txt")
FOLDER_SETTINGS = ("*config.json", "tokenizer*", "merges.txt", "special_tokens_map.json")
FOLDER_SETTINGS += VOCABULARIES[1:]
"""Files fetched from a hub repository beside its weights."""
CUT_SHORT = "not a complete file of weights (cut short, or of another kind): fetch it again"
Model = TypeVar("Model", bound=PreTrainedModel)


def locate(path: str, key: str, patterns: Sequence[str] = ()) -> Path:
    """The local file or folder of `path`: a local path, `world:...`, a hub id or a file on the hub.

    Of a hub repository only files that match `patterns` are fetched, with the file if one is named.

    Raises DirectAlignError naming `key`: nothing there, no access, no network.
    """
    if hub.is_hub_file(path):
        return hub.download_file(path, key, patterns)
    if hub.is_hub_id(path) and not common.is_weight_file(path):
        return hub.download(path, patterns, key)
    found = resolve(path).expanduser()
    if not found.exists():
        what = "folder; give a transformers folder or a hub id"
        if common.is_weight_file(path):
            what = "file; give the published weights, or owner/name/file on the hub"
        raise DirectAlignError(f"{key}: {path}: no such {what}")
    if found.is_file() and not common.is_weight_file(path):
        raise DirectAlignError(
            f"{key}: {path}: is no file of weights ({', '.join(common.WEIGHT_FILES)}); give one, a "
            "transformers folder or a hub id"
        )
    return found


def locate_offline(path: str, key: str, patterns: Sequence[str], online: bool) -> Path | None:
    """As `locate`; None for a hub repository unless `online`."""
    return locate(path, key, patterns) if online or not hub.is_hub_id(path) else None


def check_published(path: str, key: str, online: bool = False) -> Path | None:
    """The local file or folder of `path`; None for the hub, whose file list is read if `online`."""
    if hub.is_hub_file(path):
        repo, name = on_the_hub(path)
        listed = hub.listing(repo, key) if online else None
        if listed is not None and name not in listed:
            raise DirectAlignError(
                f"{key}: {path}: {repo} has no file {name}; give the name of its file of weights"
            )
    elif common.is_weight_file(path) or not hub.is_hub_id(path):
        return locate(path, key)
    return None


def read_weights(file: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a file by name, memory-mapped on the CPU, without a trainer's dictionaries.

    Raises DirectAlignError: truncated or not a weight file, pickled objects, or no tensors.
    """
    with named(key):
        if file.suffix == ".safetensors":
            check_safetensors(file)
            read: Any = load_file(file)
        else:
            read = _unpickled(file)
        while isinstance(read, Mapping):
            inside = [read[name] for name in WRAPPERS if isinstance(read.get(name), Mapping)]
            if not inside:
                break
            read = inside[0]
        items = read.items() if isinstance(read, Mapping) else ()
        tensors = {
            str(name).removeprefix("module."): value
            for name, value in items
            if isinstance(value, Tensor)
        }
        if not tensors:
            raise DirectAlignError(
                f"{file}: holds no tensors by name; give the file of the model's weights"
            )
        check_weights(tensors, file)
        return tensors


def _unpickled(file: Path) -> Any:
    """What a .pt, .pth or .bin holds, without running any of it."""
    try:
        if is_zipfile(file):
            with ZipFile(file) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise DirectAlignError(
                        f"{file}: holds a program (TorchScript), which is never run; save its "
                        "state_dict() as .safetensors where you trust it, or take a folder of "
                        "these weights"
                    )
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except DirectAlignError:
        raise
    except (pickle.UnpicklingError, BadZipFile, StructError, *UNREADABLE) as error:
        complaint = CUT_SHORT
        if isinstance(error, pickle.UnpicklingError) and "global" in str(error).lower():
            complaint = (
                "holds pickled objects, which are never run; save its state_dict() as "
                ".safetensors where you trust it"
            )
        raise DirectAlignError(f"{file}: {complaint}") from error


def read_shapes(file: Path, key: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a file, from its header if the format has one.

    Raises as `read_weights`.
    """
    if file.suffix != ".safetensors":
        return shapes_of(read_weights(file, key))
    with named(key):
        return tensor_shapes(file)


def check_tensors(
    wanted: Shapes, found: Shapes, file: Path, key: str, kind: str, optional: Sequence[str] = ()
) -> None:
    """`check_names` of a file's tensors (`found`) for a model of `kind`."""
    remedy = f"it must be the checkpoint of a {kind} of this size"
    check_names(wanted, found, f"{key}: {file}", remedy, tuple(optional))


@contextmanager
def sizes_read(file: Path, key: str, kind: str) -> Iterator[None]:
    """Inside, a model's sizes are read from the shapes in `file`, which may be another model's."""
    try:
        yield
    except DirectAlignError:
        raise
    except (LookupError, ValueError, TypeError, ZeroDivisionError) as error:
        why = f"lacks {error.args[0]}" if isinstance(error, KeyError) else first_line(error)
        raise DirectAlignError(
            f"{key}: {file}: {why}; it must be the checkpoint of a {kind}"
        ) from error


def sized(shapes: Shapes, name: str, rank: int) -> Sequence[int]:
    """The shape of a tensor that has `rank` dimensions, for use within `sizes_read`."""
    if len(shapes[name]) != rank:
        raise ValueError(f"has in another shape {name}")
    return shapes[name]


def count_layers(shapes: Shapes, before: str) -> int:
    """How many different numbers follow `before` in the names of tensors."""
    return len({n.removeprefix(before).split(".")[0] for n in shapes if n.startswith(before)})


def build(
    kind: Any, model_config: Any, weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> Any:
    """A transformers model of class `kind` from its config and checked weights, on the CPU."""
    logging.disable_progress_bar()
    options: dict[str, Any] = {"state_dict": weights, "dtype": dtype, "trust_remote_code": False}
    return kind.from_pretrained(None, config=model_config, **options)


def filled(model: Any, weights: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Any:
    """`model`, made on the meta device, with checked weights, on the CPU.

    Its transformers models are in `dtype`, its other parts in float32.
    """
    for part, module in model.named_children():
        own = {name: weights[f"{part}.{name}"] for name in module.state_dict()}
        if isinstance(module, PreTrainedModel):
            setattr(model, part, build(type(module), module.config, own, dtype))
        else:
            module.to_empty(device="cpu").float().load_state_dict(own)
    return model


FolderConfig = (
    config.ClipConfig
    | config.AltClipConfig
    | config.SiglipConfig
    | config.MpsConfig
    | config.LatentClipConfig
)


def fetch(
    settings: FolderConfig, key: str
) -> tuple[Path, Path, common.Preprocessing, PreTrainedTokenizerBase]:
    """The weights (folder or file), the folder of the processor, image settings and tokenizer."""
    patterns = () if common.is_weight_file(settings.path) else FOLDER_WEIGHTS
    weights = locate(settings.path, f"{key}.path", (*FOLDER_SETTINGS, *patterns))
    reader = reader_folder(settings, weights, key, online=True)
    assert reader is not None
    return weights, reader, *_read_processor(reader, settings, key)


def check_files(
    settings: FolderConfig, key: str, online: bool, kind: type[PreTrainedModel]
) -> Path | None:
    """Check everything but the layout of the weights.

    Returns the local weights (file or folder), None if they are on the hub. If `online`, a
    repository's file list and its settings are checked too.
    """
    weights = check_published(settings.path, f"{key}.path", online)
    if weights is not None and weights.is_dir():
        check_folder(weights, f"{key}.path", kind)
    elif online and not common.is_weight_file(settings.path):
        weights = locate(settings.path, f"{key}.path", FOLDER_SETTINGS)
    reader = reader_folder(settings, weights, key, online)
    if reader is not None:
        _read_processor(reader, settings, key)
    return weights


def reader_folder(
    settings: Any,
    weights: Path | None,
    key: str,
    online: bool,
    patterns: Sequence[str] = FOLDER_SETTINGS,
) -> Path | None:
    """The folder of tokenizer and image settings: `processor`, or where the weights are."""
    if settings.processor is not None:
        return locate_offline(settings.processor, f"{key}.processor", patterns, online)
    return weights.parent if weights is not None and weights.is_file() else weights


def _read_processor(
    folder: Path, settings: FolderConfig, key: str
) -> tuple[common.Preprocessing, PreTrainedTokenizerBase]:
    """Image settings and tokenizer of a folder."""
    key = processor_key(settings, key)
    if not folder.is_dir():
        raise DirectAlignError(
            f"{key}: {folder}: no such folder; give one with tokenizer and image settings"
        )
    beside = settings.processor is None and common.is_weight_file(settings.path)
    for names, missing in (
        (VOCABULARIES, "tokenizer.json"),
        (IMAGE_SETTINGS, "preprocessor_config.json"),
    ):
        if beside and not any((folder / name).exists() for name in names):
            raise DirectAlignError(
                f"{key}: missing, and {folder} beside the weights has no {missing}: name a folder "
                "or hub id with tokenizer and image settings"
            )
    return common.Preprocessing.read(folder), read_tokenizer(folder, key)


def read_model_type(folder: Path, key: str, kind: str) -> str | None:
    """`model_type` of a folder's config.json. Raises DirectAlignError: no folder, or no JSON."""
    if not folder.is_dir():
        raise DirectAlignError(f"{key}: {folder}: no such folder; give a {kind} folder")
    file = folder / "config.json"
    if not file.exists():
        raise DirectAlignError(
            f"{key}: {folder}: config.json is missing; the folder holds {contents(folder)}: give a "
            f"complete {kind} folder"
        )
    return common.read_json(file, key).get("model_type")


def class_of(folder: Path, key: str, *kinds: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The one of `kinds` that a folder holds. Raises DirectAlignError: none of them, no folder."""
    title = f"transformers {' or '.join(kind.__name__ for kind in kinds)}"
    found = read_model_type(folder, key, title)
    for kind in kinds:
        if kind.config_class is not None and kind.config_class.model_type == found:
            return kind
    raise DirectAlignError(
        f"{key}: {folder}: holds a model of type {found}; give the folder of a {title}"
    )


def check_folder(folder: Path, key: str, kind: type[PreTrainedModel]) -> None:
    """Raise DirectAlignError for missing files, another architecture or truncated weights."""
    class_of(folder, key, kind)
    files = set(folder.glob("*.safetensors"))
    if not files:
        raise DirectAlignError(
            f"{key}: {folder}: model.safetensors is missing; save the model with safetensors"
        )
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files |= {folder / name for name in common.read_json(index, key)["weight_map"].values()}
    with named(key):
        for file in sorted(files):
            check_safetensors(file)


def read_config(kind: type[PreTrainedModel], folder: Path, key: str) -> Any:
    """The config of a `kind` of model in a folder; raises as `class_of`, or if damaged."""
    class_of(folder, key, kind)
    with named(key):
        return from_pretrained(kind.config_class, folder)


def load_model(
    kind: type[Model], folder: Path, key: str, dtype: torch.dtype = torch.float32
) -> Model:
    """Load a model from a checked folder, in `dtype`, on the CPU."""
    logging.disable_progress_bar()
    for file in sorted(folder.glob("*.safetensors")):
        read_weights(file, key)
    with named(key):
        return load_network(kind, folder, dtype)


def check_side(side: int, preprocessing: common.Preprocessing, key: str) -> None:
    """Refuse image settings that make other images than the model's, `side` pixels a side."""
    rows, columns = preprocessing.crop
    if (rows, columns) != (side, side):
        raise DirectAlignError(
            f"{key}: its images are {rows} x {columns} and the model reads {side} x {side}; name "
            "its own processor"
        )


def check_fits(
    model_config: Any,
    preprocessing: common.Preprocessing,
    tokenizer: PreTrainedTokenizerBase,
    key: str,
) -> None:
    """Refuse image settings or a vocabulary that the model has no positions or embeddings for."""
    check_side(model_config.vision_config.image_size, preprocessing, key)
    known = model_config.text_config.vocab_size
    if len(tokenizer) > known:
        raise DirectAlignError(
            f"{key}: its tokenizer has {len(tokenizer)} tokens and the model knows {known}; name "
            "its own processor"
        )


def processor_key(settings: Any, key: str) -> str:
    """The recipe key that sets where tokenizer and image settings come from."""
    inside = settings.processor is None and not common.is_weight_file(settings.path)
    return f"{key}.path" if inside else f"{key}.processor"


def read_tokenizer(folder: Path, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. Raises DirectAlignError: missing or unreadable."""
    if not any((folder / name).exists() for name in VOCABULARIES):
        raise DirectAlignError(
            f"{key}: {folder}: tokenizer.json (or vocab.json and merges.txt, or vocab.txt) is "
            "missing; copy it from the original checkpoint"
        )
    with named(key):
        return from_pretrained(AutoTokenizer, folder)


def text_reader(
    settings: FolderConfig, key: str, online: bool, longest: int, clean: Callable[[str], str] = str
) -> common.TextReader | None:
    """How a reward with the tokenizer of `processor`, or of its own folder, reads prompts.

    `longest`: tokens it reads where config.json does not say. None if the tokenizer is on the hub
    and not `online`.
    """
    where = settings.processor or settings.path
    if common.is_weight_file(where):
        where = str(Path(where).parent)
    folder = locate_offline(where, key, FOLDER_SETTINGS, online)
    if folder is None:
        return None
    if (folder / "config.json").exists():
        text = common.read_json(folder / "config.json", key).get("text_config")
        longest = (text if isinstance(text, dict) else {}).get("max_position_embeddings", longest)
    return common.TextReader(read_tokenizer(folder, processor_key(settings, key)), longest, clean)


def linear_layers(prefix: str, numbers: Sequence[int], width: int, shapes: Shapes) -> nn.Sequential:
    """Linear layers `prefix`.`number` from (b, width) to (b, 1).

    Inner widths come from a file's `shapes` (1 where a layer is missing). The published heads of
    ImageReward and the aesthetic predictors have no activations; layers are kept separate so that a
    file is checked tensor by tensor.
    """
    inner = [(*shapes.get(f"{prefix}.{number}.weight", ()), 1)[0] for number in numbers[:-1]]
    layers = [nn.Linear(given, made) for given, made in pairwise([width, *inner, 1])]
    chain = nn.Sequential(OrderedDict(zip(map(str, numbers), layers, strict=True)))
    for name in reversed(prefix.split(".")):
        chain = nn.Sequential(OrderedDict({name: chain}))
    return chain


def plain_layers(width: int, inner: Sequence[int]) -> nn.Sequential:
    """The layers of `linear_layers` from known inner widths, under names of their own."""
    return nn.Sequential(*(nn.Linear(given, made) for given, made in pairwise([width, *inner, 1])))
