"""Blocks whose frozen weights are copied for each use: the same numbers, a block at a time."""

import weakref
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from cases import CASES, PLAIN
from test_equality import noisy
from test_quantized import NEEDS_BITSANDBYTES
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from directalign.config import LoRAConfig
from directalign.models import block_swap, trainable
from directalign.types import DirectAlignError

aten = torch.ops.aten
COPIES = (aten.copy_.default, aten.detach.default, aten.empty_like.default)
SETTINGS = {"tune": "lora", "lora": LoRAConfig(rank=2, alpha=3), "gradient_checkpointing": True}


class OnlyCopied(TorchDispatchMode):
    """Fails where anything is computed of these weights themselves, as another device would."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        super().__init__()
        self.stored = {weight.untyped_storage()._cdata for weight in weights}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = [each for each in tree_leaves(args) if isinstance(each, torch.Tensor)]
        if func not in COPIES:
            assert not self.stored & {each.untyped_storage()._cdata for each in read}, func
        return func(*args, **(kwargs or {}))


def watch(blocks: list[nn.Module]) -> list[set[int]]:
    """For every call of a block, the places of the blocks whose copies exist when it begins."""
    copies, seen = dict[int, Any](), list[set[int]]()

    def entered(block: nn.Module, _: Any) -> None:
        weights = [weight for _, _, weight in block_swap.frozen_weights(block)]
        copies[blocks.index(block)] = [weakref.ref(each.untyped_storage()) for each in weights]
        seen.append({place for place, refs in copies.items() if any(ref() for ref in refs)})

    for block in blocks:
        block.register_forward_pre_hook(entered)
    return seen


def gradients(model: Any, case: Any) -> tuple[torch.Tensor, Mapping[str, Any]]:
    """The prediction, and the gradient of each adapter, all of them with an effect."""
    draw = torch.Generator().manual_seed(2)
    for parameter in trainable(model).values():
        parameter.data = torch.randn(parameter.shape, generator=draw) / 10
    pred = model.predict(*noisy(model, case))
    pred.square().sum().backward()
    return pred, {name: each.grad for name, each in trainable(model).items()}


RUNS = [(name, 1.0, {}) for name in PLAIN] + [
    ("flux", 0.5, {}),
    ("flux2", 1.0, {"quantization": "8bit"}),
    pytest.param("flux2", 1.0, {"quantization": "4bit"}, marks=NEEDS_BITSANDBYTES),
]


@pytest.mark.parametrize(("name", "share", "more"), RUNS)
def test_swapped_blocks_give_the_same_numbers_and_hold_one_copy(name, share, more, tmp_path):
    case, settings = CASES[name], SETTINGS | more
    folder = case.folder(tmp_path, **(case.eight_bits if more else {}))
    plain = case.load(folder, **settings)
    blocks = block_swap.blocks_of(plain.denoiser)
    number = max(1, int(share * len(blocks)))
    model = case.load(folder, **settings, block_swap=number)
    blocks = block_swap.blocks_of(model.denoiser)
    swapped = [blocks[place] for place in block_swap.swapped_places(len(blocks), number)]
    stored = [w for block in swapped for _, _, w in block_swap.frozen_weights(block)]
    seen, wanted = watch(swapped), gradients(plain, case)
    with OnlyCopied(stored):
        with torch.no_grad():
            model.predict(*noisy(model, case))
        found = gradients(model, case)
    assert torch.equal(found[0], wanted[0])
    for each, gradient in wanted[1].items():
        assert (gradient is None) == (found[1][each] is None)
        assert gradient is None or torch.equal(found[1][each], gradient), each
    assert max(map(len, seen)) == 1 and len(seen) > 2 * number
    assert all(any(w is each for each in model.denoiser.parameters()) for w in stored)


def test_more_blocks_than_there_are_are_refused(tmp_path):
    case = CASES["flux"]
    with pytest.raises(DirectAlignError, match=r"model.block_swap: 99, and this model has \d+ bl"):
        case.load(case.folder(tmp_path), **SETTINGS, block_swap=99)
