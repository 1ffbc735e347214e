"""AdamW in 32 and 8 bits, the learning rate as a pure function of the step, and EMA.

`AdamW8bit` has 8-bit moments and stochastic rounding, for float32 or bfloat16 weights.

From "8-bit Optimizers via Block-wise Quantization" (arXiv 2110.02861): each block of 256 numbers of
a row is divided by its largest and looked up in a code book that is fine near 1 and reaches down to
1e-7. Two things differ here. The second moment is stored as its root, which spans half the decades.
All rounding is stochastic, up or down by nearness and right on average: rounded to nearest, a
bfloat16 weight never moves at a small rate, and a slow moment never falls. Vectors and small
matrices have float32 moments.

Random draws depend only on (seed, step, shard), so a resumed run repeats them. Blocks lie within
rows, so the state of a network that FSDP2 shards by rows is itself sharded by rows, for any number
of processes.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..config import TrainConfig
from ..diffusion.rng import generator_for
from ..types import DirectAlignError

BLOCK = 256
SMALLEST = 4096
"""Averages of fewer numbers stay float32."""
ROUNDING_STREAM = 1_000_004
"""Separates these draws from those of the noise and the noise levels."""
AVERAGES = {"exp_avg": True, "exp_avg_sq_root": False}
"""Name in the state -> whether it has a sign."""


def trained_parameters(denoiser: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name; all float32 or all bfloat16.

    Raises: DirectAlignError if there are none.
    """
    named = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
    if not named:
        raise DirectAlignError(
            "model.tune: no weight of the denoiser requires a gradient; check model.lora.targets"
        )
    dtypes = {p.dtype for p in named.values()}
    assert dtypes in ({torch.float32}, {torch.bfloat16}), (
        f"trained weights must all be float32 or all be bfloat16, they are {dtypes}"
    )
    return named


def learning_rate(settings: TrainConfig, step: int) -> float:
    """Of step `step` (0 is the first): linear warm-up, then constant or falling to 0."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / (settings.warmup_steps + 1)
    progress = (step - settings.warmup_steps) / max(settings.num_steps - settings.warmup_steps, 1)
    factors = {"constant": 1.0, "linear": 1 - progress}
    factors["cosine"] = (1 + math.cos(math.pi * progress)) / 2
    return settings.learning_rate * factors[settings.schedule]


def adamw(
    parameters: dict[str, nn.Parameter], settings: TrainConfig, seed: int = 0
) -> torch.optim.Optimizer:
    """The optimizer that `train.optimizer` names; `seed` is for the random rounding in 8 bits.

    bfloat16 weights need adamw8bit: with rounding to nearest, small updates would be lost.
    """
    weights, rate, decay = parameters.values(), settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adamw8bit":
        return AdamW8bit(weights, rate, settings.betas, decay, seed=seed)
    assert all(p.dtype == torch.float32 for p in weights), "bfloat16 weights need adamw8bit"
    return torch.optim.AdamW(weights, lr=rate, betas=settings.betas, weight_decay=decay, fused=True)


class EMA:
    """Exponential moving average of `parameters`, by the same names."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = dict(parameters)
        self.model = EMAModel(self.parameters.values(), decay=decay)

    def update(self) -> None:
        """Average in the current weights; call after an optimizer step."""
        self.model.step(self.parameters.values())

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Inside, the parameters hold the averaged weights; restored afterwards, even on error."""
        own = [_local(p.detach()) for p in self.parameters.values()]  # plain tensors, if sharded
        kept = [weight.to("cpu", copy=True) for weight in own]
        self.model.copy_to(self.parameters.values())
        try:
            yield
        finally:
            for weight, before in zip(own, kept, strict=True):
                weight.copy_(before)

    def load(self) -> None:
        """Give the parameters the averaged weights, for good."""
        self.model.copy_to(self.parameters.values())

    def tensors(self) -> dict[str, Tensor]:
        """The averaged weights by name, by reference; sharded as the parameters are."""
        return dict(zip(self.parameters, self.model.shadow_params, strict=True))


class AdamW8bit(torch.optim.Optimizer):
    """Like torch.optim.AdamW; weights float32 or bfloat16, whole or sharded by rows (DTensor)."""

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        eps: float = 1e-8,
        seed: int = 0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps}
        super().__init__(params, defaults)
        self.seed = seed

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every weight that has a gradient."""
        assert closure is None, "gradients are there already"
        generator: torch.Generator | None = None
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p] or self._begun(p)
                state["step"] += 1
                generator = generator or self._generator(p, int(state["step"]))
                _update(p, state, group, generator)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore bit by bit; torch itself would cast the state to the dtype of the weights."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        weights = [p for group in self.param_groups for p in group["params"]]
        for number, p in zip(numbers, weights, strict=True):
            self.state[p] = {
                key: value.clone() if key == "step" else value.to(p.device, copy=True)
                for key, value in state_dict["state"].get(number, {}).items()
            }

    def _begun(self, p: nn.Parameter) -> dict[str, Tensor]:
        self.state[p] = {"step": torch.zeros(())}
        zeros = torch.zeros_like(_local(p), dtype=torch.float32)
        for name in AVERAGES:
            _write(p, self.state[p], name, zeros.clone(), torch.Generator(zeros.device))
        return self.state[p]

    def _generator(self, p: nn.Parameter, step: int) -> torch.Generator:
        place = p.device_mesh.get_coordinate() if isinstance(p, DTensor) else None
        shard = place[-1] if place else 0  # copies of a shard round alike
        seed = generator_for(self.seed, ROUNDING_STREAM, step, shard).initial_seed()
        return torch.Generator(p.device).manual_seed(seed)


def _update(
    p: nn.Parameter, state: dict[str, Tensor], group: Mapping[str, Any], generator: torch.Generator
) -> None:
    """w ← w − rate·(decay·w + m / (√v + eps)) in float32, m and v with bias correction."""
    assert p.grad is not None
    weight, gradient = _local(p.detach()), _local(p.grad).float()
    (beta_1, beta_2), step = group["betas"], int(state["step"])
    average = _read(state, "exp_avg").lerp_(gradient, 1 - beta_1)
    root = _read(state, "exp_avg_sq_root").square_().mul_(beta_2)
    root.addcmul_(gradient, gradient, value=1 - beta_2).sqrt_()
    moved = weight.float() * (1 - group["lr"] * group["weight_decay"])
    denominator = root / (1 - beta_2**step) ** 0.5 + group["eps"]
    moved.addcdiv_(average, denominator, value=-group["lr"] / (1 - beta_1**step))
    weight.copy_(rounded(moved, generator) if weight.dtype == torch.bfloat16 else moved)
    _write(p, state, "exp_avg", average, generator)
    _write(p, state, "exp_avg_sq_root", root, generator)


def rounded(values: Float[Tensor, "*shape"], generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """float32 to bfloat16 with stochastic rounding: the mean over many draws is the value."""
    bits = values.view(torch.int32)
    options: dict[str, Any] = {"dtype": torch.int32, "device": bits.device, "generator": generator}
    noise = torch.randint(0, 1 << 16, bits.shape, **options)
    return ((bits + noise) & -(1 << 16)).view(torch.float32).bfloat16()


def encode(
    values: Float[Tensor, "rows columns"], signed: bool, generator: torch.Generator
) -> tuple[UInt8[Tensor, "rows columns"], Float[Tensor, "rows blocks"]]:
    """One byte per number with stochastic rounding, and the largest magnitude of each block."""
    columns = values.shape[1]
    blocks = F.pad(values, (0, -columns % BLOCK)).unflatten(1, (-1, BLOCK))
    scale = blocks.abs().amax(-1)
    book = code_book(signed, values.device)
    divisor = scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    parts = (blocks / divisor).flatten(1)[:, :columns].contiguous()
    below = (torch.bucketize(parts, book, right=True, out_int32=True) - 1).clamp_(0, len(book) - 2)
    share = (parts - book[below]) / (book[below + 1] - book[below])
    chance = torch.rand(parts.shape, device=parts.device, generator=generator)
    return (below + (chance < share)).to(torch.uint8), scale


def decode(
    codes: UInt8[Tensor, "rows columns"], scale: Float[Tensor, "rows blocks"], signed: bool
) -> Float[Tensor, "rows columns"]:
    """The numbers that `encode` stored."""
    scales = scale.repeat_interleave(BLOCK, dim=1)[:, : codes.shape[1]]
    return code_book(signed, codes.device)[codes.int()] * scales


@cache
def code_book(signed: bool, device: torch.device) -> Float[Tensor, " codes"]:
    """256 rising numbers in [0, 1], or (-1, 1], with 0 and 1.

    Seven decades, each with half as many steps as the one above.
    """
    numbers = [torch.tensor([0.0, 1.0])]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (7 - decade - signed) + 1) * 10.0**-decade
        middles = (edges[1:] + edges[:-1]) / 2
        numbers += [middles, -middles] if signed else [middles]
    return torch.cat(numbers).sort().values.to(device)


def _read(state: Mapping[str, Tensor], name: str) -> Tensor:
    held = _local(state[name])
    if held.dtype == torch.float32:
        return held.clone()
    scale = _local(state[f"{name}_scale"])
    return decode(held.flatten(1), scale, AVERAGES[name]).view(held.shape)


def _write(
    p: nn.Parameter, state: dict[str, Tensor], name: str, values: Tensor, generator: torch.Generator
) -> None:
    """Store a moment in the state, sharded as `p`."""
    if p.dim() < 2 or p.numel() < SMALLEST:
        state[name] = _split_as(p, values)
        return
    codes, scale = encode(values.flatten(1), AVERAGES[name], generator)
    state[name] = _split_as(p, codes.view(values.shape))
    state[f"{name}_scale"] = _split_as(p, scale)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _split_as(p: Tensor, local: Tensor) -> Tensor:
    """This process's rows of a tensor that is split over the processes as `p` is."""
    if not isinstance(p, DTensor):
        return local
    shape = torch.Size([p.shape[0], *local.shape[1:]])
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local, p.device_mesh, p.placements, run_check=False, shape=shape, stride=stride
    )
