"""A job on a terminal: a bar for each stage and the time that is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType

from rich import box
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TransferSpeedColumn
from rich.table import Table

from cli.output import duration
from jactus_core.progress import STAGES, Stage
from jobs import pace, schemas
from jobs.states import Status

COLUMNS = (TextColumn("  {task.description:<12}"), BarColumn(16), TaskProgressColumn())


class StageBars:
    """Use as a context manager; where there is no terminal, each stage is one line when it begins."""

    def __init__(self, console: Console, budgets: int) -> None:
        self._console = console
        self._budgets = budgets
        self._progress = Progress(
            *COLUMNS, TextColumn("{task.fields[note]:.60}", style="dim", markup=False), console=console
        )
        self._bars = {
            stage: self._progress.add_task(stage, total=1.0, start=False, note="", visible=stage != "publishing")
            for stage in STAGES
        }
        self._began = datetime.now(UTC)
        self._stage: Stage | None = None

    def __enter__(self) -> StageBars:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def update(self, stage: Stage, fraction: float, note: str, at: datetime | None = None) -> None:
        """Where it was `at` that time; now by default."""
        if stage != self._stage and not self._console.is_terminal:
            self._console.print(f"  {stage}")
        self._stage = stage
        done = pace.finished_fraction(stage, fraction, self._budgets)
        spent = ((at or datetime.now(UTC)) - self._began).total_seconds()
        left = f"about {duration(spent * (1 - done) / done)} left · " if pace.ENOUGH <= done < 1 else ""
        bar = self._bars[stage]
        self._progress.start_task(bar)
        self._progress.update(bar, completed=fraction, note=left + note, visible=True)
        for other, its_bar in self._bars.items():
            if other != stage:
                self._progress.update(its_bar, note="")

    def follow(self, events: Iterable[schemas.Event]) -> Iterator[schemas.StatusEvent]:
        """Show progress, and give on what else happens."""
        for event in events:
            if event.type == "progress":
                self.update(event.data.stage, event.data.fraction, event.data.note, event.created_at)
                continue
            if event.data.status == Status.RUNNING:
                self._began = event.created_at
            yield event


@contextmanager
def transfer(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar for bytes; tell it those that are there."""
    with Progress(*COLUMNS, DownloadColumn(), TransferSpeedColumn(), console=console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def bar(console: Console, what: str) -> Iterator[Callable[[float], None]]:
    """One bar; tell it the finished fraction."""
    with Progress(*COLUMNS, console=console) as progress:
        task = progress.add_task(what, total=1.0)
        yield lambda done: progress.update(task, completed=done)


def frontier(result: schemas.JobResult) -> Table:
    """What each budget gave, beside the dense model."""
    drawn = Table(box=box.SIMPLE_HEAD, caption="On held-out rows; of the dense model, only a head is tuned.")
    drawn.add_column("")
    for name in ("linear layers", "kept", "whole model", "kept", result.metric):
        drawn.add_column(name, justify="right", no_wrap=True)
    dense = result.dense_size
    drawn.add_row("dense", *_size_cells(dense, dense), _score(result.metric, result.dense_metrics))
    for point in result.budgets:
        chosen = " ←" if point.budget == result.chosen_budget else ""
        score = _score(result.metric, point.metrics)
        drawn.add_row(f"budget {point.budget:g}{chosen}", *_size_cells(point.size, dense), score)
    return drawn


def _score(metric: str, metrics: dict[str, float]) -> str:
    return f"{metrics[metric]:.2f}" if metric == "perplexity" else f"{metrics[metric]:.1%}"


def _size_cells(size: schemas.ModelSize, dense: schemas.ModelSize) -> tuple[str, ...]:
    layers = _weight(size.compressible_parameters, size.compressible_bytes, dense.compressible_parameters)
    return *layers, *_weight(size.parameters, size.bytes, dense.parameters)


def _weight(parameters: int, size: int, before: int) -> tuple[str, str]:
    return f"{parameters / 1e6:.2f} M, {size / 1e6:.1f} MB", f"{parameters / before:.0%}"
