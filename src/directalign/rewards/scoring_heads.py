"""Heads that turn features into one score: linear layers one after another, as ImageReward and the aesthetic predictors published them.

The published ones have dropouts between their layers and no activations: frozen, they are one affine function of the features. They are
kept layer by layer under the names of their files, so that a file is checked tensor by tensor.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from .published import Shapes


def linear_layers(prefix: str, numbers: Sequence[int], width: int, shapes: Shapes) -> nn.Sequential:
    """From (b, width) to (b, 1) by layers `prefix`.`number`, whose inner widths a file's `shapes` tell (1 where a layer is missing)."""
    inner = [(*shapes.get(f"{prefix}.{number}.weight", ()), 1)[0] for number in numbers[:-1]]
    layers = [nn.Linear(given, made) for given, made in pairwise([width, *inner, 1])]
    chain = nn.Sequential(OrderedDict(zip(map(str, numbers), layers, strict=True)))
    for name in reversed(prefix.split(".")):
        chain = nn.Sequential(OrderedDict({name: chain}))
    return chain
