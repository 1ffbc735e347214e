"""Fake tensors (without data), and operations on them.

torch's FakeTensorMode finds what an operation returns. A trace repeats few operations and layouts
thousands of times, and torch's own cache takes 60 microseconds for each: `dispatch` remembers them
in a sixth of that.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager
from torch.utils._pytree import tree_leaves

FAKE = FakeTensorMode(allow_non_fake_inputs=True)
"""The mode of all fake tensors here. It is not entered: results without a weight (noise levels,
token ids, seeds) stay real and can be read; the others become fake from a fake weight."""
_answers: dict[tuple[Any, ...], Callable[[Any, Any], Any]] = {}
"""What makes the result of an operation of its arguments, by operation and layouts."""


def fake(shape: Any, dtype: torch.dtype, stride: Any = None) -> Tensor:
    """A fake CPU tensor."""
    with FAKE:
        if stride is None:
            return torch.empty(shape, dtype=dtype)
        return torch.empty_strided(shape, stride, dtype=dtype)


def make_fake(network: nn.Module) -> None:
    """Replace parameters, buffers and other tensors on the meta device by fake CPU tensors."""
    cpu = torch.device("cpu")

    def faked(tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        return FakeTensor(FAKE, tensor.detach().to("meta"), cpu)

    made: dict[int, Any] = {}  # by id of the old parameter: tied weights stay tied
    old = []  # keeps the ids unique
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                old.append(parameter)
                new: Any = faked(parameter).requires_grad_(parameter.requires_grad)
                new._is_param = True  # what nn.Parameter sets, without another dispatch
                made[id(parameter)] = new
            module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = faked(buffer)
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                setattr(module, name, faked(value))
            elif isinstance(value, list) and any(isinstance(each, Tensor) for each in value):
                setattr(module, name, [faked(each) for each in value])


def dispatch(func: Any, types: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """The result of an operation, some of whose arguments are fake tensors."""
    if _is_view(func):
        return _view(func, args, kwargs)
    parts: list[Any] = [func, torch.get_default_dtype()]
    _add_layouts(parts, args)
    _add_layouts(parts, kwargs.items())
    answer = _answers.get(key := tuple(parts))
    if answer is not None:
        return answer(args, kwargs)
    result = FAKE.dispatch(func, types, args, kwargs)
    _answers[key] = _answer(func, types, args, kwargs, result)
    return result


@cache
def _is_view(func: Any) -> bool:
    """Whether the result always shares the storage of the first argument."""
    if func is torch.ops.aten._unsafe_view.default:
        return True
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    is_composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composite)
    return func.is_view and not is_composite


def _add_layouts(parts: list[Any], values: Iterable[Any]) -> None:
    """Append what the layout of a result depends on."""
    for value in values:
        kind = type(value)
        if isinstance(value, Tensor):
            parts += kind, value.shape, value.stride(), value.dtype, value.device
        elif kind is list or kind is tuple:
            parts += kind, len(value)
            _add_layouts(parts, value)
        else:
            parts += kind, value  # 1 equals 1.0 and True


def _answer(func: Any, types: Any, args: Any, kwargs: Any, result: Any) -> Callable[..., Any]:
    """What makes the result of other arguments of these layouts."""
    if args and result is args[0] and torch.Tag.inplace_view not in func.tags:
        return lambda args, _: args[0]
    given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    storages = [each.untyped_storage()._cdata for each in given]
    made = result if isinstance(result, tuple) else (result,)
    makers = [make for each in made if (make := _maker(each, storages)) is not None]
    if func.is_view or func._schema.is_mutable or len(makers) < len(made):
        return partial(FAKE.dispatch, func, types)
    if isinstance(result, tuple):
        return lambda *_: tuple(make() for make in makers)
    return lambda *_: makers[0]()


def _maker(made: Any, old: Sequence[int]) -> Callable[[], Any] | None:
    """What makes such a new tensor; None if `made` is not one. `old`: storages of the inputs."""
    if made is None:
        return lambda: None
    if type(made) is not FakeTensor or made.untyped_storage()._cdata in old:
        return None
    device = made.fake_device
    empty = partial(torch.empty_strided, made.shape, made.stride(), dtype=made.dtype, device="meta")

    def make() -> FakeTensor:
        return FakeTensor(FAKE, empty(), device)

    return make if _facts(make()) == _facts(made) else None


def _facts(tensor: FakeTensor) -> tuple[Any, ...]:
    keys, size = torch._C._dispatch_keys(tensor), tensor.untyped_storage().nbytes()
    return keys, size, tensor.storage_offset(), tensor.constant


def _view(func: Any, args: Any, kwargs: Any) -> Any:
    with in_kernel_invocation_manager(FAKE):
        found = func(*args, **kwargs)
    device = args[0].device
    if isinstance(found, Tensor):
        return FakeTensor(FAKE, found, device)
    return [FakeTensor(FAKE, each, device) for each in found]
