"""`jactus secrets`: hub tokens that a service keeps sealed."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.commands import Service, remote
from cli.output import ago, table

app = typer.Typer(help="Hub tokens that a service keeps sealed and uses by name.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="What jobs call it.")]


@app.command(name="set")
@remote
def set_(at: Service, name: Name) -> None:
    """Store a token, asked for without an echo, or read from standard input; it is never shown again."""
    stored = at.client.store_secret(name, typer.prompt("Value", hide_input=True, err=True))
    at.tell(stored, lambda: f"Stored as '{name}'; name it by --secret {name}.")


@app.command(name="list")
@remote
def list_(at: Service) -> None:
    """The names of what is stored."""
    found = list(at.client.secrets())
    at.tell(found, lambda: table(("secret", "stored"), ((s.name, ago(s.created_at)) for s in found)))


@app.command()
@remote
def delete(at: Service, name: Name) -> None:
    """Forget a token."""
    at.client.delete_secret(name)
    at.tell({"deleted": name}, lambda: f"'{name}' is deleted.")
