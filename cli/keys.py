"""`jactus keys`: API keys, made and revoked right in the service's database."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated

import typer
from pydantic import ValidationError
from sqlalchemy.orm import Session

import migrations
from cli.embedded import SECRETS, with_secrets
from jactus_core.errors import JactusError
from jobs import keys, schemas
from jobs.database import Database
from jobs.settings import Settings
from jobs.tables import ApiKey

PAGE = 100

app = typer.Typer(
    help="Make, list and revoke API keys. Works on the database of the settings (JACTUS_DATABASE_URL, or the one in "
    "JACTUS_DATA_DIR), whether or not the service runs.",
    no_args_is_help=True,
)

Limit = Annotated[int | None, typer.Option(min=0, help="0: no limit. Default: as the settings say.")]


@app.command()
def create(
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
    request = _checked({"tenant": tenant, "name": name, "scopes": scope or ["read", "write"], "limits": limits})
    settings = _settings()
    with _writing(settings) as session:
        made, key = keys.make_key(session, request, settings.secret_key.get_secret_value())
    typer.echo(f"ID       {made.id}")
    typer.echo(f"API key  {key}")
    typer.echo("\nKeep the key; it is not shown again.")


@app.command(name="list")
def list_() -> None:
    """Every key of every tenant, newest first; the keys themselves are not stored."""
    after: str | None = None
    with _writing(_settings()) as session:
        while found := keys.list_keys(session, after, PAGE)[:PAGE]:
            after = found[-1].id
            for key in found:
                typer.echo(_line(key))


@app.command()
def revoke(id: Annotated[str, typer.Argument(help="The key's id, as `jactus keys list` shows it.")]) -> None:
    """The key opens nothing any more; a running service follows within 5 seconds."""
    with _writing(_settings()) as session:
        keys.revoke_key(session, id)
    typer.echo(f"{id} opens nothing any more.")


def _line(key: ApiKey) -> str:
    state = "revoked" if key.revoked_at else "valid  "
    used = f"used {key.last_used_at:%Y-%m-%d}" if key.last_used_at else "never used"
    return f"{key.id}  {state}  …{key.hint}  {key.tenant}  {','.join(key.scopes)}  {used}  {key.name}".rstrip()


def _checked(given: Mapping[str, object]) -> schemas.KeyCreate:
    try:
        return schemas.KeyCreate.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        raise typer.BadParameter(f"{'.'.join(map(str, first['loc']))}: {first['msg']}.") from error


def _settings() -> Settings:
    """With the secret of the service, which a database elsewhere does not bring along."""
    settings = Settings()
    own_database = settings.database_url.startswith("sqlite")
    if own_database:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if settings.secret_key.get_secret_value():
        return settings
    if not own_database and not (settings.data_dir / SECRETS).exists():
        typer.secho("Set JACTUS_SECRET_KEY to that of the service; keys are hashed under it.", fg="red", err=True)
        raise typer.Exit(1)
    return with_secrets(settings)


@contextmanager
def _writing(settings: Settings) -> Iterator[Session]:
    migrations.upgrade(settings.database_url)
    database = Database(settings.database_url)
    try:
        with database.writing() as session:
            yield session
    except JactusError as error:
        typer.secho(error.message, fg="red", err=True)
        raise typer.Exit(1) from error
    finally:
        database.close()
