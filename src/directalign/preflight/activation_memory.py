"""Bytes of tensors alive while code runs, on real tensors and on fake ones (shape and dtype, no data).

`MemoryTracker` is a dispatch mode: it sees every tensor that an operation creates, forward and
backward, and a weak reference to the storage tells when it is freed. With fake weights nothing is
computed, so a full training step of a 12 B model takes seconds.

Most of those seconds would go to blocks that are all alike. `replay_repeated` measures a module once
per class, parameter shapes and input shapes; every further call allocates what the first one kept and
reports the peaks that the first one had. Gradient checkpointing works on top of it as on the module.
"""

from __future__ import annotations

import functools
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

FAKE = FakeTensorMode(allow_non_fake_inputs=True)
"""The mode of all fake tensors here. It stays switched off: what no weight takes part in (noise
levels, token ids, seeds) is real and can be read, the rest becomes fake by meeting a fake weight."""
SMALL = 64
"""Real whole numbers of at most so many elements are part of a call's signature."""
aten: Any = torch.ops.aten


class MemoryTracker(TorchDispatchMode):
    """Counts storages created inside: `now` bytes alive, `peaks` the most there were by `phase`.

    Tensors made before do not count. Reading a number off a fake tensor gives 1.
    """

    active: MemoryTracker | None = None

    def __init__(self) -> None:
        super().__init__()
        self.now, self.phase, self.counts = 0, "", True
        self.peaks: dict[str, int] = defaultdict(int)
        self.alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __enter__(self) -> MemoryTracker:
        self._outer, MemoryTracker.active = MemoryTracker.active, self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        MemoryTracker.active = self._outer
        super().__exit__(*error)

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
                    there_before = any(
                        isinstance(each, Tensor) and each.untyped_storage()._cdata == storage._cdata
                        for each in args
                    )
                    size = storage.nbytes() if self.counts and not there_before else 0
                    self._register(storage, size)
                    self.now += size
                    self.reach(self.now)
        return out

    def reach(self, size: int) -> None:
        """There were `size` bytes for a moment."""
        if size > self.peaks[self.phase]:
            self.peaks[self.phase] = size

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Tensors created inside do not count, now or later."""
        outer, self.counts = self.counts, False
        try:
            yield
        finally:
            self.counts = outer

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Peaks inside are recorded apart, under the phase 'aside', and forgotten afterwards."""
        outer = self.phase, self.peaks
        self.phase, self.peaks = "aside", defaultdict(int)
        try:
            yield
        finally:
            self.phase, self.peaks = outer

    def _register(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata

        def freed(_: Any) -> None:
            del self.alive[key]
            self.now -= size

        self.alive[key] = weakref.ref(storage, freed)


def _as_numbers(indices: Any) -> list[Any]:
    """Masks as whole numbers, since a fake tensor cannot tell how many elements a mask selects."""
    found: list[Any] = []
    for index in indices:
        masks = (
            isinstance(index, Tensor)
            and not isinstance(index, FakeTensor)
            and index.dtype == torch.bool
        )
        found += index.nonzero().unbind(1) if masks else [index]
    return found


def fake(shape: Any, dtype: torch.dtype, stride: Any = None) -> Tensor:
    """A fake tensor of the CPU."""
    with FAKE:
        return (
            torch.empty(shape, dtype=dtype)
            if stride is None
            else torch.empty_strided(shape, stride, dtype=dtype)
        )


def make_fake(network: nn.Module) -> None:
    """Give a network on the meta device fake tensors of the CPU for its parameters, buffers and other tensors."""
    cpu = torch.device("cpu")

    def faked(tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        return FakeTensor(FAKE, tensor.detach().to("meta"), cpu)

    made: dict[int, nn.Parameter] = {}  # tied weights stay tied
    old = []
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    old.append(parameter)
                    made[id(parameter)] = nn.Parameter(
                        faked(parameter), requires_grad=parameter.requires_grad
                    )
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = faked(buffer)
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_meta:
                setattr(module, name, faked(value))


# --- modules that were measured before ----------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What one call of a module did, in bytes beyond those at its start.

    `forward` and `backward` are peaks, and `until_saved` that of the forward pass up to the last tensor
    that it saves, where a checkpoint that computes it again may stop; `kept` stays until the backward pass, beside the `outputs` and
    the inputs and outputs (by their numbers) that the module saved itself; `cached` are weights that
    autocast has cast and keeps until its region ends.
    """

    forward: int
    until_saved: int
    backward: int
    kept: int
    cached: int
    outputs: tuple[_Output, ...]
    structure: Any
    saved_inputs: tuple[int, ...] = ()
    saved_outputs: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Output:
    """Either a plain value, or an input given back (`source`), or a new tensor, perhaps a view of another output's storage."""

    value: Any = None
    source: int | None = None
    shape: tuple[int, ...] | None = None
    stride: tuple[int, ...] = ()
    offset: int = 0
    dtype: torch.dtype = torch.float32
    storage: int = 0
    size: int = 0
    requires_grad: bool = False


MEASURED: dict[Any, Measured | None] = {}
"""By signature of module and call; None for calls that cannot be replayed."""
_ANCHOR = torch.zeros((), requires_grad=True)
"""Makes outputs carry a gradient where only the module's own weights ask for one."""


def replay_repeated(network: nn.Module) -> None:
    """Measure calls of a network, its parts and its repeated blocks once each, and replay them from then on."""
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
        off = adapters() is not None and adapters()._disable_adapters
        key = (signature(), off, structure, call)
        if key not in MEASURED:
            MEASURED[key] = _measure(tracker, original, leaves, structure)
        if _under_checkpoint():
            full, key = MEASURED[key], (*key, "dropping")
            if key not in MEASURED:
                MEASURED[key] = _measure_dropping(tracker, original, leaves, structure, full)
        measured = MEASURED[key]
        if measured is None:
            return original(*args, **kwargs)
        return _replay(tracker, measured, leaves)

    module.forward = forward


def _module_signature(module: nn.Module) -> int:
    """Equal for modules of one class, with parameters and settings alike; places in a list do not count."""
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


def _checkpoint_hook_dropping(_: Tensor) -> None:
    """Stands for torch's own `_checkpoint_hook`, by the beginning of its name."""


def _under_checkpoint() -> bool:
    """Whether a checkpoint drops what would be saved now, to compute it again in the backward pass."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and hooks[0].__qualname__.startswith("_checkpoint_hook")


def _call_signature(leaves: list[Any]) -> Any:
    """None where an argument is of a kind that a call might change or that cannot be compared."""
    found: list[Any] = [
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
    ]
    storages: dict[int, int] = {}
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            known = storages.setdefault(leaf.untyped_storage()._cdata, len(storages))
            plain = isinstance(leaf, FakeTensor) or leaf.dtype.is_floating_point
            layout = tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.requires_grad
            numbers = leaf.flatten().tolist() if not plain and leaf.numel() <= SMALL else ()
            found.append((layout, plain, known, tuple(numbers)))
        elif leaf is None or isinstance(
            leaf, bool | int | float | str | torch.dtype | torch.device
        ):
            found.append(leaf)
        else:
            return None
    return tuple(found)


class _Given(torch.autograd.Function):
    """A stand-in for an input: in the graph, but not held by it."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, tensor: Tensor, gradients: list[Tensor]) -> Tensor:
        ctx.gradients = gradients
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        ctx.gradients.extend(gradients)
        return None, None, None


class _Taken(torch.autograd.Function):
    """The end of a measured call: its backward pass starts with fresh gradients of the outputs."""

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
    """Run a call by itself, forward and backward, on stand-ins of its fake inputs."""
    with tracker.aside(), _casts_apart(tracker):
        try:
            return _measured(tracker, call, leaves, structure)
        except RuntimeError:  # tied to the graph around it: it runs as it is
            return None


def _measure_dropping(
    tracker: MemoryTracker,
    call: Callable[..., Any],
    leaves: list[Any],
    structure: Any,
    found: Measured | None,
) -> Measured | None:
    """The same call where a checkpoint drops what it saves."""
    if found is None:
        return None
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
    """Inside, autocast starts with an empty cache; what it held before still counts until its region ends."""
    before = tracker.now
    torch.clear_autocast_cache()
    lost = before - tracker.now
    try:
        yield
    finally:
        _fill_autocast_cache(tracker, lost)


def _fill_autocast_cache(tracker: MemoryTracker, size: int) -> None:
    """Let autocast cast a weight, so that its cache holds `size` bytes more until the region ends."""
    if size == 0 or not torch.is_autocast_enabled("cpu"):
        return
    with tracker.aside(), torch.no_grad():
        with tracker.uncounted():
            weight = fake((size // 2, 1), torch.float32).requires_grad_()
            given = fake((1, size // 2), torch.bfloat16)
        torch.mm(given, weight)


def _stand_ins(
    tracker: MemoryTracker, leaves: list[Any]
) -> tuple[list[Any], dict[int, int], list[Tensor]]:
    """Fresh tensors for the fake inputs, the keys of their storages, and a list that their gradients will go into."""
    gradients: list[Tensor] = []
    inputs, keys = list(leaves), dict[int, int]()
    with tracker.uncounted():
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
    with tracker.uncounted():
        end = _Taken.apply(start, tracker, *leads) if leads else None
    new = {
        n: each.untyped_storage()._cdata
        for n, each in enumerate(flat)
        if outputs[n].shape is not None
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
    return Measured(
        forward,
        until_saved[0] - base,
        backward,
        kept,
        cached,
        outputs,
        form,
        saved_inputs,
        saved_outputs,
    )


def _described(flat: list[Any], inputs: list[Any]) -> tuple[_Output, ...] | None:
    """None for answers that replaying cannot give: real tensors, and parts of an input."""
    given = {
        each.untyped_storage()._cdata: number
        for number, each in enumerate(inputs)
        if isinstance(each, Tensor)
    }
    storages: dict[int, int] = {}
    found = []
    for each in flat:
        if not isinstance(each, Tensor):
            found.append(_Output(value=each))
            continue
        key = each.untyped_storage()._cdata
        if key in given:
            source = inputs[given[key]]
            if (each.shape, each.stride(), each.dtype) != (
                source.shape,
                source.stride(),
                source.dtype,
            ):
                return None
            found.append(_Output(source=given[key]))
        elif not isinstance(each, FakeTensor):
            return None
        else:
            number = storages.setdefault(key, len(storages))
            layout = tuple(each.shape), each.stride(), each.storage_offset(), each.dtype
            found.append(
                _Output(
                    None, None, *layout, number, each.untyped_storage().nbytes(), each.requires_grad
                )
            )
    return tuple(found)


def _replay(tracker: MemoryTracker, measured: Measured, leaves: list[Any]) -> Any:
    before = tracker.now
    tracker.reach(before + measured.until_saved)
    with tracker.aside():  # `forward` has them already
        if any(of.requires_grad for of in measured.outputs):
            made = list(_Replayed.apply(_ANCHOR, tracker, measured, *leaves))
        else:
            made = _new_outputs(measured)
    tracker.reach(before + measured.forward)
    _fill_autocast_cache(tracker, measured.cached)
    fresh = iter(made)
    answers = [
        next(fresh)
        if of.shape is not None
        else of.value
        if of.source is None
        else leaves[of.source]
        for of in measured.outputs
    ]
    return tree_unflatten(answers, measured.structure)


def _new_outputs(measured: Measured) -> list[Tensor]:
    storages: dict[int, Tensor] = {}
    found = []
    for of in measured.outputs:
        if of.shape is not None:
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
        places = {
            number: place
            for place, number in enumerate(
                n for n, of in enumerate(measured.outputs) if of.shape is not None
            )
        }
        saved = [leaves[number] for number in measured.saved_inputs] + [
            made[places[number]] for number in measured.saved_outputs
        ]
        ctx.save_for_backward(fake((measured.kept,), torch.uint8), *saved)
        ctx.mark_non_differentiable(
            *(
                made[place]
                for number, place in places.items()
                if not measured.outputs[number].requires_grad
            )
        )
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
