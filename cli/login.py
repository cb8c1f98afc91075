"""`jactus login` and `jactus logout`: which service is meant when none is named."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import profile
from cli.client import Client
from cli.commands import local
from cli.output import Output, facts


@local
def login(
    out: Output,
    url: Annotated[str, typer.Argument(help="Where the service is, such as https://jactus.example.com.")],
    api_key: Annotated[
        str | None,
        typer.Option(envvar=profile.KEY_VARIABLE, show_envvar=True, help="Default: asked for without an echo."),
    ] = None,
) -> None:
    """Remember a service and your key for it, once the service has accepted the key."""
    found = profile.Profile(url, api_key or typer.prompt("API key", hide_input=True, err=True))
    with Client(found.url, found.api_key) as client:
        own = client.own_key()
    file = profile.save(found)
    out.tell(
        own,
        lambda: facts(
            (
                ("service", url),
                ("tenant", own.tenant),
                ("key", f"…{own.hint} {own.name}".rstrip()),
                ("may", ", ".join(own.scopes)),
                ("kept in", file),
            )
        ),
    )


@local
def logout(out: Output) -> None:
    """Forget the service and the key that `jactus login` saved."""
    existed = profile.forget()
    out.tell({"forgotten": existed}, lambda: "Forgotten." if existed else "There was nothing to forget.")
