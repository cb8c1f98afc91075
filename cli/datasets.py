"""`jactus datasets`: what jobs learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cli.commands import Mistake, Service, pairs, remote
from cli.output import ago, facts, size, table
from cli.watching import transfer
from jactus_core.tasks import TASK_NAMES, TASKS
from jobs import schemas

app = typer.Typer(help="Datasets that a service keeps.", no_args_is_help=True)


def _known_task(given: str | None) -> str | None:
    if given is not None and given not in TASK_NAMES:
        raise typer.BadParameter(f"must be one of {', '.join(TASK_NAMES)}.")
    return given


Id = Annotated[str, typer.Argument(metavar="DATASET", help="Id of a dataset, as `jactus datasets list` shows it.")]
Task = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(TASK_NAMES)}. Default: text-classification.",
        callback=_known_task,
        autocompletion=lambda: list(TASK_NAMES),
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="ROLE=NAME", help="Where a column is named otherwise, such as text=review."),
]


@app.command()
@remote
def upload(
    at: Service,
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="CSV, JSON lines, Parquet or a zip.")],
    task: Task = None,
    columns: Columns = None,
    resume: Annotated[str | None, typer.Option(metavar="UPLOAD", help="Go on with an interrupted upload.")] = None,
) -> None:
    """Send a file, in parts if it is large; it is checked on arrival."""
    dataset = bring(at, file, task, columns, resume)
    at.tell(dataset, lambda: _described(dataset))


@app.command()
@remote
def hub(
    at: Service,
    name: Annotated[str, typer.Argument(help="Id of a dataset on the hub.")],
    task: Task = None,
    columns: Columns = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; the newest by default.")] = None,
    secret: Annotated[str | None, typer.Option(help="Name of a stored hub token, for a private dataset.")] = None,
) -> None:
    """Use a dataset of the hub, pinned to its commit of today."""
    given = {"name": name, "task": task or "text-classification", "revision": revision, "secret": secret}
    request = schemas.DatasetFromHub.model_validate({**given, "columns": pairs(columns, "--column")})
    dataset = at.client.dataset_from_hub(request)
    at.tell(dataset, lambda: _described(dataset))


@app.command(name="list")
@remote
def list_(at: Service) -> None:
    """Your datasets, newest first."""
    found = list(at.client.datasets())
    at.tell(
        found,
        lambda: table(
            ("dataset", "name", "task", "rows", "classes", "size", "created"),
            (
                (d.id, d.name, d.task, f"{d.rows:,}", len(d.classes) or "–", size(d.bytes), ago(d.created_at))
                for d in found
            ),
            right=("rows", "classes", "size"),
        ),
    )


@app.command()
@remote
def show(at: Service, id: Id) -> None:
    """One dataset: rows, columns, classes."""
    dataset = at.client.dataset(id)
    at.tell(dataset, lambda: _described(dataset))


@app.command()
@remote
def delete(at: Service, id: Id) -> None:
    """Delete a dataset; jobs that learned from it stay."""
    at.client.delete_dataset(id)
    at.tell({"deleted": id}, lambda: f"Dataset {id} is deleted.")


def bring(
    at: Service, file: Path, task: str | None, columns: list[str] | None, resume: str | None = None
) -> schemas.Dataset:
    """Upload a file under a bar; raises Mistake for a role that the task does not have."""
    wanted = TASKS[task or "text-classification"]  # type: ignore[index]  # the option is checked
    by_role = pairs(columns, "--column")
    roles = (*wanted.roles, *wanted.optional_roles)
    for role in by_role:
        if role not in roles:
            raise Mistake(f"--column {role}=…: for {wanted.name} the roles are {', '.join(roles)}.")
    with transfer(at.people, "uploading", file.stat().st_size) as advance:
        return at.client.upload_dataset(
            file,
            wanted.name,
            by_role,
            upload=resume,
            advance=advance,
        )


def _described(dataset: schemas.Dataset) -> Table:
    most = sorted(dataset.classes.items(), key=lambda pair: -pair[1])
    classes = ", ".join(f"{name} ({count:,})" for name, count in most[:8]) + (", …" if len(most) > 8 else "")
    return facts(
        (
            ("dataset", dataset.id),
            ("name", dataset.name),
            ("task", dataset.task),
            ("rows", f"{dataset.rows:,}"),
            ("set apart for evaluation", f"{dataset.eval_rows:,}" if dataset.eval_rows else "a share of each class"),
            ("columns", ", ".join(f"{role}={name}" for role, name in dataset.columns.items()) or None),
            (f"{len(most)} classes", classes or None),
            ("size", size(dataset.bytes)),
            ("created", ago(dataset.created_at)),
        )
    )
