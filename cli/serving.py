"""`jactus serve`: the embedded service on a terminal."""

from __future__ import annotations

import signal
import threading

import typer

from cli import profile
from cli.embedded import EmbeddedService, StartError
from jobs import logs
from jobs.settings import Settings


def serve(port: int | None) -> None:
    """Until SIGINT or SIGTERM; raises typer.Exit when it cannot start."""
    settings = Settings() if port is None else Settings(port=port)
    logs.set_up(settings)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with EmbeddedService(settings) as service:
            profile.save(profile.Profile(service.url, service.api_key), service.settings.data_dir)
            _introduce(service)
            stop.wait()
            profile.forget(service.settings.data_dir)
            typer.echo("\nStopping.")
    except StartError as error:
        typer.secho(str(error), fg=typer.colors.RED, err=True)
        raise typer.Exit(1) from error


def _introduce(service: EmbeddedService) -> None:
    typer.echo(f"URL      {service.url}")
    typer.echo(f"API key  {service.api_key}")
    typer.echo(f"Try      curl -H 'Authorization: Bearer {service.api_key}' {service.url}/v1/jobs")
    typer.echo("Or, in this folder:  jactus jobs list")
    typer.echo(f"\nDocumentation at {service.url}/docs; data in {service.settings.data_dir}; stop with Ctrl-C.")
