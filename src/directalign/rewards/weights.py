"""Files of reward models: located here or on the hub, checked before loading, and read without running code.

Two kinds: transformers folders (safetensors, tokenizer, image settings), and single files as their authors published
them: `.safetensors`, or `.pt`, `.pth`, `.bin` that hold tensors alone (`weights_only`). Files that pickle whole objects
are refused. Every missing, truncated, unknown or misshapen part is one error that names the recipe's key, the file and
the remedy.
"""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from struct import error as StructError
from typing import Any, TypeVar
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .. import config
from ..io import hub
from ..toyworld.assets import resolve
from ..types import DirectAlignError
from .common import Preprocessing

Shapes = Mapping[str, Sequence[int]]
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin")
WRAPPERS = ("state_dict", "module", "model")
"""Keys under which checkpoints keep their tensors beside the optimiser's."""


def is_weight_file(path: str) -> bool:
    """Whether `path` names a file of weights rather than a folder or a repository."""
    return Path(path).suffix in WEIGHT_FILES


def on_the_hub(path: str) -> tuple[str, str]:
    """Repository and file of owner/name/file."""
    match = hub.HUB_FILE.fullmatch(path)
    assert match is not None, path
    return match[1], match[2]


def locate(path: str, key: str, patterns: Sequence[str]) -> Path:
    """The local file or folder of `path`, a local path, `world:...`, or from the hub (of a repository only files that match `patterns`).

    Raises DirectAlignError naming `key`: nothing there, no access, no network.
    """
    if hub.is_hub_file(path):
        return hub.download_file(path, key)
    found = (
        hub.download(path, patterns, key)
        if hub.is_hub_id(path) and not is_weight_file(path)
        else resolve(path).expanduser()
    )
    if not found.exists():
        what = (
            "file; give the published weights, or owner/name/file on the hub"
            if is_weight_file(path)
            else "folder; give a transformers folder or a hub id"
        )
        raise DirectAlignError(f"{key}: {path}: no such {what}")
    if found.is_file() and not is_weight_file(path):
        raise DirectAlignError(
            f"{key}: {path}: is no file of weights ({', '.join(WEIGHT_FILES)}); give one, a transformers folder or a hub id"
        )
    return found


def check_published(path: str, key: str, online: bool = False) -> None:
    """Check that `locate` would find the path, without fetching weights; if `online`, check the hub's file list too."""
    if hub.is_hub_file(path):
        repo, name = on_the_hub(path)
        there = hub.listing(repo, key) if online else None
        if there is not None and name not in there:
            raise DirectAlignError(
                f"{key}: {path}: {repo} has no file {name}; give the name of its file of weights"
            )
    elif is_weight_file(path) or not hub.is_hub_id(path):
        locate(path, key, ())


def read_weights(file: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a file, memory-mapped on the CPU, without the dictionaries that trainers wrap around them.

    Raises DirectAlignError: truncated or not a weight file, pickled objects, or no tensors.
    """
    if _is_program(file):
        raise DirectAlignError(f"{key}: {file}: {PROGRAM}")
    try:
        read = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
        )
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and "global" in str(error).lower():
            raise DirectAlignError(
                f"{key}: {file}: holds pickled objects, which are never run; save its state_dict() as .safetensors where you trust it"
            ) from error
        raise DirectAlignError(f"{key}: {file}: {CUT_SHORT}") from error
    except UNREADABLE as error:
        raise DirectAlignError(f"{key}: {file}: {CUT_SHORT}") from error
    tensors = _unwrapped(read)
    if not tensors:
        raise DirectAlignError(
            f"{key}: {file}: holds no tensors by name; give the file of the model's weights"
        )
    return tensors


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def read_shapes(file: Path, key: str) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a file, without reading values where the format allows. Errors as `read_weights`."""
    if file.suffix != ".safetensors":
        return {name: tuple(tensor.shape) for name, tensor in read_weights(file, key).items()}
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise DirectAlignError(f"{key}: {file}: {CUT_SHORT}") from error


UNREADABLE = (
    SafetensorError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    BadZipFile,
    StructError,
)
PROGRAM = "holds a program (TorchScript), which is never run; save its state_dict() as .safetensors where you trust it, or take a folder of these weights"
CUT_SHORT = "not a complete file of weights (cut short, or of another kind): fetch it again"


def _is_program(file: Path) -> bool:
    if not is_zipfile(file):
        return False
    with ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _unwrapped(read: Any) -> dict[str, Tensor]:
    while isinstance(read, Mapping):
        inner = next((read[name] for name in WRAPPERS if isinstance(read.get(name), Mapping)), None)
        if inner is None:
            return {
                str(name).removeprefix("module."): value
                for name, value in read.items()
                if isinstance(value, Tensor)
            }
        read = inner
    return {}


def fill(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    file: Path,
    key: str,
    optional: Sequence[str] = (),
) -> None:
    """Load `weights` into `model` in its own dtype. Names must match, except those starting with one of `optional`.

    Raises DirectAlignError as `check_tensors`.
    """
    own = shapes_of(model.state_dict())
    check_tensors(
        own,
        shapes_of(weights),
        file,
        key,
        type(model).__name__,
        optional,
    )
    model.load_state_dict({name: weights[name] for name in own if name in weights}, strict=False)


def check_tensors(
    wanted: Shapes, held: Shapes, file: Path, key: str, kind: str, optional: Sequence[str] = ()
) -> None:
    """Raise DirectAlignError for the first tensor that is missing, unknown or of another shape than `kind` needs, with the number of others."""
    free = tuple(optional)
    wrong = {
        "lacks": [name for name in wanted if name not in held and not name.startswith(free)],
        "has the unknown": [
            name for name in held if name not in wanted and not name.startswith(free)
        ],
        "has in another shape": [
            name for name in wanted if name in held and tuple(wanted[name]) != tuple(held[name])
        ],
    }
    for complaint, names in wrong.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise DirectAlignError(
                f"{key}: {file}: {complaint} {names[0]}{more}; it must be the checkpoint of a {kind} of this size"
            )


FOLDER_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
FOLDER_SETTINGS = (
    "*config.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
)
"""Files fetched from a hub repository beside its weights."""
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")
Model = TypeVar("Model", bound=PreTrainedModel)


def fetch(
    settings: config.ClipConfig | config.SiglipConfig | config.MpsConfig, key: str
) -> tuple[Path, Path]:
    """The weights (folder or file), and the folder of tokenizer and image settings: `processor`, else where the weights are."""
    weights = locate(settings.path, f"{key}.path", (*FOLDER_SETTINGS, *FOLDER_WEIGHTS))
    if hub.is_hub_file(settings.path):
        hub.download(
            on_the_hub(settings.path)[0], FOLDER_SETTINGS, f"{key}.path"
        )  # what lies beside the file
    if settings.processor is not None:
        return weights, locate(settings.processor, f"{key}.processor", FOLDER_SETTINGS)
    return weights, weights.parent if weights.is_file() else weights


def check_files(
    settings: config.ClipConfig | config.SiglipConfig | config.MpsConfig,
    key: str,
    online: bool,
    kind: type[PreTrainedModel],
) -> Path | None:
    """Check everything but the layout of the weights. Returns the local weights (file or folder), None if they are on the hub.

    If `online`, also check a repository's file list and fetch its settings.
    """
    check_published(settings.path, f"{key}.path", online)
    for part, path in (("path", settings.path), ("processor", settings.processor)):
        if online and path is not None and hub.is_hub_id(path) and not is_weight_file(path):
            hub.download(path, FOLDER_SETTINGS, f"{key}.{part}")
    on_hub = hub.is_hub_file(settings.path) or (
        hub.is_hub_id(settings.path) and not is_weight_file(settings.path)
    )
    weights = None if on_hub else locate(settings.path, f"{key}.path", ())
    if weights is not None and weights.is_dir():
        check_folder(weights, f"{key}.path", kind)
    reader = settings.processor or (
        None if weights is None else str(weights if weights.is_dir() else weights.parent)
    )
    if reader is not None and not hub.is_hub_id(reader):
        read_processor(
            locate(reader, f"{key}.processor", ()),
            processor_key(settings, key),
            weights is not None and weights.is_file(),
        )
    return weights


def read_processor(
    folder: Path, key: str, beside: bool = False
) -> tuple[Preprocessing, PreTrainedTokenizerBase]:
    """Image settings and tokenizer of a folder; `beside`: the folder holds a bare weight file, so the remedy is another folder."""
    if not folder.is_dir():
        raise DirectAlignError(
            f"{key}: {folder}: no such folder; give one with tokenizer and image settings"
        )
    lacks_vocabulary = not any((folder / name).exists() for name in VOCABULARIES)
    lacks_images = not any(
        (folder / name).exists() for name in ("preprocessor_config.json", "processor_config.json")
    )
    if beside and (lacks_vocabulary or lacks_images):
        lacking = "tokenizer.json" if lacks_vocabulary else "preprocessor_config.json"
        raise DirectAlignError(
            f"{key}: missing, and {folder} beside the weights has no {lacking}: name a folder or hub id with tokenizer and image settings"
        )
    preprocessing = Preprocessing.read(folder)
    return preprocessing, read_tokenizer(folder, key)


def processor_of(
    settings: config.ClipConfig | config.SiglipConfig | config.MpsConfig,
    weights: Path,
    reader: Path,
    key: str,
) -> tuple[Preprocessing, PreTrainedTokenizerBase]:
    """`read_processor` for what `fetch` returned."""
    return read_processor(
        reader, processor_key(settings, key), weights.is_file() and settings.processor is None
    )


def check_folder(folder: Path, key: str, kind: type[PreTrainedModel]) -> None:
    """Raise one line for missing files, another architecture or truncated weights."""
    if not folder.is_dir():
        raise DirectAlignError(
            f"{key}: {folder}: no such folder; give a transformers {kind.__name__} folder or a hub id"
        )
    if not (folder / "config.json").exists():
        raise DirectAlignError(
            f"{key}: {folder}: config.json is missing; it must be a complete transformers {kind.__name__} folder"
        )
    told, settings_class = _model_type(folder / "config.json", key), kind.config_class
    assert settings_class is not None, kind
    if told != settings_class.model_type:
        raise DirectAlignError(
            f"{key}: {folder}: holds a model of type {told}; give the folder of a transformers {kind.__name__}"
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise DirectAlignError(
            f"{key}: {folder}: model.safetensors is missing; save the model with safetensors"
        )
    for file in weights:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise DirectAlignError(
                f"{key}: {file}: not a complete safetensors file ({error}); copy it again"
            ) from error


def load_model(
    kind: type[Model], folder: Path, key: str, dtype: torch.dtype = torch.float32
) -> Model:
    """Load a model from a checked folder, in `dtype`, on the CPU."""
    logging.disable_progress_bar()
    options: dict[str, Any] = {
        "dtype": dtype,
        "use_safetensors": True,
        "local_files_only": True,
        "output_loading_info": True,
    }
    try:
        loaded: Any = kind.from_pretrained(folder, **options)
    except UNREADABLE as error:
        raise DirectAlignError(
            f"{key}: {folder}: not a transformers {kind.__name__} ({first_line(error)})"
        ) from error
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise DirectAlignError(
            f"{key}: {folder}: weights lack {missing[0]} and {len(missing) - 1} more; take the weights that belong to config.json"
        )
    return model


def check_fits(
    model_config: Any, preprocessing: Preprocessing, tokenizer: PreTrainedTokenizerBase, key: str
) -> None:
    """Refuse image settings or a vocabulary that the model has no positions or embeddings for."""
    side = model_config.vision_config.image_size
    if preprocessing.crop != (side, side):
        raise DirectAlignError(
            f"{key}: its images are {preprocessing.crop[0]} x {preprocessing.crop[1]} and the model reads {side} x {side}; name its own processor"
        )
    known = model_config.text_config.vocab_size
    if len(tokenizer) > known:
        raise DirectAlignError(
            f"{key}: its tokenizer has {len(tokenizer)} tokens and the model knows {known}; name its own processor"
        )


def first_line(error: Exception) -> str:
    """The first line of a library's message."""
    return str(error).strip().split("\n")[0]


def processor_key(
    settings: config.ClipConfig | config.SiglipConfig | config.MpsConfig, key: str
) -> str:
    """The recipe key that sets where tokenizer and image settings come from."""
    return (
        f"{key}.path"
        if settings.processor is None and not is_weight_file(settings.path)
        else f"{key}.processor"
    )


def _model_type(file: Path, key: str) -> str | None:
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise DirectAlignError(
            f"{key}: {file}: not readable as JSON ({error}); copy it again from the original checkpoint"
        ) from error


def read_tokenizer(folder: Path, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. Raises DirectAlignError: missing or unreadable."""
    if not any((folder / name).exists() for name in VOCABULARIES):
        raise DirectAlignError(
            f"{key}: {folder}: tokenizer.json (or vocab.json and merges.txt) is missing; copy it from the original checkpoint"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise DirectAlignError(
            f"{key}: {folder}: its tokenizer cannot be read ({first_line(error)})"
        ) from error


def linear_layers(prefix: str, numbers: Sequence[int], width: int, shapes: Shapes) -> nn.Sequential:
    """Linear layers `prefix`.`number` from (b, width) to (b, 1); inner widths from a file's `shapes` (1 where a layer is missing).

    The published heads of ImageReward and the aesthetic predictors have no activations; layers are kept separate so that a
    file is checked tensor by tensor."""
    inner = [(*shapes.get(f"{prefix}.{number}.weight", ()), 1)[0] for number in numbers[:-1]]
    layers = [nn.Linear(given, made) for given, made in pairwise([width, *inner, 1])]
    chain = nn.Sequential(OrderedDict(zip(map(str, numbers), layers, strict=True)))
    for name in reversed(prefix.split(".")):
        chain = nn.Sequential(OrderedDict({name: chain}))
    return chain


def plain_layers(width: int, inner: Sequence[int]) -> nn.Sequential:
    """The layers of `linear_layers` from known inner widths, under names of their own."""
    return nn.Sequential(*(nn.Linear(given, made) for given, made in pairwise([width, *inner, 1])))
