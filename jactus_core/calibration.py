"""Step 1, calibrate: what a layer reads (C_x) and what the loss says about what it writes (C_g).

For a layer y = W x + b and the loss summed over the batch, over N real (unpadded) token positions:

    C_x = 1/N Σ x xᵀ   (n, n)        C_g = 1/N Σ g gᵀ   (m, m),   g = ∂loss/∂y

Both are kept as unnormalised sums plus a count and divided once at the end, then shrunk towards a scaled identity
(Ledoit and Wolf, 2004), which needs only one more scalar, Σ‖x‖⁴.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jactus_core.errors import NonFiniteLoss


@dataclass
class Moments:
    """Streaming uncentred second moment of vectors of one size d."""

    total: Tensor  # (d, d) Σ x xᵀ
    quartic: float = 0.0  # Σ ‖x‖⁴
    count: int = 0  # vectors seen

    @classmethod
    def zeros(cls, size: int, device: torch.device | str = "cpu") -> Moments:
        return cls(torch.zeros(size, size, device=device))

    def add(self, rows: Tensor) -> None:
        """Add the rows of a (N, d) tensor."""
        rows = rows.detach().to(self.total.dtype)
        self.total.addmm_(rows.T, rows)
        self.quartic += float(rows.double().square().sum(1).square().sum())
        self.count += rows.shape[0]

    def covariance(self) -> Tensor:
        """The plain estimate Σ x xᵀ / N, (d, d) float64."""
        return self.total.double() / max(self.count, 1)

    def shrinkage(self) -> float:
        """Ledoit-Wolf intensity in [0, 1]: how far to move the estimate towards tr(C)/d · I."""
        if self.count == 0:
            return 1.0
        estimate = self.covariance()
        size = estimate.shape[0]
        squared_norm = float(estimate.square().sum())
        spread = squared_norm - float(estimate.trace()) ** 2 / size  # ‖C − μI‖²
        noise = (self.quartic / self.count - squared_norm) / self.count  # E‖C − Σ‖²
        return min(max(noise / spread, 0.0), 1.0) if spread > 0 else 1.0

    def shrunk(self) -> Tensor:
        """(1 − ρ) C + ρ tr(C)/d · I with the Ledoit-Wolf ρ, (d, d) float64."""
        estimate, intensity = self.covariance(), self.shrinkage()
        shrunk = estimate * (1 - intensity)
        shrunk.diagonal().add_(intensity * float(estimate.trace()) / estimate.shape[0])
        return shrunk


@dataclass(frozen=True)
class LayerStatistics:
    """What calibration learned about one layer; layers that read the same tensor share one `inputs` object."""

    inputs: Moments  # (n, n)
    gradients: Moments  # (m, m)


def calibrate(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, LayerStatistics]:
    """Run forward and backward over `batches` and return the statistics of every layer in `layers`.

    Each batch is a set of keyword arguments for `model`, with `labels` and, for padded text, `attention_mask`. Only
    activations get gradients, so the cost is a forward and the activation half of a backward pass. Raises
    NonFiniteLoss naming the batch.
    """
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    recorder = _Recorder(layers)
    with recorder.attached():
        for number, batch in enumerate(batches, start=1):
            recorder.begin(batch.get("attention_mask"))
            loss = model(**batch).loss
            if not torch.isfinite(loss):
                raise NonFiniteLoss(f"The loss of calibration batch {number} is {loss.item()}.")
            (loss * len(batch["labels"])).backward()
    return recorder.statistics()


class _Recorder:
    """Hooks that feed one Moments per distinct input tensor and one per layer output."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = layers
        self.inputs: dict[str, Moments] = {}  # by the first layer that reads the tensor
        self.gradients: dict[str, Moments] = {}
        self.reads: dict[str, str] = {}  # layer -> the layer under which its input is recorded
        self._mask: Tensor | None = None
        self._seen: dict[int, tuple[Tensor, str]] = {}  # the tensor is kept so that its id stays unique

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = [
            layer.register_forward_hook(lambda _, args, output, name=name: self._record(name, args[0], output))
            for name, layer in self.layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._seen.clear()

    def begin(self, mask: Tensor | None) -> None:
        self._mask = None if mask is None else mask.bool()
        self._seen.clear()

    def _record(self, name: str, x: Tensor, y: Tensor) -> None:
        if not y.requires_grad:
            y.requires_grad_()  # the first layers: no parameter requires a gradient, so start the graph here
        leader = self.reads.get(name)
        if leader is None:
            leader = self.reads[name] = self._seen.setdefault(id(x), (x, name))[1]
        if leader == name:
            self.inputs.setdefault(name, Moments.zeros(x.shape[-1], x.device)).add(self._real_positions(x))
        moments = self.gradients.setdefault(name, Moments.zeros(y.shape[-1], y.device))
        y.register_hook(lambda gradient: moments.add(self._real_positions(gradient)))

    def _real_positions(self, tensor: Tensor) -> Tensor:
        """(batch, tokens, d) without padding, or any other shape as it is, flattened to (N, d)."""
        if self._mask is not None and tensor.dim() == 3 and tensor.shape[:2] == self._mask.shape:
            return tensor[self._mask]
        return tensor.reshape(-1, tensor.shape[-1])

    def statistics(self) -> dict[str, LayerStatistics]:
        return {name: LayerStatistics(self.inputs[self.reads[name]], self.gradients[name]) for name in self.reads}
