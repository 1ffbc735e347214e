"""Random weights under the names and shapes of a published checkpoint, drawn alike wherever numpy
is; shared with the scripts that record fixtures."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch


def drawn(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, torch.Tensor]:
    """Float32 tensors by name: gains around 1, matrices that keep the size of what passes through,
    all else small; position_ids count."""
    # its stream is frozen: https://numpy.org/neps/nep-0019-rng-policy.html
    state = np.random.RandomState(seed)
    return {name: _tensor(name, tuple(shapes[name]), state) for name in sorted(shapes)}


def images_drawn(count: int, height: int, width: int, seed: int) -> torch.Tensor:
    """(count, 3, height, width) float32 in [0.2, 0.8], where resizing overshoots nowhere."""
    values = np.random.RandomState(seed).uniform(0.2, 0.8, (count, 3, height, width))
    return torch.from_numpy(values.astype(np.float32))


def _tensor(name: str, shape: tuple[int, ...], state: np.random.RandomState) -> torch.Tensor:
    if name.endswith("position_ids"):
        return torch.arange(shape[-1]).expand(shape).clone()
    noise = torch.from_numpy(state.standard_normal(shape).astype(np.float32).reshape(shape))
    if len(shape) < 2:
        return (
            1 + 0.1 * noise if name.endswith("weight") and "norm" in name.lower() else 0.1 * noise
        )
    return noise / np.sqrt(np.prod(shape[1:])) if "embed" not in name else 0.3 * noise
