"""Track bytes of live tensors and count operations, on real or fake tensors (without data).

`MemoryTracker` is a dispatch mode: it sees every tensor that an operation creates, in the forward
and the backward pass; a weak reference to the storage tells when it is freed. With fake weights
nothing is computed, so a training step of a 12 B model takes seconds.

Tracing every block of a deep network, in every step of a rollout, would take minutes. Both are
linear in the number of alike blocks, so `pass_repeated` runs three of them, and `trace_once` traces
a call without gradient once.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from .fake_tensors import dispatch, fake

aten: Any = torch.ops.aten
FORMULAS = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[
        aten._scaled_dot_product_flash_attention
    ],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}
"""torch's formulas of floating-point operations, by operation; it has none for these two."""


class MemoryTracker(TorchDispatchMode):
    """Counts storages created inside: `now` live bytes, `peaks` their maximum by `phase`; and
    `flops`, floating-point operations by `part` (two for each multiplication and addition).
    `forward` and `backward` are for its user: passes of the denoiser.

    Tensors created before do not count. Reading a number from a fake tensor gives 1.
    """

    active: MemoryTracker | None = None

    def __init__(self) -> None:
        super().__init__()
        self.now, self.phase = 0, ""
        self.peaks: dict[str, int] = defaultdict(int)
        self.flops, self.part = Counter[str](), ""
        self.forward = self.backward = 0
        self.backward_part = "train"
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
        if func is torch.ops.prim.device.default:
            return args[0].fake_device  # half of all calls, and slow
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return torch.ones((), dtype=args[0].dtype).item()
        if func in (aten.index.Tensor, aten.index_put_.default):
            args = (args[0], _as_numbers(args[1]), *args[2:])
        if FakeTensor in types:  # func would come to the same call, but slower
            out = dispatch(func, types, args, kwargs or {})
        else:
            out = func(*args, **(kwargs or {}))
        if (formula := FORMULAS.get(getattr(func, "_overloadpacket", None))) is not None:
            self.flops[self.part] += formula(*args, **(kwargs or {}), out_val=out)
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor):
                storage = made.untyped_storage()
                if storage._cdata not in self.alive:
                    is_old = any(
                        isinstance(each, Tensor) and each.untyped_storage()._cdata == storage._cdata
                        for each in args
                    )
                    size = storage.nbytes() if not is_old else 0
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
        """Other `phase` or `peaks` inside, the same as before afterwards."""
        outer = {name: getattr(self, name) for name in values}
        vars(self).update(values)
        try:
            yield
        finally:
            vars(self).update(outer)

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


# Repeated blocks and calls


def pass_repeated(network: nn.Module) -> None:
    """Run the first two and the last of alike blocks in a row; the others return at once.

    What they would have kept, each as much as the second block, is held in their place: until the
    backward pass reaches them, or until the network returns. Their operations are counted too.
    """
    held, running = list[Tensor](), list[nn.Module]()

    def leave(*_: Any) -> None:
        running.pop()
        if not running:
            held.clear()

    for module in network.modules():
        rows = list(_rows_of_alike(module))
        for row in rows:
            _pass(row[0], row[1], row[2:-1], held)
        if rows or module is network:  # some callers run a part of the network
            module.register_forward_pre_hook(lambda each, _: running.append(each))
            module.register_forward_hook(leave, always_call=True)


def _rows_of_alike(module: nn.Module) -> Iterator[list[nn.Module]]:
    """The rows of more than three alike blocks in its lists."""
    for blocks in module.children():
        if isinstance(blocks, nn.ModuleList):
            for _, alike in itertools.groupby(filter(None, blocks), _signature):
                row = list(alike)
                if len(row) > 3:
                    yield row


def _signature(module: nn.Module) -> Any:
    """Equal for modules of equal classes and parameter shapes."""
    parts = [(name, type(part)) for name, part in module.named_modules()]
    parameters = module.named_parameters()
    return parts, [(name, p.shape, p.dtype, p.requires_grad) for name, p in parameters]


def _pass(first: Any, second: Any, passed: Sequence[Any], held: list[Tensor]) -> None:
    """Let the `passed` blocks return what the second block returned."""
    start, made, original = 0, None, second.forward
    work, backward = 0, _BackwardWork(len(passed))
    first.register_forward_hook(lambda _, __, answer: backward.ends_at(answer))

    def measured(*args: Any, **kwargs: Any) -> Any:
        nonlocal start, made, work
        _hold_casts(held)
        start, work = _active().now, _active().flops.total()
        answer = original(*args, **kwargs)
        work = _active().flops.total() - work
        backward.begins_at(answer)
        made = tree_map_only(Tensor, _Returned, answer)
        return answer

    def again(*args: Any, **kwargs: Any) -> Any:
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        return tree_map_only(_Returned, lambda tensor: tensor.again(given), made)

    def again_and_hold(*args: Any, **kwargs: Any) -> Any:
        answer, casts = again(*args, **kwargs), _hold_casts(held)
        _active().flops[_active().part] += len(passed) * work
        saved = [_bytes(len(passed) * (_active().now - start - casts))]
        tensors = (each for each in tree_leaves(answer) if isinstance(each, Tensor))
        lead = next((each for each in tensors if each.requires_grad), None)
        if lead is None:
            held.extend(saved)
        else:
            lead.register_hook(lambda _: saved.clear())
        held.append(_bytes(len(passed) * casts))
        return answer

    second.forward = functools.wraps(original)(measured)
    for block in passed:
        returns = again_and_hold if block is passed[0] else again
        block.forward = functools.wraps(block.forward)(returns)


class _Returned:
    """A tensor that a block returned; its network may have kept only a part of it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.layout = weakref.ref(tensor), (tensor.shape, tensor.dtype)

    def again(self, given: Sequence[Tensor]) -> Tensor:
        """The tensor, or where it is freed that one of the inputs of another block."""
        alike = (each for each in given if (each.shape, each.dtype) == self.layout)
        held = self.tensor()
        return next(alike) if held is None else held


class _BackwardWork:
    """Counts the operations of a block's backward pass `times` times more.

    They lie between the first gradients of its outputs and of the outputs of the block before it:
    autograd runs the latest operation first.
    """

    def __init__(self, times: int) -> None:
        self.times, self.before = times, -1

    def begins_at(self, answer: Any) -> None:
        self._when_reached(answer, self._begin)

    def ends_at(self, answer: Any) -> None:
        self._when_reached(answer, self._end)

    def _when_reached(self, answer: Any, call: Callable[[Tensor], None]) -> None:
        for each in tree_leaves(answer):
            if isinstance(each, Tensor) and each.requires_grad:
                each.register_hook(call)

    def _begin(self, _: Tensor) -> None:
        if self.before < 0:
            self.before = _active().flops.total()

    def _end(self, _: Tensor) -> None:
        tracker = _active()
        if self.before >= 0:
            own = tracker.flops.total() - self.before
            tracker.flops[tracker.part] += self.times * own
        self.before = -1


def _active() -> MemoryTracker:
    assert MemoryTracker.active is not None, "a network of fake tensors runs in a MemoryTracker"
    return MemoryTracker.active


def _bytes(size: int) -> Tensor:
    return fake((max(0, size),), torch.uint8)


def _hold_casts(held: list[Tensor]) -> int:
    """Bytes of cast weights that only autocast's cache keeps; they are held in their place."""
    before = _active().now
    torch.clear_autocast_cache()
    casts = before - _active().now
    held.append(_bytes(casts))
    return casts


def trace_once(network: Any) -> None:
    """Trace calls without gradient once for each layout of the inputs; others have its peak."""
    original, known = network.forward, dict[str, tuple[int, int, Any]]()
    adapters = [each for each in network.modules() if "_disable_adapters" in vars(each)]

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return original(*args, **kwargs)
        tracker = _active()
        before = tracker.now
        off = any(each._disable_adapters for each in adapters)
        key = repr((off, tree_map_only(Tensor, _layout, (args, kwargs))))
        if key in known:
            peak, work, layouts = known[key]
            tracker.flops[tracker.part] += work
            answer = tree_map_only(functools.partial, lambda make: make(), layouts)
        else:
            work = tracker.flops.total()
            with tracker.having(phase="aside", peaks=defaultdict(int)):
                answer = original(*args, **kwargs)
                peak = tracker.peaks["aside"] - before
            work = tracker.flops.total() - work
            known[key] = peak, work, tree_map_only(Tensor, _layout, answer)
        tracker.reach(before + peak)
        return answer

    network.forward = forward


def _layout(tensor: Tensor) -> functools.partial[Tensor]:
    """What makes a fake tensor of the same layout."""
    return functools.partial(fake, tensor.shape, tensor.dtype, tensor.stride())
