"""What of a denoiser is trained, and its files: LoRA adapters, or all weights.

LoRA is written to `lora.safetensors` in diffusers format with alpha / rank folded into the second
factor, so readers that take alpha = rank where none is given (diffusers, ComfyUI) get the trained
update.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from pathlib import Path as FilePath
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from peft import LoKrConfig, LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .. import config
from ..io.tensors import check_names, opened, read_safetensors, shapes_of
from ..toyworld.worlds import world_of
from ..types import DirectAlignError
from .lora_files import DOWN, MAGNITUDE, SCALED, UP, LowRank, plain_updates, scaled, updates_of
from .quantization import quantize
from .weight_files import weights_files

LORA_FILE = "lora.safetensors"
ADAPTER = "default"
ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers that LoRA adapts; layers of a quantized model are subclasses."""

_denoiser_device: ContextVar[torch.device | None] = ContextVar("denoiser_device", default=None)


@contextmanager
def denoiser_on(device: torch.device | None) -> Iterator[None]:
    """Place denoisers loaded inside on this device; None: on the device of their model."""
    token = _denoiser_device.set(device)
    try:
        yield
    finally:
        _denoiser_device.reset(token)


def ready(
    network: Any,
    model: config.ModelConfig,
    default_targets: Sequence[str],
    device: torch.device,
    seed: int,
) -> nn.Module:
    """A frozen network as the denoiser of a run: on its device, quantized, trainable.

    With `block_swap` it is on the CPU, until `block_swap.swap_blocks`.
    `model` decides on quantization, adapters and gradient checkpointing; `seed` draws the adapters.
    """
    home = _denoiser_device.get() or (torch.device("cpu") if model.block_swap else device)
    if model.quantization is not None:
        quantize(network, model.quantization, device, home)
    network.to(home)
    make_trainable(network, model, default_targets, seed)
    if model.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    return network


def make_trainable(
    denoiser: Any, model: config.ModelConfig, default_targets: Sequence[str], seed: int
) -> None:
    """Make all weights trainable, or add float32 adapters, drawn from `seed`, without effect.

    Adapters that the denoiser of a pipeline in memory has already are trained further.
    """
    if model.tune == "full":
        for parameter in denoiser.requires_grad_(True).parameters():
            parameter.data = parameter.data.to(getattr(torch, model.trained_dtype))
        return
    targets = list(model.lora.targets or default_targets)
    if ADAPTER in getattr(denoiser, "peft_config", {}):
        _continue_adapter(denoiser, model.lora, targets)
        return
    _check_targets(denoiser, model.lora, targets)
    rank, alpha = model.lora.rank, model.lora.alpha
    if model.lora.type == "lokr":
        settings = LoKrConfig(r=rank, alpha=alpha, target_modules=targets)
    else:
        settings = LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=targets,
            init_lora_weights="gaussian",
            use_dora=model.lora.use_dora,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser.add_adapter(settings, adapter_name=ADAPTER)
    for parameter in trained(denoiser).values():
        parameter.data = parameter.data.float()


def _continue_adapter(denoiser: Any, lora: config.LoRAConfig, targets: Sequence[str]) -> None:
    """Train the adapters further, at full strength. Raises DirectAlignError if they do not fit."""
    layers = {name: each for name, each in denoiser.named_modules() if _is_adapted(each)}
    given = settings_of(denoiser)
    wanted = {name: getattr(lora, name) for name in given}
    fits = given == wanted and all(
        any(f".{name}".endswith(f".{target}") for target in targets) for name in layers
    )
    if not fits or any(layer.merged for layer in layers.values()):
        raise DirectAlignError(
            f"pipe: has adapters of {_listed(given)}, fused or of other layers or sizes than "
            f"model.lora ({_listed(wanted)}): pipe.unload_lora_weights() begins anew"
        )
    denoiser.set_adapters([ADAPTER])
    denoiser.enable_adapters()
    for parameter in adapter_parameters(denoiser):
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)


def settings_of(denoiser: Any) -> dict[str, Any]:
    """Type, rank, alpha and use_dora of the adapters that a denoiser has, as in `model.lora`."""
    given = denoiser.peft_config[ADAPTER]
    if isinstance(given, LoKrConfig):
        return {"type": "lokr", "rank": int(given.r), "alpha": int(given.alpha), "use_dora": False}
    sizes = {"rank": int(given.r), "alpha": int(given.lora_alpha)}
    return {"type": "lora", **sizes, "use_dora": bool(given.use_dora)}


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def is_adapter(parameter: str) -> bool:
    """Whether this is the name of a weight of adapters."""
    return re.search(r"\.(lora|lokr)_\w+\.", parameter) is not None


def adapter_parameters(denoiser: nn.Module) -> list[nn.Parameter]:
    """The weights of the adapters, frozen or not."""
    return [each for name, each in denoiser.named_parameters() if is_adapter(name)]


def is_without_effect(denoiser: nn.Module) -> bool:
    """Whether the adapters are as they were made: the factors that start at 0 are 0."""
    named = denoiser.named_parameters()
    ours = (each for name, each in named if is_adapter(name) and _file_name(name).endswith(SCALED))
    return not any(bool(each.any()) for each in ours)


def _is_adapted(layer: nn.Module) -> bool:
    names = getattr(layer, "adapter_layer_names", ())
    return isinstance(layer, BaseTunerLayer) and any(ADAPTER in getattr(layer, n) for n in names)


def _check_targets(denoiser: nn.Module, lora: config.LoRAConfig, targets: Sequence[str]) -> None:
    """Every target of the recipe names an adaptable layer, and the rank fits every such layer."""
    layers = {
        name: layer for name, layer in denoiser.named_modules() if isinstance(layer, ADAPTABLE)
    }
    matches = {
        target: [name for name in layers if f".{name}".endswith(f".{target}")] for target in targets
    }
    unknown = [target for target in lora.targets or () if not matches[target]]
    if unknown:
        inner = {re.sub(r"^.*?\.\d+\.", "", name) for name in layers}  # names within a block
        known = inner | {name.split(".")[-1] for name in inner}
        near = sorted({match for each in unknown for match in get_close_matches(each, known, n=2)})
        hint = f"did you mean {', '.join(near)}?" if near else "leave the key out for the default"
        raise DirectAlignError(
            f"model.lora.targets: {unknown} fit no linear or convolution layer of this model: "
            f"{hint}"
        )
    if lora.type == "lokr":  # whose factors are whole where the rank is larger
        return
    for name in sorted({name for names in matches.values() for name in names}):
        layer: Any = layers[name]
        if isinstance(layer, nn.Linear):
            limit = min(layer.in_features, layer.out_features)
        else:
            limit = min(layer.in_channels * math.prod(layer.kernel_size), layer.out_channels)
        if lora.rank > limit:
            raise DirectAlignError(
                f"model.lora.rank: {lora.rank} is more than {name} can take, whose smaller side is "
                f"{limit}: give {limit} or less"
            )


def trained(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that get a gradient, by name."""
    return {name: each for name, each in denoiser.named_parameters() if each.requires_grad}


def has_adapters(denoiser: nn.Module) -> bool:
    """Whether adapters are trained; then the network without adapters is the base model."""
    return bool(getattr(denoiser, "peft_config", None))


def save(denoiser: Any, folder: FilePath, part: str, pipeline: Any) -> None:
    """Write `lora.safetensors` as `pipeline` of diffusers does, or all weights as `part`/."""
    if not has_adapters(denoiser):
        denoiser.save_pretrained(folder / part)
        return
    layers = file_tensors(trained(denoiser), _scale(denoiser))
    pipeline.save_lora_weights(folder, **{f"{part}_lora_layers": layers}, weight_name=LORA_FILE)


def read_saved(folder: FilePath, part: str) -> dict[str, Tensor]:
    """The tensors of the adapters that `save` wrote, without `part` before their names."""
    file = folder / LORA_FILE
    found = read_safetensors(file)
    if wrong := sorted(name for name in found if not name.startswith(f"{part}.")):
        raise DirectAlignError(
            f"{file}: not a LoRA of a {part}: {wrong[0]}; give a run that directalign train "
            "finished"
        )
    return {name.removeprefix(f"{part}."): tensor for name, tensor in found.items()}


def load(denoiser: Any, folder: FilePath, part: str) -> None:
    """Read what `save` wrote. Raises DirectAlignError for a missing or unfitting file."""
    if not has_adapters(denoiser):
        _load_full(denoiser, folder / part)
    else:
        load_adapters(denoiser, read_saved(folder, part), folder / LORA_FILE)


def load_adapters(denoiser: Any, tensors: Mapping[str, Tensor], file: FilePath) -> None:
    """Set the adapters to tensors of `file` (see `file_tensors`). Raises DirectAlignError."""
    own = {_file_name(name): each for name, each in trained(denoiser).items()}
    keys = "model.path, model.lora.rank and model.lora.targets"
    _check_fit(file, own, tensors, f"use the {keys} it was trained with")
    scale = _scale(denoiser)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name] / (scale if name.endswith(SCALED) else 1.0))


def lora_file(given: str, key: str) -> FilePath:
    """The LoRA that a key names by file or folder, or world:flux_turbo for that of this model.

    Raises DirectAlignError if there is none.
    """
    world = world_of(given)
    path = FilePath(given).expanduser()
    if world is not None:
        path = world.assets / given.removeprefix(f"{world.name}:")
    names = (LORA_FILE, "pytorch_lora_weights.safetensors")
    files = [path] if path.is_file() else [path / name for name in names]
    file = next((each for each in files if each.is_file()), None)
    if file is None:
        raise DirectAlignError(
            f"{key}: {given}: no such file, nor a folder with {' or '.join(names)}; give "
            "a LoRA as .safetensors, or the folder of a finished run"
        )
    return file


def start_from(denoiser: Any, model: config.ModelConfig, part: str, pipeline: str) -> None:
    """Set fresh adapters to the LoRA of `model.lora.init`, whose update they then have.

    A larger rank is filled up with factors that have no effect yet. Raises DirectAlignError for a
    file that diffusers cannot read, and one of other layers or a larger rank.
    """
    assert model.lora.init is not None
    key = "model.lora.init"
    file = lora_file(model.lora.init, key)
    found = read_lora(file, key, part, pipeline)
    own, scale = dict(trained(denoiser)), _scale(denoiser)
    own = {_file_name(name): parameter for name, parameter in own.items()}
    for layer, update in found.items():
        down, up = own.get(layer + DOWN), own.get(layer + UP)
        if down is None or up is None:
            raise DirectAlignError(
                f"{key}: {file}: adapts {layer}, which model.lora.targets leaves out; add it there"
            )
        if update.rank > len(down):
            raise DirectAlignError(
                f"{key}: {file}: has rank {update.rank}, and model.lora.rank is {len(down)}; set "
                f"model.lora.rank: {update.rank}, or more"
            )
        if down[0].shape != update.down[0].shape or len(up) != len(update.up):
            raise DirectAlignError(
                f"{key}: {file}: {layer} is of another size in this model; give a LoRA of "
                "model.path"
            )
        with torch.no_grad():
            down[: update.rank] = update.down.to(down)
            up[:, : update.rank] = update.up.to(up) / scale


def read_lora(file: FilePath, key: str, part: str, pipeline: str) -> dict[str, LowRank]:
    """The updates in a LoRA of diffusers, ComfyUI or kohya's tools, with their scales folded in.

    `key` names the file in the recipe. Raises DirectAlignError for a file that diffusers cannot
    read, of other parts, and for a DoRA or LoKr.
    """
    try:
        return _read_lora(file, part, pipeline)
    except DirectAlignError as error:
        raise DirectAlignError(f"{key}: {error}") from error


def _read_lora(file: FilePath, part: str, pipeline: str) -> dict[str, LowRank]:
    tensors = read_safetensors(file)
    kind: Any = getattr(diffusers, pipeline)
    try:
        blocks = SimpleNamespace(layers_per_block=2)
        found = kind.lora_state_dict(dict(tensors), unet_config=blocks)
        if isinstance(found, tuple):  # of a UNet, with alphas by layer
            found, alphas = found
            for name, alpha in (alphas or {}).items():
                down = name.removesuffix(".alpha")
                found[down] = found[down] * (alpha / len(found[down]))
            found = convert_unet_state_dict_to_peft(found)
    except (ValueError, KeyError, RuntimeError, IndexError, AttributeError) as error:
        raise DirectAlignError(
            f"{file}: diffusers cannot read it as a LoRA of {pipeline} ({error}); convert it"
        ) from error
    others = sorted(name for name in found if not name.startswith(f"{part}."))
    if others and len(others) == len(found):
        raise DirectAlignError(
            f"{file}: adapts {others[0].partition('.')[0]}, not the {part} of this model; give a "
            "LoRA of model.path"
        )
    if others:
        raise DirectAlignError(
            f"{file}: also adapts {others[0].partition('.')[0]}, which is not trained here; give a "
            f"LoRA of the {part} alone"
        )
    found = {name.removeprefix(f"{part}."): tensor for name, tensor in found.items()}
    with opened(file) as content:
        written = json.loads((content.metadata() or {}).get("lora_adapter_metadata", "{}"))
    rank, alpha = (written.get(f"{part}.{key}", 1) for key in ("r", "lora_alpha"))
    updates = updates_of(scaled(found, alpha / rank), file)
    return plain_updates(updates, str(file), "give a plain one")


def _load_full(denoiser: nn.Module, folder: FilePath) -> None:
    if not folder.is_dir():
        raise DirectAlignError(
            f"{folder}: no such folder: give a run that was trained with model.tune: full, or "
            "set tune: lora"
        )
    found = read_full(folder)
    _check_fit(folder, denoiser.state_dict(), found, "use the model.path it was trained from")
    denoiser.load_state_dict(found)


def read_full(folder: FilePath) -> dict[str, Tensor]:
    """All tensors of a denoiser's folder. Raises DirectAlignError for a damaged file."""
    found = dict[str, Tensor]()
    for file in weights_files(folder):
        found |= read_safetensors(file)
    return found


def file_tensors(adapters: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Adapters under their names in a file, with the scale alpha / rank folded in."""
    return {
        name: tensor.detach() * (scale if name.endswith(SCALED) else 1.0)
        for name, tensor in ((_file_name(each), adapters[each]) for each in adapters)
    }


def _file_name(parameter: str) -> str:
    """Name in a file of a trained parameter, which has the adapter's name in its own."""
    name = parameter.replace(f".{ADAPTER}.", ".").removesuffix(f".{ADAPTER}")
    return name.removesuffix(".weight") if name.endswith(f"{MAGNITUDE}.weight") else name


def _scale(denoiser: nn.Module) -> float:
    settings = settings_of(denoiser)
    return settings["alpha"] / settings["rank"]


def _check_fit(
    file: FilePath, own: Mapping[str, Tensor], found: Mapping[str, Tensor], remedy: str
) -> None:
    where = f"{file}: made for other layers, another rank or another architecture"
    check_names(shapes_of(own), shapes_of(found), where, remedy)


class ReferenceModel:
    """The model before training: the weights of `denoiser` at construction.

    With LoRA nothing is copied: adapters are turned off. `follows`: adapters are copied, too, so
    that `follow` can move the weights after the model's.
    """

    def __init__(self, denoiser: nn.Module, follows: bool = False) -> None:
        self.denoiser: Any = denoiser
        self.has_adapters = has_adapters(denoiser) and not follows
        weights = {} if self.has_adapters else trained(denoiser)
        self.weights = {name: each.detach().clone() for name, each in weights.items()}

    @contextmanager
    def active(self) -> Iterator[None]:
        """The denoiser has the reference weights inside, its own outside, also after an error.

        For calls without gradient.
        """
        enter, leave = self._swap, self._swap
        if self.has_adapters:
            enter, leave = self.denoiser.disable_adapters, self.denoiser.enable_adapters
        enter()
        try:
            yield
        finally:
            leave()

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """weights ← decay·weights + (1 − decay)·those of the model, in place."""
        for name, parameter in trained(self.denoiser).items():
            self.weights[name].lerp_(parameter.detach(), 1 - decay)

    def _swap(self) -> None:
        """In place: a sharded weight is bound to the memory that it is gathered from."""
        for name, parameter in trained(self.denoiser).items():
            own = parameter.detach().clone()
            parameter.detach().copy_(self.weights[name])
            self.weights[name].copy_(own)
