"""Track bytes of live tensors while code runs, on real or fake tensors (shape and dtype, no data).

`MemoryTracker` is a dispatch mode: it sees every tensor that an operation creates, in the forward
and the backward pass; a weak reference to the storage tells when it is freed. With fake weights
nothing is computed, so a training step of a 12 B model takes seconds.

Repeated blocks would take most of that time. `replay_repeated` measures a module once per class,
parameter shapes and input shapes; each further call allocates what the first one kept, with the
same peaks. Gradient checkpointing works on top of a replayed module as on the module.
"""

from __future__ import annotations

import functools
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

FAKE = FakeTensorMode(allow_non_fake_inputs=True)
"""The mode of all fake tensors here. It is not entered: results without a weight (noise levels,
token ids, seeds) stay real and can be read; the others become fake from a fake weight."""
SMALL = 64
"""Integer tensors of at most this many elements are part of a call's signature."""
PLAIN = bool | int | float | str | torch.dtype | torch.device
"""Other arguments that are part of it."""
aten: Any = torch.ops.aten
_autograd: Any = torch._C._autograd  # pyright: ignore


class MemoryTracker(TorchDispatchMode):
    """Counts storages created inside: `now` live bytes, `peaks` their maximum by `phase`.

    Tensors created before do not count. Reading a number from a fake tensor gives 1.
    """

    active: MemoryTracker | None = None

    def __init__(self) -> None:
        super().__init__()
        self.now, self.phase = 0, ""
        self.counts = True
        """Whether tensors that are created count, now or later."""
        self.peaks: dict[str, int] = defaultdict(int)
        self.alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __enter__(self) -> MemoryTracker:
        self._outer, MemoryTracker.active = MemoryTracker.active, self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        MemoryTracker.active = self._outer
        super().__exit__(*error)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and torch's guard against it costs much

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return torch.ones((), dtype=args[0].dtype).item()
        if func is aten.index.Tensor:
            args = (args[0], _as_numbers(args[1]))
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor):
                storage = made.untyped_storage()
                if storage._cdata not in self.alive:
                    is_old = any(
                        isinstance(each, Tensor) and each.untyped_storage()._cdata == storage._cdata
                        for each in args
                    )
                    size = storage.nbytes() if self.counts and not is_old else 0
                    free = functools.partial(self._free, storage._cdata, size)
                    self.alive[storage._cdata] = weakref.ref(storage, free)
                    self.now += size
                    self.reach(self.now)
        return out

    def reach(self, size: int) -> None:
        """Record that `size` bytes were live at some moment."""
        if size > self.peaks[self.phase]:
            self.peaks[self.phase] = size

    @contextmanager
    def having(self, **values: Any) -> Iterator[None]:
        """Other `phase`, `counts` or `peaks` inside, the same as before afterwards."""
        outer = {name: getattr(self, name) for name in values}
        vars(self).update(values)
        try:
            yield
        finally:
            vars(self).update(outer)

    def aside(self) -> AbstractContextManager[None]:
        """Record peaks inside separately, as phase 'aside', and drop them afterwards."""
        return self.having(phase="aside", peaks=defaultdict(int))

    def _free(self, key: int, size: int, _: Any) -> None:
        del self.alive[key]
        self.now -= size


def _as_numbers(indices: Any) -> list[Any]:
    """Masks as integers: for a fake tensor, a mask selects an unknown number of elements."""
    found: list[Any] = []
    for index in indices:
        is_real = isinstance(index, Tensor) and not isinstance(index, FakeTensor)
        is_mask = is_real and index.dtype == torch.bool
        found += index.nonzero().unbind(1) if is_mask else [index]
    return found


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


# Replayed modules


@dataclass(frozen=True)
class Measured:
    """Memory of one call of a module, in bytes above those at its start."""

    forward: int
    """Peak of the forward pass."""
    until_saved: int
    """Its peak up to the last tensor saved for the backward pass, where recomputation may stop."""
    backward: int
    """Peak of the backward pass."""
    kept: int
    """Saved for the backward pass, besides inputs and outputs."""
    cached: int
    """Weights cast by autocast and cached until its region ends."""
    outputs: tuple[_Output, ...]
    structure: Any
    saved_inputs: tuple[int, ...] = ()
    """Positions of the inputs saved for the backward pass."""
    saved_outputs: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Output:
    """A plain value, a returned input (`source`), or a new tensor; outputs may share a storage."""

    value: Any = None
    source: int | None = None
    shape: tuple[int, ...] | None = None
    stride: tuple[int, ...] = ()
    offset: int = 0
    dtype: torch.dtype = torch.float32
    storage: int = 0
    size: int = 0
    requires_grad: bool = False

    @property
    def fills_storage(self) -> bool:
        """Whether an empty tensor of this layout has a storage of this size."""
        assert self.shape is not None
        last = sum((side - 1) * step for side, step in zip(self.shape, self.stride, strict=True))
        return self.offset == 0 and self.size == (last + 1) * self.dtype.itemsize


MEASURED: dict[Any, Measured | None] = {}
"""By signature of module and call; None for calls that cannot be replayed."""
_ANCHOR = torch.zeros((), requires_grad=True)
"""Gives outputs a gradient if only the module's own weights require one."""


def replay_repeated(network: nn.Module) -> None:
    """Measure a network, its children and its repeated blocks on their first call, then replay."""
    chosen = {network: None, **dict.fromkeys(network.children())}  # in order, each once
    for module in network.modules():
        if isinstance(module, nn.ModuleList):
            chosen |= dict.fromkeys(each for each in module if each is not None)
    for module in chosen:
        if not isinstance(module, nn.ModuleList) and next(module.parameters(), None) is not None:
            _wrap(module)


def _wrap(module: Any) -> None:
    original, signature = module.forward, functools.cache(lambda: _module_signature(module))
    adapters = functools.cache(
        lambda: next((m for m in module.modules() if hasattr(m, "_disable_adapters")), None)
    )

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        tracker = MemoryTracker.active
        if tracker is None:
            with MemoryTracker():
                return forward(*args, **kwargs)
        leaves, structure = tree_flatten((args, kwargs))
        call = _call_signature(leaves)
        if call is None:
            return original(*args, **kwargs)
        off = getattr(adapters(), "_disable_adapters", False)
        key = (signature(), off, structure, call)
        if key not in MEASURED:
            MEASURED[key] = _measure(tracker, original, leaves, structure)
        measured = MEASURED[key]
        if measured is None:
            return original(*args, **kwargs)
        if _under_checkpoint():
            key = (*key, "dropping")
            if key not in MEASURED:
                MEASURED[key] = _measure_dropping(tracker, original, leaves, measured, structure)
            measured = MEASURED[key] or measured
        return _replay(tracker, measured, leaves)

    module.forward = forward


def _module_signature(module: nn.Module) -> int:
    """Equal for modules of equal class, parameter shapes and settings; list indices are ignored."""
    found: list[Any] = [type(module)]
    for name, part in module.named_modules():
        settings = sorted(
            (k, v)
            for k, v in vars(part).items()
            if isinstance(v, bool | int | float | str) and not k.endswith(("idx", "index"))
        )
        found += [name, type(part), *settings]
        found += [
            (k, tuple(p.shape), p.dtype, p.requires_grad)
            for k, p in (*part._parameters.items(), *part._buffers.items())
            if p is not None
        ]
    return hash(tuple(found))


def _checkpoint_hook_dropping(_: Tensor) -> Any:
    """A hook that `_under_checkpoint` recognizes, as torch's own `_checkpoint_hook`."""


def _under_checkpoint() -> bool:
    """Whether gradient checkpointing drops saved tensors now, to recompute them later."""
    hooks = _autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and hooks[0].__qualname__.startswith("_checkpoint_hook")


def _call_signature(leaves: list[Any]) -> Any:
    """None if an argument may be mutated or cannot be compared."""
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
    found: list[Any] = [torch.is_grad_enabled(), *autocast]
    storages: dict[int, int] = {}
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            known = storages.setdefault(leaf.untyped_storage()._cdata, len(storages))
            plain = isinstance(leaf, FakeTensor) or leaf.dtype.is_floating_point
            layout = tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.requires_grad
            numbers = leaf.flatten().tolist() if not plain and leaf.numel() <= SMALL else ()
            found.append((layout, plain, known, tuple(numbers)))
        elif leaf is None or isinstance(leaf, PLAIN):
            found.append(leaf)
        else:
            return None
    return tuple(found)


class _Given(torch.autograd.Function):
    """A substitute for an input: in the graph, but not kept alive by it."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, tensor: Tensor, gradients: list[Tensor]) -> Tensor:
        ctx.gradients = gradients
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        ctx.gradients.extend(gradients)
        return None, None, None


class _Taken(torch.autograd.Function):
    """The end of a measured call: its backward pass starts from new gradients of the outputs."""

    @staticmethod
    def forward(ctx: Any, start: list[int], tracker: MemoryTracker, *outputs: Tensor) -> Tensor:
        ctx.start, ctx.tracker, ctx.layouts = start, tracker, [_layout(each) for each in outputs]
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Any, ...]:
        gradients = [fake(*layout) for layout in ctx.layouts]
        ctx.start.append(ctx.tracker.now)
        ctx.tracker.peaks.clear()
        ctx.tracker.reach(ctx.tracker.now)
        return None, None, *gradients


def _measure(
    tracker: MemoryTracker, call: Callable[..., Any], leaves: list[Any], structure: Any
) -> Measured | None:
    """Run a call in isolation, forward and backward, on substitutes of its fake inputs."""
    with tracker.aside(), _casts_apart(tracker):
        try:
            return _measured(tracker, call, leaves, structure)
        except RuntimeError:  # it depends on the graph outside: run it unmeasured
            return None


def _measure_dropping(
    tracker: MemoryTracker, call: Callable[..., Any], leaves: list[Any], found: Any, structure: Any
) -> Measured:
    """The measured call under a checkpoint, which drops the saved tensors."""
    with tracker.aside(), _casts_apart(tracker):
        base = tracker.now
        args, kwargs = tree_unflatten(_stand_ins(tracker, leaves)[0], structure)
        with saved_tensors_hooks(_checkpoint_hook_dropping, _checkpoint_hook_dropping):
            call(*args, **kwargs)
        del args, kwargs
        with_cached = tracker.now
        torch.clear_autocast_cache()
        forward = max(tracker.peaks[tracker.phase], base) - base
        return replace(found, forward=forward, until_saved=0, cached=with_cached - tracker.now)


@contextmanager
def _casts_apart(tracker: MemoryTracker) -> Iterator[None]:
    """Start with an empty autocast cache; earlier casts count until the autocast region ends."""
    before = tracker.now
    torch.clear_autocast_cache()
    lost = before - tracker.now
    try:
        yield
    finally:
        _fill_autocast_cache(tracker, lost)


def _fill_autocast_cache(tracker: MemoryTracker, size: int) -> None:
    """Let autocast cast a weight of `size` bytes, which it caches until its region ends."""
    if size == 0 or not torch.is_autocast_enabled("cpu"):
        return
    with tracker.aside(), torch.no_grad():
        with tracker.having(counts=False):
            weight = fake((size // 2, 1), torch.float32).requires_grad_()
            given = fake((1, size // 2), torch.bfloat16)
        torch.mm(given, weight)


def _stand_ins(
    tracker: MemoryTracker, leaves: list[Any]
) -> tuple[list[Any], dict[int, int], list[Tensor]]:
    """New tensors for the fake inputs, the keys of their storages, and a list for gradients."""
    gradients: list[Tensor] = []
    inputs, keys = list(leaves), dict[int, int]()
    with tracker.having(counts=False):
        for number, leaf in enumerate(leaves):
            if isinstance(leaf, FakeTensor):
                inputs[number] = fake(*_layout(leaf))
                keys[number] = inputs[number].untyped_storage()._cdata
                if leaf.requires_grad and torch.is_grad_enabled():
                    inputs[number] = _Given.apply(_ANCHOR, inputs[number], gradients)
    return inputs, keys, gradients


def _measured(
    tracker: MemoryTracker, call: Callable[..., Any], leaves: list[Any], structure: Any
) -> Measured | None:
    inputs, input_keys, gradients = _stand_ins(tracker, leaves)
    base = tracker.now
    tracker.peaks.clear()
    tracker.reach(base)
    args, kwargs = tree_unflatten(inputs, structure)
    until_saved = [base]

    def saving(tensor: Tensor) -> Tensor:
        until_saved[0] = tracker.peaks[tracker.phase]
        return tensor

    with saved_tensors_hooks(saving, lambda tensor: tensor):
        answer = call(*args, **kwargs)
    forward = tracker.peaks[tracker.phase] - base
    flat, form = tree_flatten(answer)
    outputs = _described(flat, inputs)
    if outputs is None:
        return None
    start: list[int] = []
    leads = [each for each, of in zip(flat, outputs, strict=True) if of.requires_grad]
    with tracker.having(counts=False):
        end = _Taken.apply(start, tracker, *leads) if leads else None
    new = {
        n: flat[n].untyped_storage()._cdata for n, of in enumerate(outputs) if of.shape is not None
    }
    del answer, flat, leads, args, kwargs, inputs
    saved_inputs = tuple(number for number, key in input_keys.items() if key in tracker.alive)
    saved_outputs = tuple(number for number, key in new.items() if key in tracker.alive)
    of_outputs = {outputs[number].storage: outputs[number].size for number in saved_outputs}
    with_cached = tracker.now
    torch.clear_autocast_cache()
    kept, backward = tracker.now - base - sum(of_outputs.values()), 0
    cached = with_cached - tracker.now
    if end is not None:
        with torch.autocast("cpu", enabled=False):
            end.backward()
        backward = tracker.peaks[tracker.phase] - start[0]
    del gradients
    peaks = forward, until_saved[0] - base, backward
    return Measured(*peaks, kept, cached, outputs, form, saved_inputs, saved_outputs)


def _described(flat: list[Any], inputs: list[Any]) -> tuple[_Output, ...] | None:
    """The outputs of a call; None if they cannot be replayed: real tensors, views of an input."""
    tensors = {number: each for number, each in enumerate(inputs) if isinstance(each, Tensor)}
    given = {each.untyped_storage()._cdata: number for number, each in tensors.items()}
    storages: dict[int, int] = {}
    found = []
    for each in flat:
        if not isinstance(each, Tensor):
            found.append(_Output(value=each))
            continue
        storage = each.untyped_storage()
        if storage._cdata in given:
            number = given[storage._cdata]
            if _layout(each) != _layout(inputs[number]):
                return None
            found.append(_Output(source=number))
        elif not isinstance(each, FakeTensor):
            return None
        else:
            number = storages.setdefault(storage._cdata, len(storages))
            layout = tuple(each.shape), each.stride(), int(each.storage_offset()), each.dtype
            found.append(_Output(None, None, *layout, number, storage.nbytes(), each.requires_grad))
    return tuple(found)


def _replay(tracker: MemoryTracker, measured: Measured, leaves: list[Any]) -> Any:
    before = tracker.now
    tracker.reach(before + measured.until_saved)
    with tracker.aside():  # part of the peak `forward`
        if any(output.requires_grad for output in measured.outputs):
            made = iter(_Replayed.apply(_ANCHOR, tracker, measured, *leaves))
        else:
            made = iter(_new_outputs(measured))
    tracker.reach(before + measured.forward)
    _fill_autocast_cache(tracker, measured.cached)
    results = []
    for output in measured.outputs:
        old = output.value if output.source is None else leaves[output.source]
        results.append(old if output.shape is None else next(made))
    return tree_unflatten(results, measured.structure)


def _new_outputs(measured: Measured) -> list[Tensor]:
    storages: dict[int, Tensor] = {}
    found = []
    counts = Counter(of.storage for of in measured.outputs if of.shape is not None)
    for of in measured.outputs:
        if of.shape is not None and counts[of.storage] == 1 and of.fills_storage:
            found.append(fake(of.shape, of.dtype, of.stride))
        elif of.shape is not None:
            whole = storages.setdefault(of.storage, fake((of.size,), torch.uint8))
            with FAKE:
                whole = whole.view(of.dtype) if of.dtype != torch.uint8 else whole
                found.append(whole.as_strided(of.shape, of.stride, of.offset))
    return found


class _Replayed(torch.autograd.Function):
    """Allocates what a measured call allocated, and has its peaks."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, tracker: MemoryTracker, measured: Measured, *leaves: Any
    ) -> tuple[Tensor, ...]:
        ctx.tracker, ctx.measured = tracker, measured
        ctx.inputs = [
            _layout(leaf) if isinstance(leaf, FakeTensor) and leaf.requires_grad else None
            for leaf in leaves
        ]
        made = _new_outputs(measured)
        new = [number for number, of in enumerate(measured.outputs) if of.shape is not None]
        by_number = dict(zip(new, made, strict=True))
        saved = [leaves[number] for number in measured.saved_inputs]
        saved += [by_number[number] for number in measured.saved_outputs]
        ctx.save_for_backward(fake((measured.kept,), torch.uint8), *saved)
        plain = (n for n in new if not measured.outputs[n].requires_grad)
        ctx.mark_non_differentiable(*(by_number[number] for number in plain))
        ctx.set_materialize_grads(False)
        return tuple(made)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        tracker: MemoryTracker = ctx.tracker
        saved = ctx.saved_tensors  # under checkpointing, this runs the forward pass again
        tracker.reach(tracker.now + ctx.measured.backward)
        with tracker.aside():
            made = [None if layout is None else fake(*layout) for layout in ctx.inputs]
        del saved
        return None, None, None, *made


def _layout(tensor: Tensor) -> tuple[Any, torch.dtype, Any]:
    return tensor.shape, tensor.dtype, tensor.stride()
