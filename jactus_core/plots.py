"""Pictures of a result: the frontier, and where the ranks went."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from jactus_core.evaluation import Size

if TYPE_CHECKING:
    from jactus_core.compression import CompressionResult

INK, GRID, ACCENT = "#1f2933", "#d9e2ec", "#0b6e4f"


def plot_frontier(result: CompressionResult, file: Path) -> None:
    """The task's metric against the kept share of the whole model; the dense model as a dashed line."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    kept = [_share(point.size, result.dense_size) for point in result.budgets]
    values = [point.metrics[result.metric] for point in result.budgets]
    axes.axhline(result.dense_metrics[result.metric], color=INK, linestyle="--", linewidth=1, label="dense")
    axes.plot(kept, values, marker="o", color=ACCENT, label="compressed and tuned")
    for x, y, point in zip(kept, values, result.budgets, strict=True):
        axes.annotate(f"{point.budget:g}", (x, y), textcoords="offset points", xytext=(0, 7), ha="center")
    axes.margins(0.08, 0.12)
    axes.set_xlabel("parameters kept of the whole model")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_ylabel(result.metric.replace("_", " "))
    axes.grid(color=GRID)
    axes.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _share(size: Size, dense: Size) -> float:
    return size.parameters / dense.parameters


def plot_ranks(shares: Mapping[float, Mapping[str, float]], file: Path) -> None:
    """A row per kind of layer, a column per block: the kept share of each layer, one panel per budget.

    `shares[budget][layer]` is the kept share of the layer's parameters, 1 where it stays dense.
    """
    layers = list(next(iter(shares.values())))
    kinds = list(dict.fromkeys(_kind(name) for name in layers))
    columns: dict[str, list[str]] = {kind: [name for name in layers if _kind(name) == kind] for kind in kinds}
    width = max(len(names) for names in columns.values())
    size = (max(4.0, 0.32 * width + 2.6), (0.3 * len(kinds) + 0.9) * len(shares) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(shares), 1, squeeze=False)[:, 0]
    image: Any = None
    for panel, (budget, kept) in zip(panels, shares.items(), strict=True):
        table = [[kept[name] for name in names] + [float("nan")] * (width - len(names)) for names in columns.values()]
        image = panel.imshow(table, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        panel.set_yticks(range(len(kinds)), kinds, fontsize=8)
        panel.set_title(f"budget {budget:g}", loc="left", fontsize=10)
    panels[-1].set_xlabel("block")
    figure.colorbar(image, ax=list(panels), label="share of the layer kept (1: dense)")
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def _kind(name: str) -> str:
    """The layer's name without the number of its block: `encoder.layer.3.output.dense` → `output.dense`."""
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[numbers[-1] + 1 :] if numbers else parts[-2:])
