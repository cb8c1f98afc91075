"""`jactus keys`: API keys, made and revoked right in the service's database."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.commands import local, require
from cli.output import Output, ago, table
from jobs import schemas

app = typer.Typer(
    help="Make, list and revoke API keys. Works on the database of the settings (JACTUS_DATABASE_URL, or the one in "
    "JACTUS_DATA_DIR), whether or not the service runs.",
    no_args_is_help=True,
)

Limit = Annotated[int | None, typer.Option(min=0, help="0: no limit. Default: as the settings say.")]


@app.command()
@local
def create(
    out: Output,
    tenant: Annotated[str, typer.Option(help="Whose resources the key opens; a new name is a new tenant.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="read, write or admin; may be repeated. Default: read and write."),
    ] = None,
    max_queued_jobs: Limit = None,
    max_running_jobs: Limit = None,
    max_storage_bytes: Limit = None,
    max_requests_per_minute: Limit = None,
) -> None:
    """Make a key and show it, this once."""
    limits = {
        "max_queued_jobs": max_queued_jobs,
        "max_running_jobs": max_running_jobs,
        "max_storage_bytes": max_storage_bytes,
        "max_requests_per_minute": max_requests_per_minute,
    }
    request = schemas.KeyCreate.model_validate(
        {"tenant": tenant, "name": name, "scopes": scope or ["read", "write"], "limits": limits}
    )
    require("service")
    from cli import key_store

    made = key_store.make(request)
    out.tell(made, lambda: [f"ID       {made.id}", f"API key  {made.key}", "", "Keep the key; it is not shown again."])


@app.command(name="list")
@local
def list_(out: Output) -> None:
    """Every key of every tenant, newest first; the keys themselves are not stored."""
    require("service")
    from cli import key_store

    found = key_store.every()
    out.tell(
        found,
        lambda: table(
            ("key", "state", "ends in", "tenant", "scopes", "last used", "name"),
            (
                (
                    key.id,
                    "revoked" if key.revoked_at else "valid",
                    f"…{key.hint}",
                    key.tenant,
                    ", ".join(key.scopes),
                    ago(key.last_used_at),
                    key.name,
                )
                for key in found
            ),
        ),
    )


@app.command()
@local
def revoke(
    out: Output, id: Annotated[str, typer.Argument(help="The key's id, as `jactus keys list` shows it.")]
) -> None:
    """The key opens nothing any more; a running service follows within 5 seconds."""
    require("service")
    from cli import key_store

    key_store.revoke(id)
    out.tell({"revoked": id}, lambda: f"{id} opens nothing any more.")
