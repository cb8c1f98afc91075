"""The `jactus` command."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from cli import keys
from cli.embedded import EmbeddedService, StartError
from jobs import logs
from jobs.settings import Settings

app = typer.Typer(
    help="Compress transformers and tune them for a task, as a service.", no_args_is_help=True, add_completion=False
)
app.add_typer(keys.app, name="keys")

Port = Annotated[int | None, typer.Option(help="Port of the API; 0 picks a free one. Default: JACTUS_PORT or 8000.")]


@app.command()
def serve(port: Port = None) -> None:
    """Run the whole service here, with no server installed, until Ctrl-C.

    Data, logs and secrets live in JACTUS_DATA_DIR (default: .jactus in this folder). With JACTUS_DATABASE_URL,
    JACTUS_BROKER_URL and JACTUS_STORAGE_URL set, the same command uses PostgreSQL, Redis and S3 instead.
    """
    settings = Settings() if port is None else Settings(port=port)
    logs.set_up(settings)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with EmbeddedService(settings) as service:
            _introduce(service)
            stop.wait()
            typer.echo("\nStopping.")
    except StartError as error:
        typer.secho(str(error), fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from error


def _introduce(service: EmbeddedService) -> None:
    typer.echo(f"URL      {service.url}")
    typer.echo(f"API key  {service.api_key}")
    typer.echo(f"Try      curl -H 'Authorization: Bearer {service.api_key}' {service.url}/v1/jobs")
    typer.echo(f"\nDocumentation at {service.url}/docs; data in {service.settings.data_dir}; stop with Ctrl-C.")


@app.command()
def demo(
    folder: Annotated[Path | None, typer.Option(help="Where the checkpoints go. Default: data_dir/demo.")] = None,
) -> None:
    """Compress a real model on a real dataset, end to end, in a few minutes.

    Starts the service, uploads the docstrings of Python's own standard library, compresses MiniLM to 80 % and 50 % of
    its linear layers, downloads the checkpoints and tries one.
    """
    from cli.demo import run_demo

    settings = Settings(port=0)
    run_demo(settings, folder or settings.data_dir / "demo")


if __name__ == "__main__":
    app()
