"""The `jactus` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cli import datasets, doctor, jobs, keys, local, login, models, secrets
from cli.commands import ending, require
from jactus_core import __version__

HERE, THERE, OPERATING = "On this machine", "At a service", "Running a service"
EPILOG = (
    "Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 no answer from the service; 4 the job ended without "
    "success; 130 interrupted."
)

app = typer.Typer(
    help="Compress transformers and tune them for a task in one go: here, or at a service.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    HERE: (local.compress, local.inspect, local.evaluate, local.export),
    THERE: (login.login, login.logout, jobs.estimate, jobs.download),
    OPERATING: (doctor.doctor,),
}
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
for name, group in {"jobs": jobs, "datasets": datasets, "models": models, "secrets": secrets}.items():
    app.add_typer(group.app, name=name, rich_help_panel=THERE)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jactus {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """What holds before any command."""


Port = Annotated[int | None, typer.Option(help="Port of the API; 0 picks a free one. Default: JACTUS_PORT or 8000.")]


@app.command(rich_help_panel=OPERATING)
def serve(port: Port = None) -> None:
    """Run the whole service here, with no server installed, until Ctrl-C.

    Data, logs and secrets live in JACTUS_DATA_DIR (default: .jactus in this folder). With JACTUS_DATABASE_URL,
    JACTUS_BROKER_URL and JACTUS_STORAGE_URL set, the same command uses PostgreSQL, Redis and S3 instead. Other commands
    called in this folder find the service by themselves.
    """
    with ending(as_json=False):
        require("service")
        from cli.serving import serve as run

        run(port)


@app.command(rich_help_panel=OPERATING)
def worker() -> None:
    """Run a worker for the service of the settings, until SIGTERM; its jobs then go on elsewhere.

    Wants JACTUS_DATABASE_URL, JACTUS_BROKER_URL and JACTUS_STORAGE_URL. JACTUS_WORKER_CLASSES says which jobs it takes
    (cpu, gpu, gpu-large), JACTUS_WORKER_SLOTS how many at a time.
    """
    with ending(as_json=False):
        require("service")
        os.execv(sys.executable, [sys.executable, "-m", "worker"])  # noqa: S606 - signals go to the worker itself


app.add_typer(keys.app, name="keys", rich_help_panel=OPERATING)


@app.command(rich_help_panel=OPERATING)
def demo(
    folder: Annotated[Path | None, typer.Option(help="Where the checkpoints go. Default: data_dir/demo.")] = None,
) -> None:
    """Compress a real model on a real dataset, end to end, in a few minutes.

    Starts the service, uploads the docstrings of Python's own standard library, compresses MiniLM to 80 % and 50 % of
    its linear layers, downloads the checkpoints and tries one.
    """
    with ending(as_json=False):
        require("service")
        from cli.demo import run_demo
        from jobs.settings import Settings

        settings = Settings(port=0)
        run_demo(settings, folder or settings.data_dir / "demo")


if __name__ == "__main__":
    app()
