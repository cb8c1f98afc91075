"""Step 4, allocate: spend one parameter budget over all layers where it lowers the loss most.

The gain of rank i+1 in a layer is what its direction carries of the loss, tokens times its energy, S²_{i+1} or what was
measured; its price is m + n − 2i − 1 parameters: a layer of rank r keeps r (m + n − r), which any rank below m and n
makes less than the dense mn. All steps of all layers are taken in the order of their gain per parameter.
"""

from __future__ import annotations

import bisect
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
    energies: np.ndarray  # (k,) per token, what each direction carries of the loss, in the order of the directions
    outside: float  # weighted energy outside the union, regained only by staying dense
    tokens: int  # positions the layer saw in calibration
    available: int  # largest rank that there are directions for

    def price(self, rank: int | None) -> int:
        """Parameters kept at a rank (None: dense)."""
        return self.m * self.n if rank is None else low_rank_parameters(self.m, self.n, rank)

    def loss(self, rank: int | None) -> float:
        """Weighted error left at a rank (None: dense), over all tokens."""
        if rank is None:
            return 0.0
        return self.tokens * (self.outside + float(self.energies[rank:].sum()))

    def losses(self, ranks: Sequence[int | None]) -> np.ndarray:
        """`loss` at many ranks at once."""
        tail = np.append(self.energies[::-1].cumsum()[::-1], 0.0) + self.outside
        return np.array([0.0 if rank is None else self.tokens * tail[rank] for rank in ranks])

    def ladder(self, multiple: int) -> Ladder:
        """All that can be bought for the layer at ranks that are multiples."""
        ranks = range(multiple, self.available + 1, multiple)
        rungs = [rank for rank in ranks if self.price(rank) < self.price(None)]
        return Ladder([*rungs, None], [*map(self.price, rungs), self.price(None)])


@dataclass(frozen=True)
class Ladder:
    """Ranks, ascending, then the dense layer (None), and the parameters that each keeps."""

    ranks: list[int | None]
    costs: list[int]


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


def low_rank_parameters(m: int, n: int, rank: int) -> int:
    """Weights of a (m, n) layer of a rank, in the interpolative form of `LowRankLinear`."""
    return rank * (m + n - rank)


def affordable_rank(m: int, n: int, fraction: float) -> int:
    """The largest rank of a (m, n) layer that keeps no more than `fraction` of it; 0 where none does."""
    ranks = range(1, min(m, n))
    return bisect.bisect_right(ranks, fraction * m * n, key=lambda rank: low_rank_parameters(m, n, rank))


def cheapest(m: int, n: int, multiple: int = 1) -> int:
    """Parameters of a (m, n) layer at the smallest rank there is, or dense when there is none below m and n."""
    return low_rank_parameters(m, n, multiple) if multiple < min(m, n) else m * n


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
    dense_total = sum(layer.price(None) for layer in layers.values())
    allowed = math.floor(budget * (dense_total + other_parameters) + 1e-6) - other_parameters
    ladders = {name: layer.ladder(multiple) for name, layer in layers.items()}
    if uniform:
        rungs = _same_fraction(ladders, (budget * (dense_total + other_parameters) - other_parameters) / dense_total)
    else:
        rungs = _by_gain_per_parameter(layers, ladders, allowed)
    ranks = {name: ladders[name].ranks[rung] for name, rung in rungs.items()}
    spent = sum(ladders[name].costs[rung] for name, rung in rungs.items())
    for name, layer in layers.items():
        rank = ranks[name]
        wanted = (rank or 0) + multiple
        affordable = rank is None or layer.price(wanted) - layer.price(rank) <= allowed - spent
        if affordable and layer.available < wanted < min(layer.m, layer.n):
            raise UnionTooSmall(
                f"The union of subspaces of layer '{name}' carries rank {layer.available} at most, and a budget of "
                f"{budget:g} pays for more; raise weight_energy, input_energy or gradient_energy, or let union be "
                "auto.",
                "union",
            )
    left = sum(layers[name].loss(rank) for name, rank in ranks.items())
    return Allocation(ranks, spent, dense_total, left)


def _same_fraction(ladders: Mapping[str, Ladder], fraction: float) -> dict[str, int]:
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
    layers: Mapping[str, LayerSpectrum], ladders: Mapping[str, Ladder], allowed: int
) -> dict[str, int]:
    """Climb all ladders at once, always by the move that saves most loss per parameter among those it can pay.

    A rung above the convex hull of loss over cost is a worse bargain than one past it, so a layer leaps from corner to
    corner of its hull, or goes on in steps when the leap is too dear.
    """
    losses = {name: layer.losses(ladders[name].ranks) for name, layer in layers.items()}
    corners = {name: _hull(losses[name], ladders[name].costs) for name in layers}
    rungs = dict.fromkeys(ladders, 0)
    left = allowed - sum(ladder.costs[0] for ladder in ladders.values())
    heap: list[tuple[float, int, str, int]] = []  # minus the gain per parameter, from rung, layer, to rung

    def offer(name: str, start: int, stop: int) -> None:
        price = ladders[name].costs[stop] - ladders[name].costs[start]
        heapq.heappush(heap, (-float(losses[name][start] - losses[name][stop]) / price, start, name, stop))

    def offer_next(name: str) -> None:
        after = bisect.bisect_right(corners[name], rungs[name])
        if after < len(corners[name]):
            offer(name, rungs[name], corners[name][after])

    for name in layers:
        offer_next(name)
    while heap:
        _, start, name, stop = heapq.heappop(heap)
        price = ladders[name].costs[stop] - ladders[name].costs[start]
        if price <= left:
            rungs[name] = stop
            left -= price
            offer_next(name)
        elif stop > start + 1:
            offer(name, start, start + 1)
    return rungs


def _hull(losses: np.ndarray, costs: Sequence[int]) -> list[int]:
    """The rungs on the lower convex hull of loss over cost; the first and the last are always among them."""
    corners: list[int] = []
    for rung, cost in enumerate(costs):
        while len(corners) > 1:
            first, middle = corners[-2:]
            saved = (losses[first] - losses[middle]) * (cost - costs[first])
            if saved >= (losses[first] - losses[rung]) * (costs[middle] - costs[first]):
                break
            corners.pop()
        corners.append(rung)
    return corners
