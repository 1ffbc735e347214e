"""Real model and reward classes without weights: built from configs, on fake tensors.

Configs come from a local folder, else from the hub's cache, else from the published configs that
this package contains (models/known). For a hub id that is neither cached nor known, the usual model
of its architecture is taken, with a warning. Tokenizers are stubs that return the longest prompts.
"""

import atexit
import inspect
import json
import logging
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
import transformers
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from .. import config
from ..interfaces import Model
from ..io import hub
from ..io.image_settings import IMAGE_SETTINGS
from ..io.pretrained import contents, from_pretrained
from ..models import block_swap, model_class, single_file
from ..models.checkpoint_source import Source, check_separate, named_parts, separate_parts
from ..models.components import LIBRARIES
from ..models.lora import trained
from ..models.quantization import quantized_layers, stored_bytes
from ..models.weight_files import read_json
from ..rewards.common import is_weight_file
from ..rewards.weights import locate, on_the_hub
from ..toyworld import assets
from ..toyworld.worlds import world_of
from ..types import DirectAlignError
from .activation_memory import MemoryTracker, pass_repeated, trace_once
from .fake_tensors import make_fake

KNOWN = Path(__file__).parents[1] / "models" / "known"
USUAL = {
    "clip": "clip_vit_h",
    "altclip": "altclip",
    "siglip": "siglip_so400m",
    "image_reward": "image_reward",
    "vlm": "qwen2_5_vl_7b",
    "laion": "clip_vit_l",
}
"""For each architecture, the published config used for an unknown hub id; `laion`: the CLIP of
LAION's aesthetic predictors."""
LONGEST_PROMPT = 512
LETTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class ModelFolder:
    """A diffusers folder with configs; `local` is False if they are the published ones.

    `state` says what is not downloaded yet.
    """

    folder: Path
    local: bool = True
    state: str = ""
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    """Parts whose weights are not downloaded yet, if some are; empty with a `state`: all."""
    elsewhere: Mapping[str, Path] = field(default_factory=dict)
    """As in `Source`."""


def model_folder(settings: config.ModelConfig) -> ModelFolder:
    """Where the configs of a recipe's model are.

    Raises DirectAlignError for a folder that is missing or holds another architecture.
    """
    path, key, held = settings.path, "model.path", ()
    separate = separate_parts(settings)
    if path.endswith(".safetensors"):
        within = single_file.contents(Path(path).expanduser())
        if settings.components is None:
            raise DirectAlignError(
                f"model.components: missing; {path} contains {within.layout.name} only: give a "
                "diffusers folder or hub id of that architecture, for configs and tokenizers"
            )
        path, key, held = settings.components, "model.components", tuple(within.parts)
    kind = model_class(settings.architecture)
    folder = local_folder(path, settings.revision, "model_index.json")
    if folder is None:
        if path in kind.left_out:
            raise DirectAlignError(f"{key}: {path}: {kind.left_out[path]}")
        found = _published_pipeline(path, key, settings.architecture)
        if not found.warnings:
            check_separate(settings, None)
        elsewhere, missing = _separate(settings, separate)
        own = [name for name in (kind.part, "vae", *kind.text_parts) if name not in elsewhere]
        missing = (*own, *missing) if elsewhere else ()
        return replace(found, elsewhere=elsewhere, missing=missing)
    if folder.is_file():
        raise DirectAlignError(
            f"{key}: {path}: is a file, and of single files .safetensors are read; give one, a "
            "diffusers folder or a hub id (owner/name)"
        )
    if not folder.is_dir():
        raise DirectAlignError(
            f"{key}: {path}: no such folder; give a diffusers folder, a hub id (owner/name), or "
            "world:flux, world:flux_turbo, world:sd, world:sd_v"
        )
    if not (folder / "model_index.json").exists():
        raise DirectAlignError(
            f"{key}: {path}: no such file model_index.json; the folder holds {contents(folder)}: "
            "give a complete diffusers folder"
        )
    index = read_json(folder / "model_index.json")
    if (holds := index.get("_class_name")) != kind.pipeline:
        raise DirectAlignError(
            f"{key}: {folder} holds a {holds}, and model.architecture: {settings.architecture} "
            f"needs a {kind.pipeline}; change one of the two"
        )
    check_separate(settings, folder)
    elsewhere, missing = _separate(settings, separate)
    if hub.is_hub_id(path):
        names = [
            name
            for name in (kind.part, "vae", *kind.text_parts)
            if (index.get(name) or [None])[0] is not None and name not in (*held, *elsewhere)
        ]
        missing += [name for name in names if not any((folder / name).glob("*.safetensors"))]
    state = f"weights of {', '.join(missing)} not downloaded yet" if missing else ""
    return ModelFolder(folder, state=state, missing=tuple(missing), elsewhere=elsewhere)


def _separate(
    settings: config.ModelConfig, separate: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Path], list[str]]:
    """`Source.elsewhere`, published configs where none are here; the parts without weights."""
    found = named_parts(settings, lambda path, _: local_folder(path, None, "config.json"))
    named = [part for key in settings.args.keys() & separate.keys() for part in separate[key]]
    if any(part not in found for part in named):
        published = _written(model_class(settings.architecture).published)
        found = {part: published / part for part in named}
    networks = [part for part in found if not part.startswith("tokenizer")]
    return found, [part for part in networks if not any(found[part].glob("*.safetensors"))]


def local_folder(path: str, revision: str | None, file: str) -> Path | None:
    """A local or embedded (world:...) folder, or the hub's cache if it holds `file`, else None."""
    if world_of(path):
        return assets.resolve(path)
    if not hub.is_hub_id(path):
        return Path(path).expanduser()
    found = try_to_load_from_cache(path, file, revision=revision)
    return Path(found).parent if isinstance(found, str) else None


@cache
def known() -> dict[str, dict[str, Any]]:
    """The published configs by file name; see models/known/README.md."""
    files = sorted(KNOWN.glob("*.json"))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def _published(path: str, key: str, usual: str) -> tuple[str, tuple[str, ...]]:
    """Name of the published config of a hub id; if there is none, `usual` with a warning."""
    for name, each in known().items():
        if path in each["hub_ids"]:
            return name, ()
    taken = known()[usual]["hub_ids"][0]
    warning = f"{path} is not downloaded yet and not known here: figures are those of {taken}"
    return usual, (f"{key}: {warning}",)


def _published_pipeline(path: str, key: str, architecture: str) -> ModelFolder:
    name, warned = _published(path, key, model_class(architecture).published)
    own = known()[name]["architecture"]
    if not warned and architecture != own:
        raise DirectAlignError(
            f"{key}: {path} is a model of architecture {own}, and "
            f"model.architecture is {architecture}; change one of the two"
        )
    state = "not downloaded yet" if key == "model.path" else f"{key} {path} not downloaded yet"
    return ModelFolder(_written(name), False, state, warned)


@cache
def _written(name: str) -> Path:
    """Published configs as a temporary diffusers folder, deleted when the process ends."""
    folder, found = Path(tempfile.mkdtemp(prefix="directalign-configs-")), known()[name]
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model = model_class(found["architecture"])
    index: dict[str, Any] = {"_class_name": model.pipeline}
    for part, settings in found["parts"].items():
        class_name = settings["_class_name"]
        library = next(each for each, held in LIBRARIES.items() if hasattr(held, class_name))
        index[part] = [library, class_name]
        (folder / part).mkdir()
        file = "preprocessor_config.json" if part == "processor" else "config.json"
        (folder / part / file).write_text(json.dumps(settings), encoding="utf-8")
    for part, kind in model.parts.items():
        if "tokenizer" in part or part == "processor":
            index[part] = ["transformers", "PreTrainedTokenizerFast"]
        elif part == "scheduler":
            scheduler = _usual_scheduler(kind, model.path)
            scheduler.save_pretrained(folder / part)
            index[part] = ["diffusers", type(scheduler).__name__]
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _usual_scheduler(kind: Any, path: str) -> Any:
    """A scheduler with default settings; the noise levels do not change the memory."""
    if kind is not diffusers.SchedulerMixin:
        return kind()
    if path == "flow":
        return diffusers.FlowMatchEulerDiscreteScheduler()
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return diffusers.DDIMScheduler(**betas, clip_sample=False)


# Networks


@contextmanager
def without_init() -> Iterator[None]:
    """Weights that are created inside are not initialized, which takes long even without data."""
    originals = {
        name: function
        for name, function in nn.init.__dict__.items()
        if name.endswith("_") and not name.startswith("_")
    }
    nn.init.__dict__.update(dict.fromkeys(originals, lambda tensor, *_, **__: tensor))
    try:
        yield
    finally:
        nn.init.__dict__.update(originals)


@contextmanager
def on_meta() -> Iterator[None]:
    """Create networks without data inside, without the libraries' warnings about it."""
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

    Raises DirectAlignError for settings that do not fit the class.
    """
    others = ("architectures", "transformers_version")
    given = {k: v for k, v in settings.items() if not k.startswith("_") and k not in others}
    try:
        with on_meta():
            if issubclass(kind, diffusers.ModelMixin):
                made: Any = kind.from_config(given)  # pyright: ignore
            else:
                takes_device = "device" in inspect.signature(kind.__init__).parameters
                place = {"device": "meta"} if takes_device else {}
                made = kind(kind.config_class.from_dict(given), **place)
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError) as error:
        raise DirectAlignError(
            f"{kind.__name__}: its config.json does not describe such a network ({error}): "
            "copy the folder again"
        ) from error
    return made.requires_grad_(False).eval()


class Tokenizer(transformers.PreTrainedTokenizerBase):
    """A stub: `max_length` tokens per text, else one token for every four letters."""

    pad_token_id, eos_token = 0, ""
    image_token = "<|image_pad|>"

    def __init__(self, longest: int, load: Callable[[], Any] | None = None) -> None:
        self.model_max_length, self.load = longest, load
        self.real: Any = None
        self._special_tokens_map: dict[str, str] = {}  # for a pad_token that a model sets
        self.cut, self.read = 0, 0
        """With `real`: texts that are longer than `read` tokens."""

    def __len__(self) -> int:
        return 1

    def get_vocab(self) -> dict[str, int]:
        return {self.image_token: 1}

    def __call__(  # pyright: ignore
        self, text: Any, max_length: Any = None, return_tensors: Any = None, **_: Any
    ) -> Any:
        texts = [text] if isinstance(text, str) else list(text)
        if self.real is not None and max_length is None and return_tensors is None:
            return {"input_ids": self.real(text, verbose=False)["input_ids"]}
        if self.real is not None and max_length:
            rows = self.real(texts, verbose=False)["input_ids"]
            self.cut, self.read = self.cut + sum(len(r) > max_length for r in rows), max_length
        length = max_length or max(len(each) // LETTERS_PER_TOKEN for each in texts) + 1
        rows = [[int(self.image_token in each), *[0] * (length - 1)] for each in texts]
        if return_tensors is None:
            return {"input_ids": rows[0] if isinstance(text, str) else rows}
        ids = torch.tensor(rows)
        mask = torch.ones_like(ids)
        return transformers.BatchEncoding({"input_ids": ids, "attention_mask": mask})

    def apply_chat_template(self, conversation: Any, **named: Any) -> str:  # pyright: ignore
        if self.real is not None:
            return self.real.apply_chat_template(conversation, **named)
        content = conversation[0]["content"]
        if isinstance(content, str):
            return content
        return "".join(each.get("text", self.image_token) for each in content)

    def convert_tokens_to_ids(self, tokens: Any) -> int:
        del tokens
        return 1


class QuantizedStub(nn.Linear):
    """A frozen layer in 4 or 8 bits: each product makes its weight anew and does not keep it.

    `stored`: bytes between calls. models/quantization.py does the same with real numbers.
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
    for name, layer in list(quantized_layers(denoiser)):
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        stub = QuantizedStub(*sizes, device="meta", dtype=layer.weight.dtype)
        stub.stored = stored_bytes(layer.weight.shape, quantization)
        parent, _, own = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), own, stub.requires_grad_(False).eval())


# Models


@dataclass(frozen=True)
class MetaModel:
    """A recipe's model on fake tensors, and the sizes of its real weights."""

    model: Model
    folder: ModelFolder
    parts: Mapping[str, nn.Module]
    """All its networks by name."""
    frozen_bytes: int
    """Of the denoiser, after quantization."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the denoiser without adapters."""
    trained: Mapping[str, nn.Parameter]
    blocks: tuple[int, ...]
    """Bytes of the frozen weights of each block, which block swap moves."""

    def swapped(self, number: int | None) -> list[int]:
        """Bytes of each swapped block. Raises DirectAlignError for more blocks than there are."""
        places = block_swap.swapped_places(len(self.blocks), number or 0)
        return [self.blocks[place] for place in places]

    def count(self, part: str) -> int:
        """Parameters of a network without adapters."""
        if part == self.model.part:
            return sum(math.prod(shape) for shape in self.shapes.values())
        return sum(parameter.numel() for parameter in self.parts[part].parameters())


UNUSED = ("attention", "block_swap", "compile", "text_encoders")
"""Settings that do not change the networks."""


def meta_model(settings: config.ModelConfig, like_gpu: bool = False) -> MetaModel:
    """The class of `model.architecture`, built by its own constructor from configs only.

    `like_gpu`: norms compute in float32 under autocast, as on a GPU. Nothing is downloaded. Raises
    DirectAlignError as `model_folder` and the constructor.
    """
    defaults = {name: config.ModelConfig.model_fields[name].default for name in UNUSED}
    return _meta_model(settings.model_copy(update=defaults).model_dump_json(), like_gpu)


@cache
def _meta_model(as_json: str, like_gpu: bool) -> MetaModel:
    settings = config.ModelConfig.model_validate_json(as_json)
    found, parts = model_folder(settings), dict[str, nn.Module]()
    kind = model_class(settings.architecture)

    def build(name: str, part: Any, dtype: torch.dtype) -> Any:
        place = source.place(name)
        if "tokenizer" in name or name == "processor":
            longest = _longest(source.place(name.replace("tokenizer", "text_encoder")))
            load = partial(part.from_pretrained, place, local_files_only=True)
            return Tokenizer(longest, load)
        if not issubclass(part, nn.Module):
            return from_pretrained(part, place)
        made = network(part, read_json(place / "config.json"))
        with on_meta():
            nn.Module.to(made, dtype)
        parts[name] = made
        if name != kind.part:
            make_fake(made)
            if name != "vae":  # its blocks may be alike and change the size of what they pass on
                pass_repeated(made)
        elif settings.quantization is not None:
            _quantize(made, settings.quantization)
        made.to = lambda *_, **__: made  # it stays fake
        return made

    source = Source(settings.path, found.folder, build=build, elsewhere=found.elsewhere)
    plain = settings.model_copy(update={"quantization": None, "text_encoders": "keep"})
    with warnings.catch_warnings(), without_init(), MemoryTracker():
        warnings.simplefilter("ignore")
        model = kind(source, plain, torch.device("cpu"), 0, **plain.args)
    denoiser = model.denoiser
    stubs = [layer for layer in denoiser.modules() if isinstance(layer, QuantizedStub)]
    quantized = {id(layer.weight) for layer in stubs}
    frozen = [p for p in denoiser.parameters() if not p.requires_grad and id(p) not in quantized]
    frozen_bytes = sum(p.nbytes for p in frozen) + sum(layer.stored for layer in stubs)
    blocks = tuple(
        sum(_swappable_bytes(*each, settings.quantization) for each in block_swap.frozen_weights(b))
        for b in block_swap.blocks_of(denoiser)
    )
    shapes = {
        name.replace(".base_layer", ""): tuple(p.shape)
        for name, p in denoiser.named_parameters()
        if settings.tune == "full" or not p.requires_grad
    }
    if like_gpu:
        for module in denoiser.modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                nn.Module.float(module).register_forward_pre_hook(_widen)
    make_fake(denoiser)
    pass_repeated(denoiser)
    trace_once(denoiser)
    weights = trained(denoiser)
    for parameter in weights.values():
        parameter.grad = torch.empty_like(parameter)
    return MetaModel(model, found, parts, frozen_bytes, shapes, weights, blocks)


def _swappable_bytes(owner: Any, name: str, weight: Tensor, quantization: str | None) -> int:
    """Bytes of a frozen weight; of a quantized one without its scales, which stay on the device."""
    if isinstance(owner, QuantizedStub) and name == "weight":
        return weight.numel() // (2 if quantization == "4bit" else 1)
    return weight.nbytes


def encoder_cuts(model: Model, prompts: Sequence[str]) -> list[str]:
    """A sentence for each text encoder that cuts some of the prompts.

    Encoders whose tokenizer is not on this machine are left out. The prompts run through a
    `MetaModel`'s own `encode_prompt`, so templates and lengths are the architecture's.
    """
    texts, found = list(dict.fromkeys(prompts)), list[str]()
    stubs = [each for each in getattr(model, "tokenizers", []) if isinstance(each, Tokenizer)]
    for stub in stubs:
        with suppress(Exception):  # the files may be missing, or only published configs
            assert stub.load is not None
            stub.cut, stub.real = 0, stub.load()
    if any(stub.real is not None for stub in stubs):
        with suppress(Exception), MemoryTracker():
            if getattr(model, "reads_sources", False):
                for text in texts:  # which the encoder itself would read with an image each
                    cast(Any, model).prompt_ids(text)
            else:
                model.encode_prompt(texts)
    for number, stub in enumerate(stubs):
        stub.real = None
        if stub.cut:
            name = f"text_encoder{f'_{number + 1}' if number else ''}"
            found.append(
                f"{name}: {stub.cut:,} of {len(texts):,} prompts are longer than its {stub.read} "
                "tokens; their ends are ignored"
            )
    return found


def nearest_size(model: Model, height: int, width: int) -> tuple[int, int] | None:
    """The nearest (height, width) that a model accepts; None if none is near."""
    for multiple in (8, 16, 32, 64, 128):
        rows, columns = (max(round(side / multiple), 1) * multiple for side in (height, width))
        try:
            model.latent_shape(rows, columns)
        except DirectAlignError:
            continue
        return rows, columns
    return None


def _widen(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.float() for each in inputs) if torch.is_autocast_enabled("cpu") else inputs


def _longest(text_encoder: Path) -> int:
    """Positions of a CLIP; the other text encoders have no such limit."""
    file = text_encoder / "config.json"
    settings = read_json(file) if file.exists() else {}
    is_clip = str(settings.get("model_type", "clip")).startswith("clip")
    return settings.get("max_position_embeddings", LONGEST_PROMPT) if is_clip else LONGEST_PROMPT


# Rewards


class RewardConfigs:
    """What a reward class reads to build itself without weights, in its `meta`.

    `warnings` collects what is assumed.
    """

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def tokenizer(self, longest: int = LONGEST_PROMPT) -> Any:
        """A stub of a tokenizer."""
        return Tokenizer(longest)

    def file(self, path: str, key: str) -> Path | None:
        """A file of weights, local or in the hub's cache; None if it is on the hub only."""
        if not hub.is_hub_file(path):
            return locate(path, key, ())
        cached = try_to_load_from_cache(*on_the_hub(path))
        return Path(cached) if isinstance(cached, str) else None

    def folder(self, path: str | None, file: str = "config.json") -> Path | None:
        """The local folder of a path or hub id; None if a hub id has no `file` in the cache."""
        if path is None or is_weight_file(path):
            return None
        return local_folder(path, None, file)

    def read(self, path: str, key: str, *kinds: str) -> dict[str, Any]:
        """config.json of a folder or hub id, else the published one.

        `kinds` are the model types that fit, the usual one first.
        """
        folder = self.folder(path)
        if folder is None:
            return self.published(path, key, *kinds)
        found = read_json(folder / "config.json")
        if found.get("model_type") not in kinds:
            wanted = " or ".join(f"transformers {kind}" for kind in kinds if kind != "laion")
            raise DirectAlignError(
                f"{key}: {folder} holds a {found.get('model_type')} model, and this reward needs "
                f"a {wanted}"
            )
        return found

    def published(self, path: str, key: str, *kinds: str) -> dict[str, Any]:
        """The published config of a hub id; if unknown, the usual one of the first kind."""
        name, warned = _published(path, key, USUAL[kinds[0]])
        found = known()[name]
        self.warnings += warned
        if not warned and found["architecture"] not in kinds:
            wanted = " or ".join(kind for kind in kinds if kind != "laion")
            raise DirectAlignError(
                f"{key}: {path} is a model of {found['architecture']}, and this reward needs one "
                f"of {wanted}"
            )
        images = {"images": found["images"]} if "images" in found else {}
        return found["parts"]["reward"] | images

    def image_settings(self, folder: Path | None) -> Path | None:
        """The folder if it holds image settings, else None."""
        if folder is not None and any((folder / name).exists() for name in IMAGE_SETTINGS):
            return folder
        return None
