"""`jactus compress`, `inspect`, `export` and `evaluate`: the method on this machine, without a service."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from cli.commands import Mistake, local, pairs, require, values
from cli.datasets import Columns, Task
from cli.jobs import Budgets
from cli.output import Output, facts, size, table
from cli.watching import StageBars, bar, frontier
from jobs import schemas

if TYPE_CHECKING:
    from jactus_core import CompressionResult

Folder = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A checkpoint, such as small/budget-0.8.")]
Data = Annotated[str, typer.Argument(help="CSV, JSON lines, Parquet, a folder or zip of images, or a hub id.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps. auto: a GPU if there is one.")]


class Form(StrEnum):
    DENSE = "dense"
    ONNX = "onnx"


@local
def compress(
    out: Output,
    model: Annotated[str, typer.Argument(help="Hub id, or a folder.")],
    data: Data,
    budgets: Budgets,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the checkpoints go.")] = Path("compressed"),
    task: Task = None,
    columns: Columns = None,
    eval_data: Annotated[str | None, typer.Option(help="Rows to evaluate on. Default: a split, or held out.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", metavar="NAME=VALUE", help="A setting, such as epochs=3; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seeds the split, the sampling and the finetuning.")] = 0,
    device: Device = "auto",
) -> None:
    """Compress a model and tune it for your data, here; one checkpoint per budget.

    Killed, it goes on where it stopped when it is called again.

    jactus compress sentence-transformers/all-MiniLM-L6-v2 reviews.csv --budget 0.8 --budget 0.5
    """
    require("method")
    from jactus_core import CompressionConfig
    from jactus_core import compress as run

    given: dict[str, Any] = {"budgets": tuple(budgets), "seed": seed, "device": device, **values(settings, "--set")}
    config = CompressionConfig.model_validate(given | ({"task": task} if task else {}))
    quiet()
    with StageBars(out.people, len(config.budgets)) as bars:
        result = run(
            model,
            data,
            output,
            config,
            eval_data=eval_data,
            columns=pairs(columns, "--column") or None,
            report=bars.update,
        )
    out.tell(result.as_dict(), lambda: _compressed(result, output))


def _compressed(result: CompressionResult, output: Path) -> Iterator[RenderableType]:
    yield frontier(schemas.JobResult.model_validate(result.as_dict()))
    yield f"Checkpoints: {output}; pictures: {output / 'frontier.svg'}, {output / 'ranks.svg'}"


@local
def inspect(out: Output, folder: Folder) -> None:
    """What a checkpoint is: how it was made, what it weighs and scores, and the rank of every layer."""
    require("method")
    from jactus_core.scoring import read_report

    report = read_report(folder)
    out.tell(report, lambda: _inspected(report))


def _inspected(report: dict[str, Any]) -> Iterator[RenderableType]:
    before, after = report["dense"], report["compressed"]
    kept = after["size"]["compressible_parameters"] / before["size"]["compressible_parameters"]
    scores = ((name, f"{value:.4g}, dense {before['metrics'][name]:.4g}") for name, value in after["metrics"].items())
    yield facts(
        (
            ("model", report["model"]["name"]),
            ("revision", report["model"]["revision"]),
            ("task", report["config"]["task"]),
            ("parameters", f"{after['size']['parameters']:,} of {before['size']['parameters']:,}"),
            ("linear layers", f"{kept:.1%} kept"),
            ("size", f"{size(after['size']['bytes'])} of {size(before['size']['bytes'])}"),
            *scores,
            ("trained on", f"{report['dataset']['rows']:,} rows"),
            ("made with", ", ".join(f"{name} {version}" for name, version in report["versions"].items())),
        )
    )
    yield table(
        ("layer", "shape", "rank", "energy kept"),
        (
            (name, " x ".join(map(str, layer["shape"])), layer["rank"] or "dense", f"{layer['kept_energy']:.1%}")
            for name, layer in report["layers"].items()
        ),
        right=("rank", "energy kept"),
    )


@local
def export(
    out: Output,
    folder: Folder,
    output: Annotated[Path, typer.Argument(help="A new folder.")],
    form: Annotated[
        Form, typer.Option(help="dense: loads anywhere, saves no memory; onnx: for ONNX Runtime.")
    ] = Form.DENSE,
) -> None:
    """Write a checkpoint in another form."""
    require("method")
    from jactus_core import export as run

    if output.exists() and any(output.iterdir()):
        raise Mistake(f"{output} is not empty; name a new folder.")
    quiet()
    made = run(folder, output, form.value)
    files = sorted(file for file in made.rglob("*") if file.is_file())
    out.tell(
        {"folder": str(made), "files": [str(file) for file in files]},
        lambda: f"{made}: {size(sum(file.stat().st_size for file in files))} in {len(files)} files",
    )


@local
def evaluate(
    out: Output,
    folder: Folder,
    data: Data,
    columns: Columns = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 32,
    device: Device = "auto",
) -> None:
    """Score a checkpoint on rows that it has not seen: all rows of DATA, or its evaluation split."""
    require("method")
    from jactus_core import score

    quiet()
    with bar(out.people, "scoring") as tell:
        metrics = score(
            folder, data, columns=pairs(columns, "--column"), batch_size=batch_size, device=device, report=tell
        )
    out.tell(metrics, lambda: facts((name, f"{value:.4f}") for name, value in metrics.items()))


def quiet() -> None:
    """Keep other libraries' remarks and bars out of ours."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("torch").setLevel(logging.ERROR)
