"""Between steps 3 and 4, measure what every direction of a layer carries of the loss.

Step 3 writes W = Σ_i S_i up_i down_iᵀ. Leaving direction i out changes the loss of a row, to first order, by

    −a_i,   a_i = S_i Σ_t (up_i · g_t) (down_i · x_t)

over the row's tokens t, and its expectation, to second order, by half the mean of a_i² over rows. The Kronecker factors
have T S_i² for it, T the tokens of a row, as if x were independent of g and every token of the others. They point out
the right directions, but from one layer to the next they are wrong by factors that differ tenfold. George et al. (2018)
correct a Kronecker-factored curvature in the same way: by second moments in its own basis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from jactus_core.distributed import ALONE, Processes
from jactus_core.factorization import Factorization
from jactus_core.gradients import by_row, observe
from jactus_core.subspaces import exact


@dataclass
class Directions:
    """Of one layer (m, n): its factors, in the type of its weights, and what was measured along them."""

    up: Tensor  # (m, r)
    down: Tensor  # (r, n)
    singular: Tensor  # (r,) float32
    squares: Tensor  # (r,) float32 Σ a_i² over the rows seen
    tokens: int = 0
    held: dict[int, Tensor] = field(default_factory=dict)  # a_i (rows, r) of this batch, by how many rows it has

    @classmethod
    def of(cls, factors: Factorization, weight: Tensor) -> Directions:
        up, down = (part.to(weight) for part in (factors.up, factors.down))
        singular = factors.singular[: factors.rank].to(weight.device, torch.float32)
        return cls(up, down, singular, torch.zeros_like(singular))

    def add(self, read: Tensor, gradient: Tensor, mask: Tensor | None) -> None:
        """Of one call: what the layer read, along its directions, and the gradient of what it wrote."""
        products, real = by_row(read.float() * (gradient @ self.up).float(), mask)
        found = self.singular * (products * real.unsqueeze(-1)).sum(1)
        before = self.held.get(len(found))
        self.held[len(found)] = found if before is None else before + found
        self.tokens += int(real.sum())

    def close(self) -> None:
        """The batch is over: a layer that was called several times for a row has one a_i for all of them."""
        for found in self.held.values():
            self.squares += found.square().sum(0)
        self.held.clear()


def measure(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    factors_of: Callable[[str], Factorization],
    batches: Iterable[Mapping[str, Any]],
    sampled_labels: bool = False,
    processes: Processes = ALONE,
) -> dict[str, Tensor]:
    """Run over `batches` and return by layer the mean of a_i² per token (r,) float64, in the place of S_i².

    A layer that never fires is left out. Of several processes each brings its share of the batches.
    """
    meter = _Meter({name: Directions.of(factors_of(name), next(layer.parameters())) for name, layer in layers.items()})
    observe(model, layers, batches, meter, sampled_labels)
    meter.close()
    found = {}
    for name, seen in meter.directions.items():
        tokens = processes.sum_(torch.tensor(float(seen.tokens), device=seen.squares.device))
        squares = processes.sum_(seen.squares)
        if tokens:
            found[name] = squares.to(exact(squares.device)).double() / float(tokens)
    return found


class _Meter:
    """Shows every layer's directions what it reads and what comes back."""

    def __init__(self, directions: dict[str, Directions]) -> None:
        self.directions = directions
        self._mask: Tensor | None = None

    def begin(self, number: int, batch: Mapping[str, Any]) -> None:
        self.close()
        mask = batch.get("attention_mask")
        self._mask = None if mask is None else mask.bool()

    def see(self, name: str, x: Tensor, y: Tensor) -> Callable[[Tensor], None]:
        directions, mask = self.directions[name], self._mask
        read = functional.linear(x.detach(), directions.down)  # now, as the model may change x in place
        return lambda gradient: directions.add(read, gradient, mask)

    def close(self) -> None:
        for directions in self.directions.values():
            directions.close()
