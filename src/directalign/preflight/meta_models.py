"""Real model and reward classes without weights: built from configs on the meta device, then given fake tensors.

Configs come from a local folder, else from the hub's cache, else from the published models' configs
that this package brings (models/known). A hub id that is neither cached nor known is taken for its
architecture's usual model, with a warning. Tokenizers are stand-ins that give the longest prompts.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from .. import config
from ..interfaces import Model
from ..io import hub
from ..models import model_class, single_file
from ..models.checkpoint_source import Source
from ..models.lora import trained
from ..models.quantization import is_quantized, stored_bytes
from ..models.weight_files import read_json
from ..rewards.weights import is_weight_file, locate, on_the_hub
from ..toyworld import assets
from ..types import DirectAlignError
from .activation_memory import make_fake, replay_repeated

KNOWN = Path(__file__).parents[1] / "models" / "known"
USUAL = {
    "clip": "clip_vit_h",
    "siglip": "siglip_so400m",
    "image_reward": "image_reward",
    "vlm": "qwen2_5_vl_7b",
    "laion": "clip_vit_l",
}
"""For each kind of reward network, the published config that an unknown hub id is taken for."""
IMAGE_SETTINGS = ("preprocessor_config.json", "processor_config.json")
LONGEST_PROMPT = 512
LETTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class ModelFolder:
    """A diffusers folder with configs. `local` is False for one made of published configs; `state` says what is not downloaded."""

    folder: Path
    local: bool = True
    state: str = ""
    warnings: tuple[str, ...] = ()


def model_folder(model: config.ModelConfig) -> ModelFolder:
    """Where the configs of a recipe's model are.

    Raises DirectAlignError for a folder that is missing or holds another architecture.
    """
    if not model.path.endswith(".safetensors"):
        return _pipeline(model.path, "model.path", model)
    held = single_file.contents(Path(model.path).expanduser())
    if model.components is None:
        remedy = "give the diffusers folder or hub id of that architecture that brings its configs and tokenizers"
        raise DirectAlignError(
            f"model.components: missing; {model.path} holds {held.layout.name} alone: {remedy}"
        )
    return _pipeline(model.components, "model.components", model, held.parts)


def _pipeline(
    path: str, key: str, model: config.ModelConfig, held: Sequence[str] | Mapping[str, Any] = ()
) -> ModelFolder:
    folder = local_folder(path, model.revision, "model_index.json")
    if folder is None:
        return _published_pipeline(path, key, model.architecture)
    if not folder.is_dir():
        raise DirectAlignError(
            f"{key}: {path}: no such folder; give a diffusers folder, a hub id (owner/name), or world:flux, world:sd, world:sd_v"
        )
    kind = model_class(model.architecture)
    index = read_json(folder / "model_index.json")
    if (found := index.get("_class_name")) != kind.pipeline:
        raise DirectAlignError(
            f"{key}: {folder} holds a {found}, and model.architecture: {model.architecture} needs a {kind.pipeline}; change one of the two"
        )
    if not hub.is_hub_id(path):
        return ModelFolder(folder)
    names = [
        name
        for name in (kind.part, "vae", *kind.text_parts)
        if (index.get(name) or [None])[0] is not None and name not in held
    ]
    lacking = [name for name in names if not any((folder / name).glob("*.safetensors"))]
    return ModelFolder(
        folder, state=f"weights of {', '.join(lacking)} not downloaded yet" if lacking else ""
    )


def local_folder(path: str, revision: str | None, file: str) -> Path | None:
    """A folder on this machine: as given, of the embedded world, or the hub's cache; None for a hub id without `file` there."""
    if path.startswith("world:"):
        return assets.resolve(path)
    if not hub.is_hub_id(path):
        return Path(path).expanduser()
    found = try_to_load_from_cache(path, file, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


@cache
def known() -> dict[str, dict[str, Any]]:
    """The published models' configs by file name; see models/known/README.md."""
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(KNOWN.glob("*.json"))
    }


def _published_pipeline(path: str, key: str, architecture: str) -> ModelFolder:
    name = next((name for name, each in known().items() if path in each["hub_ids"]), None)
    usual = model_class(architecture).published
    found = known()[name or usual]
    if name is not None and architecture != found["architecture"]:
        raise DirectAlignError(
            f"{key}: {path} is a model of architecture {found['architecture']}, and model.architecture is {architecture}; change one of the two"
        )
    warning = f"{key}: {path} is not downloaded yet and not known here: figures are those of {found['hub_ids'][0]}"
    return ModelFolder(
        _written(name or usual),
        False,
        "not downloaded yet",
        () if name else (warning,),
    )


@cache
def _written(name: str) -> Path:
    """Published configs as a diffusers folder, for as long as this process lives."""
    folder, found = Path(tempfile.mkdtemp(prefix="directalign-configs-")), known()[name]
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model = model_class(found["architecture"])
    index: dict[str, Any] = {"_class_name": model.pipeline}
    for part, settings in found["parts"].items():
        library = "diffusers" if hasattr(diffusers, settings["_class_name"]) else "transformers"
        index[part] = [library, settings["_class_name"]]
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    for part, kind in model.parts.items():
        if "tokenizer" in part:
            index[part] = ["transformers", "PreTrainedTokenizerFast"]
        elif part == "scheduler":
            scheduler = _usual_scheduler(kind)
            scheduler.save_pretrained(folder / part)
            index[part] = ["diffusers", type(scheduler).__name__]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _usual_scheduler(kind: Any) -> Any:
    """Of the kind that a model names, with plain settings: its noise levels take the same memory as any."""
    if kind is not diffusers.SchedulerMixin:
        return kind()
    return diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )


# --- networks -----------------------------------------------------------------------------------------


@contextmanager
def on_meta() -> Iterator[None]:
    """Networks made inside have no data, and the libraries say nothing about it."""
    logger = diffusers.utils.logging.get_logger("diffusers.models.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def network(kind: Any, settings: Mapping[str, Any]) -> Any:
    """A network of diffusers or transformers on the meta device, frozen, float32.

    Raises DirectAlignError for settings that describe none.
    """
    given = {
        key: value
        for key, value in settings.items()
        if not key.startswith("_") and key not in ("architectures", "transformers_version")
    }
    try:
        with on_meta():
            made = (
                kind.from_config(given)
                if issubclass(kind, diffusers.ModelMixin)
                else kind(kind.config_class.from_dict(given))
            )
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError) as error:
        raise DirectAlignError(
            f"{kind.__name__}: its config.json describes no such network ({error}): copy the folder again"
        ) from error
    return made.requires_grad_(False).eval()


class Tokenizer(transformers.PreTrainedTokenizerBase):
    """A stand-in: as many tokens as the longest text has, or one for every four letters where nothing limits it."""

    pad_token_id = 0
    image_token = "<|image_pad|>"

    def __init__(self, longest: int) -> None:
        self.model_max_length = longest

    def __len__(self) -> int:
        return 1

    def get_vocab(self) -> dict[str, int]:
        return {self.image_token: 1}

    def __call__(
        self,
        text: str | Sequence[str],
        max_length: int | None = None,
        return_tensors: str | None = None,
        **_: Any,
    ) -> Any:
        texts = [text] if isinstance(text, str) else list(text)
        length = max_length or max(len(each) // LETTERS_PER_TOKEN for each in texts) + 1
        rows = [[int(self.image_token in each), *[0] * (length - 1)] for each in texts]
        if return_tensors is None:
            return {"input_ids": rows[0] if isinstance(text, str) else rows}
        ids = torch.tensor(rows)
        return transformers.BatchEncoding(
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        )

    def apply_chat_template(self, chat: Sequence[Mapping[str, Any]], **_: Any) -> str:
        content = chat[0]["content"]
        return (
            content
            if isinstance(content, str)
            else "".join(each.get("text", self.image_token) for each in content)
        )

    def convert_tokens_to_ids(self, token: str) -> int:
        del token
        return 1


class QuantizedStub(nn.Linear):
    """A frozen layer held in 4 or 8 bits: its weight is made whole for each product, forward and backward, and not kept.

    `stored` are the bytes that it holds between calls; models/quantization.py does the same with real numbers.
    """

    stored = 0

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) to (..., out), in the dtype of autocast where that is on."""
        if torch.is_autocast_enabled("cpu"):
            input = input.to(torch.get_autocast_dtype("cpu"))
        output = _StubProduct.apply(input, self.out_features)
        return output if self.bias is None else output + self.bias.to(output.dtype)


class _StubProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, out_features: int) -> Tensor:
        ctx.shape = (out_features, input.shape[-1])
        return input @ input.new_empty(ctx.shape).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ gradients[0].new_empty(ctx.shape), None


def _quantize(denoiser: nn.Module, quantization: str) -> None:
    for name, layer in list(denoiser.named_modules()):
        if isinstance(layer, nn.Linear) and is_quantized(name, layer.weight.shape):
            stub = QuantizedStub(
                layer.in_features,
                layer.out_features,
                layer.bias is not None,
                device="meta",
                dtype=layer.weight.dtype,
            )
            stub.stored = stored_bytes(layer.weight.shape, quantization)
            parent, _, own = name.rpartition(".")
            setattr(denoiser.get_submodule(parent), own, stub.requires_grad_(False).eval())


# --- models -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MetaModel:
    """A recipe's model on fake tensors, and what its real weights are: `parts` are all its networks by name."""

    model: Model
    folder: ModelFolder
    parts: Mapping[str, nn.Module]
    frozen_bytes: int
    """Of the denoiser, in the recipe's bits."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the denoiser without adapters."""
    trained: Mapping[str, nn.Parameter] = field(default_factory=dict)

    def count(self, part: str) -> int:
        """Parameters of a network, adapters left out."""
        if part == self.model.part:
            return sum(math.prod(shape) for shape in self.shapes.values())
        return sum(parameter.numel() for parameter in self.parts[part].parameters())


def meta_model(settings: config.ModelConfig, like_gpu: bool = False) -> MetaModel:
    """The class of `model.architecture`, made by its own constructor from configs alone; nothing is downloaded.

    `like_gpu`: under autocast, norms compute in float32, as on a GPU. Raises DirectAlignError as `model_folder` and the class.
    """
    read = {
        "architecture",
        "path",
        "components",
        "revision",
        "variant",
        "tune",
        "lora",
        "dtype",
        "trained_dtype",
        "quantization",
        "gradient_checkpointing",
    }
    plain = config.ModelConfig(**{name: getattr(settings, name) for name in read})
    return _meta_model(plain.model_dump_json(), like_gpu)


@cache
def _meta_model(as_json: str, like_gpu: bool) -> MetaModel:
    settings = config.ModelConfig.model_validate_json(as_json)
    found, parts = model_folder(settings), dict[str, nn.Module]()
    kind = model_class(settings.architecture)

    def build(name: str, part: Any, dtype: torch.dtype) -> Any:
        if "tokenizer" in name:
            return Tokenizer(_longest(found.folder / name.replace("tokenizer", "text_encoder")))
        if not issubclass(part, nn.Module):
            return part.from_pretrained(found.folder / name, local_files_only=True)
        made = network(part, read_json(found.folder / name / "config.json"))
        with on_meta():
            nn.Module.to(made, dtype)
        parts[name] = made
        if name == kind.part:
            if settings.quantization is not None:
                _quantize(made, settings.quantization)
        else:
            make_fake(made)
            replay_repeated(made)
        made.to = lambda *_, **__: made  # it has no device to leave
        return made

    source = Source(settings.path, found.folder, build=build)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = kind(
            source,
            settings.model_copy(update={"quantization": None, "text_encoders": "keep"}),
            torch.device("cpu"),
            0,
        )
    denoiser = model.denoiser
    stubs = [layer for layer in denoiser.modules() if isinstance(layer, QuantizedStub)]
    in_bits = {id(layer.weight) for layer in stubs}
    frozen = [p for p in denoiser.parameters() if not p.requires_grad and id(p) not in in_bits]
    frozen_bytes = sum(p.numel() * p.itemsize for p in frozen) + sum(
        layer.stored for layer in stubs
    )
    plain = {
        name.replace(".base_layer", ""): p
        for name, p in denoiser.named_parameters()
        if settings.tune == "full" or not p.requires_grad
    }
    shapes = {name: tuple(p.shape) for name, p in plain.items()}
    if like_gpu:
        for module in denoiser.modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                nn.Module.float(module).register_forward_pre_hook(_widen)
    make_fake(denoiser)
    replay_repeated(denoiser)
    weights = trained(denoiser)
    for parameter in weights.values():
        parameter.grad = torch.empty_like(parameter)
    return MetaModel(model, found, parts, frozen_bytes, shapes, weights)


def nearest_size(model: Model, height: int, width: int) -> tuple[int, int] | None:
    """The (height, width) nearest to these that a model takes; None where none is near."""
    for multiple in (8, 16, 32, 64, 128):
        near = tuple(max(round(side / multiple), 1) * multiple for side in (height, width))
        try:
            model.latent_shape(*near)
        except DirectAlignError:
            continue
        return near[0], near[1]
    return None


def _widen(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.float() for each in inputs) if torch.is_autocast_enabled("cpu") else inputs


def _longest(text_encoder: Path) -> int:
    """Positions of a CLIP; the other encoders have no such limit."""
    settings = (
        read_json(text_encoder / "config.json") if (text_encoder / "config.json").exists() else {}
    )
    return (
        settings.get("max_position_embeddings", LONGEST_PROMPT)
        if str(settings.get("model_type", "clip")).startswith("clip")
        else LONGEST_PROMPT
    )


# --- rewards ------------------------------------------------------------------------------------------


class RewardConfigs:
    """What a reward class reads to build itself without weights: `rewards/*.meta(settings, key, configs)`.

    `warnings` collects what is not known for certain.
    """

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def tokenizer(self, longest: int = LONGEST_PROMPT) -> Any:
        """A stand-in for a tokenizer."""
        return Tokenizer(longest)

    def file(self, path: str, key: str) -> Path | None:
        """A file of weights on this machine: as given, or in the hub's cache; None for one that is on the hub alone."""
        if not hub.is_hub_file(path):
            return locate(path, key, ())
        cached = try_to_load_from_cache(*on_the_hub(path))
        return Path(cached) if isinstance(cached, str) else None

    def folder(self, path: str | None, file: str = "config.json") -> Path | None:
        """The folder of a path or hub id on this machine, if it holds `file`."""
        if path is None or is_weight_file(path):
            return None
        return local_folder(path, None, file)

    def read(self, path: str, key: str, *kinds: str) -> dict[str, Any]:
        """config.json of a folder or hub id; of a model that is not here the published one. `kinds` are model types that fit, the usual one first."""
        folder = self.folder(path)
        if folder is None:
            return self.published(path, key, *kinds)
        found = read_json(folder / "config.json")
        if found.get("model_type") not in kinds:
            wanted = " or ".join(f"transformers {kind}" for kind in kinds if kind != "laion")
            raise DirectAlignError(
                f"{key}: {folder} holds a {found.get('model_type')} model, and this reward needs a {wanted}"
            )
        return found

    def published(self, path: str, key: str, *kinds: str) -> dict[str, Any]:
        """The published config of a hub id; for an unknown one that of the usual model of the first kind, with a warning."""
        found = next((each for each in known().values() if path in each["hub_ids"]), None)
        if found is not None and found["architecture"] not in kinds:
            wanted = " or ".join(kind for kind in kinds if kind != "laion")
            raise DirectAlignError(
                f"{key}: {path} is a model of {found['architecture']}, and this reward needs one of {wanted}"
            )
        taken = found or known()[USUAL[kinds[0]]]
        if found is None:
            self.warnings.append(
                f"{key}: {path} is not downloaded yet and not known here: figures are those of {taken['hub_ids'][0]}"
            )
        return {
            **taken["parts"]["reward"],
            **({"images": taken["images"]} if "images" in taken else {}),
        }

    def image_settings(self, *folders: Path | None) -> Path | None:
        """The first of these folders that holds image settings."""
        return next(
            (
                each
                for each in folders
                if each is not None and any((each / name).exists() for name in IMAGE_SETTINGS)
            ),
            None,
        )
