"""A remembered operation returns what torch's mode of fake tensors does."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from directalign.preflight.fake_tensors import FAKE, dispatch, fake

aten: Any = torch.ops.aten
X = fake((2, 6, 4, 4), torch.bfloat16)
ROWS = fake((6, 8), torch.float32, (1, 6))
INDEX = torch.tensor([1, 0])
CALLS: dict[str, tuple[Any, ...]] = {
    "product": (aten.mm.default, ROWS, fake((8, 3), torch.float32)),
    "int": (aten.mul.Tensor, fake((3,), torch.int64), 2),
    "float": (aten.mul.Tensor, fake((3,), torch.int64), 2.0),
    "data": (aten.mul.Tensor, fake((3,), torch.float32), torch.ones(3, dtype=torch.float64)),
    "several": (aten.native_group_norm.default, X, None, None, 2, 6, 16, 3, 1e-5),
    "view": (aten.view.default, X, [12, 16]),
    "views": (aten.split.Tensor, ROWS, 2, 1),
    "transposed": (aten.t.default, ROWS),
    "unsafe view": (aten._unsafe_view.default, X, [12, 16]),
    "in place": (aten.add_.Tensor, X, 1.0),
    "view in place": (aten.squeeze_.dim, fake((1, 3), torch.float32), 0),
    "into another": (aten.copy_.default, X, fake((4,), torch.float32)),
    "list": (aten.cat.default, [X, X], 1),
    "index": (aten.index.Tensor, X, [INDEX]),
    "complex": (aten.view_as_complex.default, fake((3, 2), torch.float32)),
    "composite": (aten.reshape.default, ROWS, [48]),
}


def facts(result: Any, arguments: Any) -> list[Any]:
    """Layout of each result, and the argument whose storage it shares."""
    storages = [each.untyped_storage()._cdata for each in arguments]
    found = list[Any]()
    for each in tree_leaves(result):
        storage = each.untyped_storage()
        shared = [place for place, key in enumerate(storages) if key == storage._cdata]
        same = [each is argument for argument in arguments]
        layout = each.shape, each.stride(), each.storage_offset(), each.dtype, each.device
        found.append((type(each), layout, storage.nbytes(), shared, same))
    return found


@pytest.mark.parametrize("call", CALLS)
def test_what_is_remembered_is_what_torch_finds(call):
    func, *given = CALLS[call]
    tensors = [each for each in tree_leaves(given) if isinstance(each, Tensor)]
    expected = facts(FAKE.dispatch(func, (FakeTensor,), given, {}), tensors)
    for _ in ("new", "known"):
        assert facts(dispatch(func, (FakeTensor,), given, {}), tensors) == expected
