"""Write the trained weights: a LoRA file, or a complete pipeline folder for diffusers.

A pipeline is written part by part, so that only one network is in memory: the trained denoiser, or
the base with the LoRA merged into it; then the base's other parts in the same dtype. Tokenizers and
schedulers are copied.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import diffusers
import torch
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from safetensors.torch import save_file
from torch import Tensor, nn

from ..evaluation.run_weights import blend
from ..io.pretrained import from_pretrained
from ..models.checkpoint_source import UNUSED, Source, open_source
from ..models.components import check_parts, load_parts
from ..models.lora_files import DOWN, UP, LowRank, Update, plain_updates
from ..models.weight_files import read_json, weights_files
from ..types import DirectAlignError
from .finished_run import BaseModelInfo, FinishedRun
from .lora_formats import LAYERS_PER_BLOCK, LoraFormat, convert, file_metadata

DtypeName = Literal["float32", "bfloat16", "float16"]
SHARD_SIZE = re.compile(r"\d+(KB|MB|GB)")
COPIED = ("directalign.json", "LICENSE", "LICENSE.md", "LICENSE.txt")
"""Files of the base's folder that are copied."""


def write_lora(
    finished: FinishedRun,
    target: Path,
    base: BaseModelInfo,
    form: LoraFormat,
    dtype: DtypeName | None,
) -> None:
    """Write the run's LoRA into `target`; `dtype` None keeps float32.

    The file has the name that diffusers expects, or that of the run for the other formats.
    """
    converted, text_width = _converted(finished, form)
    tensors = {
        key: tensor.to(getattr(torch, dtype or "float32")).contiguous()
        for key, tensor in converted.items()
    }
    require_finite(tensors, dtype)
    name = "pytorch_lora_weights" if form == "diffusers" else finished.slug
    metadata = file_metadata(finished, base, form, text_width)
    save_file(tensors, target / f"{name}.safetensors", metadata=metadata)


def _converted(finished: FinishedRun, form: LoraFormat) -> tuple[dict[str, Tensor], int]:
    """The tensors of the file, and the width of the text features (0 if they are not adapted)."""
    updates = finished.weights.updates()
    if form == "diffusers" and finished.adapter != "LoRA":
        adapters = finished.weights.adapters()
        return {f"{finished.part}.{name}": each for name, each in adapters.items()}, 0
    remedy = "give --format diffusers, checkpoint, or folder with --merge"
    plain = plain_updates(updates, f"--format {form}", remedy)
    count = LAYERS_PER_BLOCK if form == "diffusers" else layers_per_block(finished)
    converted = convert(plain, finished.run.model.architecture, form, count)
    check_read_back(converted, finished, plain, form, count)
    text = [each.down.shape[1] for name, each in plain.items() if name.endswith("attn2.to_k")]
    return converted, min(text, default=0)


def write_pipeline(
    finished: FinishedRun, target: Path, dtype: DtypeName, max_shard_size: str
) -> None:
    """Write the whole pipeline into `target`, in files of at most `max_shard_size` ("5GB").

    Raises: DirectAlignError for a missing or different base model, or an invalid size.
    """
    if not SHARD_SIZE.fullmatch(max_shard_size):
        raise DirectAlignError(
            f"--max-shard-size {max_shard_size}: give a whole number and KB, MB or GB, such as 5GB"
        )
    source = open_source(finished.run.model)
    index = read_json(source.folder / "model_index.json")
    parts = [name for name, each in index.items() if isinstance(each, list) and each[0] is not None]
    for name in parts:
        if name in (*UNUSED, *source.elsewhere) and not (source.folder / name).is_dir():
            index[name] = [None, None]
            if name == "safety_checker":
                index["requires_safety_checker"] = False
            continue
        network = network_of(finished, source, name, getattr(torch, dtype))
        if network is not None:
            require_finite(network.state_dict(), dtype)
            network.save_pretrained(target / name, max_shard_size=max_shard_size)
        else:
            shutil.copytree(source.folder / name, target / name)
    index.pop("_name_or_path", None)
    index["_diffusers_version"] = diffusers.__version__
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for name in COPIED:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, target / name)


def require_finite(tensors: Mapping[str, Tensor], dtype: str | None) -> None:
    """Refuse weights that the rounding to `dtype` has made infinite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise DirectAlignError(
                f"--dtype {dtype or 'float32'}: {name} has values that are too large for it; "
                "choose another"
            )


def network_of(finished: FinishedRun, source: Source, name: str, dtype: torch.dtype) -> Any:
    """The network `name` of the exported pipeline; None for parts that are copied."""
    pipeline, model = finished.pipeline, finished.run.model
    if name in UNUSED:
        return None
    if name != finished.part:
        part = load_parts(source, pipeline, {name: None}, {name: dtype})[name]
        return part if isinstance(part, nn.Module) else None
    weights = finished.weights
    if model.tune == "full" and weights.step is None and weights.strength == 1:
        kind: Any = check_parts(source, pipeline, {name: None}, weights=False)[name]
        weights_files(weights.path)
        return from_pretrained(kind, weights.path, torch_dtype=dtype, use_safetensors=True)
    kept = getattr(torch, model.trained_dtype if model.tune == "full" else model.dtype)
    network = load_parts(source, pipeline, {name: None}, {name: kept})[name]
    if model.tune == "full":
        blend(network, [weights])
    else:
        merge(network, weights.updates(), dtype)
    return network.to(dtype)


@torch.no_grad()
def merge(network: nn.Module, updates: Mapping[str, Update], dtype: torch.dtype) -> None:
    """Update the weights of the named layers, in float32 with one rounding to `dtype`.

    Raises: DirectAlignError for a layer that the network lacks or that has another shape.
    """
    layers = dict(network.named_modules())
    for name, update in updates.items():
        layer: Any = layers.get(name)
        if layer is None or layer.weight.numel() != update.size:
            raise DirectAlignError(
                f"{name}: the base model has no such layer, or one of another size; model.path in "
                "run.yaml now refers to another model"
            )
        layer.weight.data = update.applied(layer.weight).to(dtype)


UNREAD = {("sd3", "kohya")}
"""Architectures and formats that diffusers does not read."""


def layers_per_block(finished: FinishedRun) -> int:
    """Of the base's UNet, which SDXL's block numbers are counted with.

    Raises: DirectAlignError for a base that cannot be read, or has blocks of different lengths.
    """
    if finished.run.model.architecture != "sdxl":
        return LAYERS_PER_BLOCK
    source = open_source(finished.run.model, weights=False)
    file = source.folder / finished.part / "config.json"
    count = read_json(file).get("layers_per_block", LAYERS_PER_BLOCK)
    if not isinstance(count, int):
        raise DirectAlignError(
            f"{file}: layers_per_block is {count}, and the blocks of this format are counted with "
            "one number; use --format diffusers"
        )
    return count


def check_read_back(
    tensors: Mapping[str, Tensor],
    finished: FinishedRun,
    updates: Mapping[str, LowRank],
    form: LoraFormat,
    count: int,
) -> None:
    """Raise DirectAlignError unless diffusers reads the updates from the tensors of a file."""
    if (finished.run.model.architecture, form) in UNREAD:
        return
    pipeline: Any = getattr(diffusers, finished.pipeline)
    given = {key: tensor.clone() for key, tensor in tensors.items()}
    try:
        found = pipeline.lora_state_dict(given, unet_config=SimpleNamespace(layers_per_block=count))
        if isinstance(found, tuple):  # of a UNet, with alphas by layer
            found, alphas = found
            if {*(alphas or {}).values()} - {each.rank for each in updates.values()}:
                raise ValueError("an alpha is not the rank")
            found = convert_unet_state_dict_to_peft(found)
    except (ValueError, KeyError, RuntimeError, IndexError, AttributeError) as error:
        raise _differs(form, f"diffusers cannot read it ({error})") from error
    names = {f"{finished.part}.{name}{end}" for name in updates for end in (DOWN, UP)}
    wrong = found.keys() ^ names
    # layers that were stacked come back with the rows that were not trained, as zeros
    wrong = {key for key in wrong if key not in found or bool(found[key].any())}
    for name, update in updates.items():
        key = f"{finished.part}.{name}"
        if not wrong and not _same(update, LowRank(found[key + DOWN], found[key + UP])):
            wrong = {key}
    if wrong:
        raise _differs(form, f"diffusers reads {min(wrong)} as another update")


def _same(ours: LowRank, theirs: LowRank) -> bool:
    """Whether up · down · probe is equal, for a fixed probe."""
    down, other = ours.down.flatten(1).double(), theirs.down.flatten(1).double()
    if down.shape[1] != other.shape[1] or len(ours.up) != len(theirs.up):
        return False
    probe = torch.randn(down.shape[1], generator=torch.Generator().manual_seed(0)).double()
    given, read = (
        each.up.flatten(1).double() @ (factor @ probe)
        for each, factor in ((ours, down), (theirs, other))
    )
    return bool((given - read).norm() <= 1e-5 * given.norm())


def _differs(form: str, reason: str) -> DirectAlignError:
    return DirectAlignError(
        f"--format {form}: {reason}; use --format diffusers, or train other layers "
        "(model.lora.targets)"
    )
