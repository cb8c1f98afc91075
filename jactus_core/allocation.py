"""Step 4, allocate: spend one parameter budget over all layers where it lowers the loss most.

The gain of rank i+1 in a layer is tokens · S²_{i+1} in units of loss, its price m + n parameters. All ranks of all
layers are sorted once by gain per parameter. A layer whose rank would reach break-even, mn / (m + n), stays dense and
is charged mn.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
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
    available: int  # largest rank that there are directions for

    def loss(self, rank: int | None) -> float:
        """Weighted error left at a rank (None: dense), over all tokens."""
        if rank is None:
            return 0.0
        return self.tokens * (self.outside + float(np.square(self.singular[rank:]).sum()))

    def losses(self, ranks: Sequence[int | None]) -> np.ndarray:
        """`loss` at many ranks at once."""
        tail = np.append(np.square(self.singular)[::-1].cumsum()[::-1], 0.0) + self.outside
        return np.array([0.0 if rank is None else self.tokens * tail[rank] for rank in ranks])

    @property
    def dense_parameters(self) -> int:
        return self.m * self.n

    def largest_rank(self, multiple: int) -> int:
        """Largest multiple that pays and that there are directions for; 0 when there is none."""
        return min(break_even_rank(self.m, self.n), self.available) // multiple * multiple


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


def break_even_rank(m: int, n: int) -> int:
    """Largest rank at which a low-rank (m, n) layer has fewer parameters than the dense one."""
    return (m * n - 1) // (m + n)


def cheapest(m: int, n: int, multiple: int = 1) -> int:
    """Parameters of a (m, n) layer at the smallest rank there is, or dense when no rank pays."""
    return (m + n) * multiple if multiple <= break_even_rank(m, n) else m * n


def smallest_budget(shapes: Iterable[tuple[int, int]], other_parameters: int = 0, multiple: int = 1) -> float:
    """Smallest feasible kept fraction of (m, n) layers and `other_parameters` that no compression changes."""
    shapes = list(shapes)
    least = sum(cheapest(m, n, multiple) for m, n in shapes)
    return (least + other_parameters) / (sum(m * n for m, n in shapes) + other_parameters)


def check_budget(
    budget: float, shapes: Iterable[tuple[int, int]], other_parameters: int = 0, multiple: int = 1
) -> None:
    """Raise InfeasibleBudget, naming the smallest feasible budget, when the smallest ranks everywhere are too much."""
    smallest = smallest_budget(shapes, other_parameters, multiple)
    if budget < smallest:
        rank, remedy = ("rank one", "") if multiple == 1 else (f"rank {multiple}", ", or for a lower rank_multiple")
        raise InfeasibleBudget(
            f"A budget of {budget:g} is too small for this model: {rank} in every layer keeps {smallest:.4f}; ask for "
            f"{math.ceil(smallest * 1e4) / 1e4:g} or more{remedy}.",
            "budgets",
        )


def allocate(
    layers: Mapping[str, LayerSpectrum],
    budget: float,
    *,
    other_parameters: int = 0,
    multiple: int = 1,
    uniform: bool = False,
) -> Allocation:
    """Ranks for `budget`, the kept fraction in (0, 1] of the layers' parameters and `other_parameters`.

    Ranks are multiples of `multiple`. The budget is never exceeded; globally, what is left over is smaller than the
    next step of any layer; `uniform` gives each layer the same fraction instead. Raises InfeasibleBudget naming the
    smallest feasible budget, or UnionTooSmall naming the layer.
    """
    check_budget(budget, [(layer.m, layer.n) for layer in layers.values()], other_parameters, multiple)
    dense_total = sum(layer.dense_parameters for layer in layers.values())
    allowed = math.floor(budget * (dense_total + other_parameters) + 1e-6) - other_parameters
    ladders = {name: _ladder(layer, multiple) for name, layer in layers.items()}
    if uniform:
        rungs = _same_fraction(ladders, (budget * (dense_total + other_parameters) - other_parameters) / dense_total)
    else:
        rungs = _by_gain_per_parameter(layers, ladders, allowed)
    ranks = {name: ladders[name].ranks[rung] for name, rung in rungs.items()}
    spent = sum(ladders[name].costs[rung] for name, rung in rungs.items())
    for name, layer in layers.items():
        wanted = (ranks[name] or 0) + multiple
        affordable = ranks[name] is None or allowed - spent >= (layer.m + layer.n) * multiple
        if affordable and layer.available < wanted <= break_even_rank(layer.m, layer.n):
            raise UnionTooSmall(
                f"The union of subspaces of layer '{name}' carries rank {layer.available} at most, and a budget of "
                f"{budget:g} pays for more; raise weight_energy, input_energy or gradient_energy, or let union be "
                "auto.",
                "union",
            )
    left = sum(layers[name].loss(rank) for name, rank in ranks.items())
    return Allocation(ranks, spent, dense_total, left)


@dataclass(frozen=True)
class _Ladder:
    """What can be bought for one layer, cheapest first: ranks in steps of `multiple`, then the dense layer (None)."""

    ranks: list[int | None]
    costs: list[int]


def _ladder(layer: LayerSpectrum, multiple: int) -> _Ladder:
    ranks = list(range(multiple, layer.largest_rank(multiple) + 1, multiple))
    return _Ladder([*ranks, None], [*((layer.m + layer.n) * rank for rank in ranks), layer.dense_parameters])


def _same_fraction(ladders: Mapping[str, _Ladder], fraction: float) -> dict[str, int]:
    """The highest rung of every layer that keeps no more than `fraction` of it."""
    rungs = {}
    for name, ladder in ladders.items():
        affordable = [rung for rung, cost in enumerate(ladder.costs) if cost <= fraction * ladder.costs[-1] + 1e-6]
        if not affordable:
            raise InfeasibleBudget(
                f"Layer '{name}' cannot keep {fraction:.4f} of its parameters: the smallest rank keeps "
                f"{ladder.costs[0] / ladder.costs[-1]:.4f}; raise the budget or let allocation be global.",
                "budgets",
            )
        rungs[name] = affordable[-1]
    return rungs


def _by_gain_per_parameter(
    layers: Mapping[str, LayerSpectrum], ladders: Mapping[str, _Ladder], allowed: int
) -> dict[str, int]:
    """Climb all ladders at once, always by the move that saves most loss per parameter among those it can pay.

    The last ranks before break-even cost nearly as much as the dense layer and save less. So from the last corner of
    the convex hull of loss over cost, a layer leaps straight to dense, or goes on in steps when that is too dear.
    """
    losses = {name: layer.losses(ladders[name].ranks) for name, layer in layers.items()}
    corners = {name: _last_corner(losses[name], ladders[name].costs) for name in layers}
    rungs = dict.fromkeys(ladders, 0)
    left = allowed - sum(ladder.costs[0] for ladder in ladders.values())
    heap: list[tuple[float, int, str, int]] = []  # minus the gain per parameter, from rung, layer, to rung

    def offer(name: str, start: int, stop: int) -> None:
        costs = ladders[name].costs
        if stop < len(costs):
            gain = float(losses[name][start] - losses[name][stop]) / max(costs[stop] - costs[start], 1)
            heapq.heappush(heap, (-gain, start, name, stop))

    for name in layers:
        offer(name, 0, _next(0, corners[name], len(losses[name]) - 1))
    while heap:
        _, start, name, stop = heapq.heappop(heap)
        price = ladders[name].costs[stop] - ladders[name].costs[start]
        if price <= left:
            rungs[name] = stop
            left -= price
            offer(name, stop, _next(stop, corners[name], len(losses[name]) - 1))
        elif stop > start + 1:
            offer(name, start, start + 1)
    return rungs


def _next(rung: int, corner: int, top: int) -> int:
    """One step up, or all the way from the last corner on."""
    return rung + 1 if rung < corner else max(top, rung + 1)


def _last_corner(losses: np.ndarray, costs: Sequence[int]) -> int:
    """The rung from which the convex hull of loss over cost runs straight to the dense layer."""
    if len(costs) == 1:
        return 0
    slopes = (losses[:-1] - losses[-1]) / (costs[-1] - np.array(costs[:-1]))
    return len(slopes) - 1 - int(slopes[::-1].argmin())
