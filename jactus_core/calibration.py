"""Step 1, calibrate: what a layer reads (C_x) and what the loss says about what it writes (C_g).

For a layer y = W x + b and the loss summed over the batch, over N real (unpadded) token positions:

    C_x = 1/N Σ x xᵀ   (n, n)        C_g = 1/N Σ g gᵀ   (m, m),   g = ∂loss/∂y

Both are kept as unnormalised sums plus counts and divided once at the end, then shrunk towards a scaled identity. The
tokens of one row (a text, an image) depend on each other, so the shrinkage takes rows, not tokens, as the independent
draws; it needs one more scalar, the mean of ‖M‖² over rows, where M is the row's own mean of x xᵀ.

Of the wider side of a layer no more is needed than what W makes of it, W C_x Wᵀ for m < n and Wᵀ C_g W for m > n, so
that is what is summed: the moments of W x, (m, m), or of Wᵀ g, (n, n).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jactus_core.distributed import ALONE, Processes
from jactus_core.errors import NonFiniteLoss
from jactus_core.gradients import by_row, observe
from jactus_core.layers import matrix_of
from jactus_core.losses import without_labels
from jactus_core.modeling_jactus import matrix_shape
from jactus_core.subspaces import exact

Shrinkage = Literal["ledoit-wolf", "oas"] | float
SYMMETRIC_BLOCK = 256
"""Columns per block of a covariance: blocks below the diagonal are mirrored at the end instead of computed."""
EQUAL = 1e-12
"""A moment is as good as the target of its shrinkage when their squared distance is this share of its squared norm."""
PROBED_ROWS = 32
"""Rows from which the spread between rows is estimated; it is one scalar, so these are enough."""


@dataclass
class Moments:
    """Streaming uncentred second moment of vectors x of one size, or of their products z with a weight (d, size)."""

    total: Tensor  # (d, d) float32 Σ x xᵀ, or Σ z zᵀ; without the blocks below the diagonal
    size: int  # of the vectors; d is smaller where their products are summed
    tokens: int = 0  # vectors seen
    rows: int = 0  # rows that held them
    probed: int = 0  # rows that `spread` sums over
    spread: float = 0.0  # Σ ‖M‖² over the probed rows, M = (d, d) mean of x xᵀ, or z zᵀ, within the row
    squares: Tensor | float = 0.0  # Σ ‖x‖², where products are summed

    @classmethod
    def zeros(cls, size: int, device: torch.device | str = "cpu", products: int | None = None) -> Moments:
        """Of vectors of this size, or of their `products` of another."""
        d = products or size
        return cls(torch.zeros(d, d, device=device), size)

    @property
    def of_products(self) -> bool:
        return len(self.total) < self.size

    def add(self, x: Tensor, mask: Tensor | None = None, probe: bool = True, products: Tensor | None = None) -> None:
        """Add a batch (rows, …, size), or its `products` (rows, …, d); `mask` (rows, tokens) is false at padding.

        `probe` adds to the spread between rows.
        """
        x, mask = by_row(x, mask)
        if products is not None:
            vectors = x[mask].float().flatten()
            self.squares = self.squares + vectors.dot(vectors)
            x, _ = by_row(products, mask)
        real = x[mask].float()  # (tokens, d)
        size = real.shape[1]
        for start in range(0, size, SYMMETRIC_BLOCK):
            stop = min(start + SYMMETRIC_BLOCK, size)
            self.total[start:stop, start:].addmm_(real[:, start:stop].T, real[:, start:])
        self.tokens += len(real)
        self.rows += len(x)
        if probe:
            self._probe(x.float(), mask)

    def _probe(self, x: Tensor, mask: Tensor) -> None:
        x = x * mask.unsqueeze(-1)
        gram = x @ x.mT  # ‖Σ x xᵀ‖ = ‖gram‖, and it has only (tokens, tokens) entries per row
        self.spread += float((gram / mask.sum(1).clamp(min=1)[:, None, None]).square().sum())
        self.probed += len(x)

    def gather(self, processes: Processes) -> None:
        """Add up what every process has seen."""
        processes.sum_(self.total)
        found = self.tokens, self.rows, self.probed, self.spread, float(self.squares)
        facts = torch.tensor(found, dtype=torch.float64)
        tokens, rows, probed, self.spread, self.squares = processes.sum_(facts.to(exact(self.total.device))).tolist()
        self.tokens, self.rows, self.probed = int(tokens), int(rows), int(probed)

    def covariance(self) -> Tensor:
        """The plain estimate Σ x xᵀ / N, or Σ z zᵀ / N, (d, d) float64."""
        estimate = self.total.to(exact(self.total.device)).double() / max(self.tokens, 1)
        for start in range(0, len(estimate), SYMMETRIC_BLOCK):
            stop = start + SYMMETRIC_BLOCK
            estimate[stop:, start:stop] = estimate[start:stop, stop:].T
            block = estimate[start:stop, start:stop]
            block.copy_(block.triu() + block.triu(1).T)
        return estimate

    @property
    def mean_square(self) -> float:
        """μ = tr(C) / size, of an entry of x."""
        squares = self.squares if self.of_products else self.total.trace()
        return float(squares) / max(self.tokens * self.size, 1)

    def shrunk(self, shrinkage: Shrinkage = "ledoit-wolf", identity: Tensor | None = None) -> tuple[Tensor, float]:
        """(1 − ρ) C + ρ μ I, (d, d) float64, and the intensity ρ that `shrinkage` leads to.

        Where products with a weight W are summed, C is W's product with the covariance, W C Wᵀ, and `identity` W Wᵀ.
        """
        estimate = self.covariance()
        target = self.mean_square * (torch.eye(len(estimate)) if identity is None else identity).to(estimate)
        intensity = self._intensity(estimate, target, shrinkage)
        return estimate.mul_(1 - intensity).add_(target, alpha=intensity), intensity

    def _intensity(self, estimate: Tensor, target: Tensor, shrinkage: Shrinkage) -> float:
        """ρ in [0, 1] after Ledoit and Wolf (2004) over rows, Chen et al. (2010, "oas") over tokens, or as given."""
        if not isinstance(shrinkage, str):
            return shrinkage
        squared_norm = float(estimate.square().sum())
        distance = float((estimate - target).square().sum())
        if self.tokens == 0 or distance <= EQUAL * squared_norm:
            return 1.0
        if shrinkage == "oas":
            noise = (squared_norm + float(estimate.trace()) ** 2) / (self.tokens + 1)
        else:
            noise = (self.spread / self.probed - squared_norm) / self.rows  # E‖C − Σ‖²
        return min(max(noise / distance, 0.0), 1.0)


@dataclass(frozen=True)
class LayerStatistics:
    """What calibration learned about one layer (m, n)."""

    inputs: Moments  # of x, one object for all layers that read the same tensor; or of W x, for m < n
    gradients: Moments  # of g; or of Wᵀ g, for m > n

    @classmethod
    def zeros(cls, shapes: Sequence[tuple[int, int]], device: torch.device, whole: bool) -> list[LayerStatistics]:
        """Of layers of shapes (m, n) that read the same tensor; `whole`: of x and g themselves in any case."""
        n = shapes[0][1]
        shared = Moments.zeros(n, device) if _shares_inputs(shapes, whole) else None
        return [
            cls(
                shared or Moments.zeros(n, device, products=m),
                Moments.zeros(m, device, products=None if whole else min(m, n)),
            )
            for m, n in shapes
        ]


def _shares_inputs(shapes: Sequence[tuple[int, int]], whole: bool) -> bool:
    """Whether the moments of what these layers read are needed themselves."""
    return whole or any(m >= n for m, n in shapes)


def find_readers(model: nn.Module, layers: Mapping[str, nn.Module], batch: Mapping[str, Any]) -> list[list[str]]:
    """Group the layers that read the very same tensors (q, k, v; gate, up) and so share one C_x.

    One forward pass over `batch` finds out, on any device, the meta device included. A layer that does not fire is a
    group of its own.
    """
    read: dict[str, list[tuple[Tensor, int]]] = {name: [] for name in layers}  # tensors kept, so that ids stay unique
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: read[name].append((args[0], args[0]._version)))
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            model(**without_labels(batch))
    finally:
        for handle in handles:
            handle.remove()
    groups: dict[Any, list[str]] = {}
    for name, tensors in read.items():
        groups.setdefault(tuple((id(tensor), version) for tensor, version in tensors) or name, []).append(name)
    return list(groups.values())


def covariance_bytes(shapes: Sequence[tuple[int, int]], whole: bool = False) -> int:
    """Bytes that the statistics of layers of shapes (m, n) take which read the same tensor."""
    inputs = shapes[0][1] ** 2 if _shares_inputs(shapes, whole) else sum(m * m for m, _ in shapes)
    return 4 * (inputs + sum((m if whole else min(m, n)) ** 2 for m, n in shapes))


def plan_passes(groups: list[list[str]], bytes_of: Mapping[str, int], bound: int | None) -> list[list[list[str]]]:
    """Split groups into passes over the calibration data whose covariances stay within `bound` bytes.

    `bytes_of` is keyed by each group's first layer. A group that is larger than the bound has a pass of its own.
    """
    passes: list[list[list[str]]] = []
    room = 0
    for group in groups:
        needed = bytes_of[group[0]]
        if not passes or (bound is not None and needed > room):
            passes.append([])
            room = bound or 0
        passes[-1].append(group)
        room -= needed
    return passes


def calibrate(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    groups: Sequence[Sequence[str]],
    batches: Iterable[Mapping[str, Any]],
    sampled_labels: bool = False,
    processes: Processes = ALONE,
    whole: bool = False,
) -> dict[str, LayerStatistics]:
    """Run forward and backward over `batches` and return the statistics of every layer named in `groups`.

    Of several processes each brings its share of the batches. `whole` keeps the moments of the wider side of a layer
    too, which a union of subspaces by thresholds needs. Raises NonFiniteLoss naming the batch or the layer.
    """
    recorder = _Recorder(layers, groups, processes, whole)
    observe(model, recorder.layers, batches, recorder, sampled_labels)
    recorder.gather()
    for name, seen in recorder.statistics.items():
        if not (torch.isfinite(seen.inputs.total).all() and torch.isfinite(seen.gradients.total).all()):
            raise NonFiniteLoss(f"What layer '{name}' reads, or its gradient, is not finite on the calibration rows.")
    return recorder.statistics


class _Recorder:
    """Feeds the statistics of every layer, those that layers share once."""

    def __init__(
        self, layers: Mapping[str, nn.Module], groups: Sequence[Sequence[str]], processes: Processes, whole: bool
    ) -> None:
        self.layers = {name: layers[name] for group in groups for name in group}
        self.statistics: dict[str, LayerStatistics] = {}
        for group in groups:
            device = next(layers[group[0]].parameters()).device
            found = LayerStatistics.zeros([matrix_shape(layers[name]) for name in group], device, whole)
            self.statistics |= zip(group, found, strict=True)
        leaders = {group[0] for group in groups}
        self._reading = {name for name, seen in self.statistics.items() if name in leaders or seen.inputs.of_products}
        self._processes = processes
        self._mask: Tensor | None = None
        self._probe = True

    def begin(self, number: int, batch: Mapping[str, Any]) -> None:
        mask = batch.get("attention_mask")
        self._mask = None if mask is None else mask.bool()
        before = self._processes.rank + number * self._processes.count  # batches, over all processes
        self._probe = before * len(batch["labels"]) < PROBED_ROWS

    def see(self, name: str, x: Tensor, y: Tensor) -> Callable[[Tensor], None]:
        layer: Any = self.layers[name]
        seen, mask, probe = self.statistics[name], self._mask, self._probe
        if name in self._reading:
            products = y.detach() if seen.inputs.of_products else None
            if products is not None and layer.bias is not None:
                products = products - layer.bias
            seen.inputs.add(x, mask, probe, products)

        def add_gradient(gradient: Tensor) -> None:
            products = gradient @ matrix_of(layer).to(gradient.dtype) if seen.gradients.of_products else None
            seen.gradients.add(gradient, mask, probe, products)

        return add_gradient

    def gather(self) -> None:
        for name, statistics in self.statistics.items():
            if name in self._reading:
                statistics.inputs.gather(self._processes)
            statistics.gradients.gather(self._processes)
