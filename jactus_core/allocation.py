"""Step 4, allocate: spend one parameter budget over all layers where it lowers the loss most.

The gain of rank i+1 in a layer is tokens · S²_{i+1} in units of loss, its price m + n parameters. All ranks of all
layers are sorted once by gain per parameter. A layer whose rank would reach break-even, mn / (m + n), stays dense and
is charged mn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from jactus_core.errors import InfeasibleBudget, UnionTooSmall


@dataclass(frozen=True)
class LayerSpectrum:
    """What allocation needs to know of one (m, n) layer."""

    m: int
    n: int
    singular: np.ndarray  # (k,) descending
    outside: float  # weighted energy outside the union, regained only by staying dense
    tokens: int  # positions the layer saw in calibration

    @property
    def price(self) -> int:
        """Parameters per rank."""
        return self.m + self.n

    @property
    def dense_parameters(self) -> int:
        return self.m * self.n

    @property
    def break_even_rank(self) -> int:
        """Largest rank that is cheaper than the dense layer."""
        return (self.dense_parameters - 1) // self.price

    @property
    def largest_rank(self) -> int:
        """Largest rank that pays and that the union of subspaces can carry."""
        return min(self.break_even_rank, len(self.singular))

    def cost(self, rank: int) -> int:
        """Parameters at a rank; anything past `largest_rank` means dense."""
        return self.price * rank if 0 < rank <= self.largest_rank else self.dense_parameters

    def loss(self, rank: int | None) -> float:
        """Weighted error left at a rank (None: dense), over all tokens."""
        if rank is None:
            return 0.0
        return self.tokens * (self.outside + float(np.square(self.singular[rank:]).sum()))


@dataclass(frozen=True)
class Allocation:
    """`ranks[name]` is a rank, or None for a layer that stays dense."""

    ranks: dict[str, int | None]
    kept_parameters: int
    dense_parameters: int
    predicted_loss: float  # Σ tokens · loss(rank), the weighted error left

    @property
    def kept_fraction(self) -> float:
        return self.kept_parameters / self.dense_parameters


def smallest_budget(shapes: Iterable[tuple[int, int]]) -> float:
    """Fraction of the parameters of (m, n) layers that rank one in each of them costs."""
    shapes = list(shapes)
    return sum(min(m + n, m * n) for m, n in shapes) / sum(m * n for m, n in shapes)


def check_budget(budget: float, shapes: Iterable[tuple[int, int]]) -> None:
    """Raise InfeasibleBudget, naming the smallest feasible budget, when rank one everywhere is too much."""
    smallest = smallest_budget(shapes)
    if budget < smallest:
        raise InfeasibleBudget(
            f"A budget of {budget:g} is too small for this model: rank one in every layer keeps {smallest:.4f}.",
            "budgets",
        )


def allocate(layers: Mapping[str, LayerSpectrum], budget: float) -> Allocation:
    """Ranks for `budget`, the kept fraction of the layers' parameters in (0, 1].

    The budget is never exceeded, and what is left over is smaller than the next rank of any layer. Raises
    InfeasibleBudget naming the smallest feasible budget, or UnionTooSmall naming the layer.
    """
    check_budget(budget, [(layer.m, layer.n) for layer in layers.values()])
    dense_total = sum(layer.dense_parameters for layer in layers.values())
    allowed = math.floor(budget * dense_total + 1e-6)
    ranks = dict.fromkeys(layers, 1)
    spent = sum(layer.cost(1) for layer in layers.values())

    full: set[str] = set()
    for name in _by_gain_per_parameter(layers):
        step = layers[name].cost(ranks[name] + 1) - layers[name].cost(ranks[name])
        if name in full or spent + step > allowed:
            full.add(name)  # its later steps build on this one
            continue
        ranks[name] += 1
        spent += step

    for name, layer in layers.items():
        if ranks[name] == layer.largest_rank < layer.break_even_rank and allowed - spent >= layer.price:
            raise UnionTooSmall(
                f"The union of subspaces of layer '{name}' carries rank {layer.largest_rank} at most, and a budget of "
                f"{budget:g} pays for more; raise weight_energy, input_energy or gradient_energy.",
                "weight_energy",
            )
    final = {name: rank if rank <= layers[name].largest_rank else None for name, rank in ranks.items()}
    left = sum(layers[name].loss(rank) for name, rank in final.items())
    return Allocation(final, spent, dense_total, left)


def _by_gain_per_parameter(layers: Mapping[str, LayerSpectrum]) -> list[str]:
    """The layer to grow next, step by step: ranks 2, 3, …, `largest_rank`, dense of all layers in one sort."""
    names, owners, steps, densities = list(layers), [], [], []
    for index, layer in enumerate(layers.values()):
        top = layer.largest_rank
        gains = np.append(np.square(layer.singular[:top]) * layer.tokens, layer.loss(top))
        prices = np.append(np.full(top, layer.price), layer.dense_parameters - layer.price * top)
        density = np.minimum.accumulate(gains / prices)[1:]  # a step is never bought before the one it builds on
        owners.append(np.full(len(density), index))
        steps.append(np.arange(len(density)))
        densities.append(density)
    order = np.lexsort((np.concatenate(owners), np.concatenate(steps), -np.concatenate(densities)))
    return [names[i] for i in np.concatenate(owners)[order]]
