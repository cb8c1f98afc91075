"""`jactus models`: what jobs compress, beside the models of the hub."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cli.commands import FAILED, Service, remote
from cli.datasets import Task
from cli.output import ago, facts, size, table, wrong
from cli.watching import transfer
from jobs import schemas

app = typer.Typer(help="Models that a service keeps, or could use.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="MODEL", help="Id of an uploaded model.")]


@app.command()
@remote
def upload(
    at: Service,
    path: Annotated[Path, typer.Argument(exists=True, help="Folder of a model with safetensors weights, or its zip.")],
    resume: Annotated[str | None, typer.Option(metavar="UPLOAD", help="Go on with an interrupted upload.")] = None,
) -> None:
    """Send a model of your own; its weights are never executed."""
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(shutil.make_archive(f"{scratch}/{path.name}", "zip", path)) if path.is_dir() else path
        with transfer(at.people, "uploading", archive.stat().st_size) as advance:
            model = at.client.upload_model(archive, upload=resume, advance=advance)
    at.tell(model, lambda: _described(model))


@app.command(name="list")
@remote
def list_(at: Service) -> None:
    """Your uploaded models, and the folders that the host offers."""
    uploaded, here = list(at.client.models()), at.client.local_models()
    rows = [(model.id, model.name, model.model_type, size(model.bytes), ago(model.created_at)) for model in uploaded]
    rows += [(model.name, "", model.model_type, size(model.bytes), "on the host") for model in here]
    at.tell([*uploaded, *here], lambda: table(("model", "name", "type", "size", "created"), rows, right=("size",)))


@app.command()
@remote
def show(at: Service, id: Id) -> None:
    """One uploaded model with its files."""
    model = at.client.model(id)
    at.tell(model, lambda: _described(model))


@app.command()
@remote
def delete(at: Service, id: Id) -> None:
    """Delete an uploaded model."""
    at.client.delete_model(id)
    at.tell({"deleted": id}, lambda: f"Model {id} is deleted.")


@app.command()
@remote
def check(
    at: Service,
    model: Annotated[str, typer.Argument(help="Hub id, id of an uploaded model, or a folder under the model root.")],
    task: Task = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    secret: Annotated[str | None, typer.Option(help="Name of a stored hub token, for gated models.")] = None,
) -> None:
    """Whether the service could compress a model, before anything is downloaded."""
    request = schemas.PreflightRequest.model_validate({"model": model, "task": task, "revision": revision})
    found = at.client.preflight(model, request.task, revision, secret)
    at.tell(found, lambda: [_checked(found), *(wrong(f"{p.message} ({p.code})") for p in found.problems)])
    if found.problems:
        raise typer.Exit(FAILED)


def _checked(found: schemas.Preflight) -> Table:
    return facts(
        (
            ("type", found.model_type),
            ("can be compressed for", ", ".join(found.tasks) or None),
            ("parameters", found.parameters and f"{found.parameters:,}"),
            ("size", found.bytes and size(found.bytes)),
            ("revision", found.revision),
            ("gated", "yes" if found.gated else None),
            ("free disk of the host", size(found.free_disk_bytes)),
        )
    )


def _described(model: schemas.Model) -> Table:
    return facts(
        (
            ("model", model.id),
            ("name", model.name),
            ("type", model.model_type),
            ("parameters", model.parameters and f"{model.parameters:,}"),
            ("size", size(model.bytes)),
            ("files", ", ".join(model.files)),
            ("created", ago(model.created_at)),
        )
    )
