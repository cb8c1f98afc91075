"""`jactus jobs`, `jactus estimate` and `jactus download`: compressions that a service runs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from cli.client import Job
from cli.commands import FAILED, INTERRUPTED, NO_SUCCESS, Mistake, Service, pairs, remote, values
from cli.datasets import Columns, Task, bring
from cli.output import ago, duration, facts, size, table, wrong
from cli.watching import StageBars, frontier, transfer
from jobs import schemas
from jobs.states import FINAL, Status

app = typer.Typer(help="Compressions that a service runs.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job, as `jactus jobs list` shows it.")]
Model = Annotated[str, typer.Argument(help="Hub id, id of an uploaded model, or a folder under the host's model root.")]
Dataset = Annotated[str, typer.Argument(help="Id of a dataset, or a file that is uploaded first.")]
Budgets = Annotated[
    list[float],
    typer.Option("--budget", "-b", help="Fraction of the linear layers to keep, such as 0.8; may be repeated."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="NAME=VALUE", help="A hyperparameter, such as epochs=3; may be repeated."),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the model on the hub.")]
Secret = Annotated[str | None, typer.Option(help="Name of a stored hub token, for gated models.")]
Scope = Annotated[str, typer.Option(help="What a budget is a fraction of: compressible (linear layers), or model.")]
Outputs = Annotated[
    list[str] | None, typer.Option("--output", help="checkpoint, dense or onnx; may be repeated. Default: checkpoint.")
]


@app.command()
@remote
def create(
    at: Service,
    model: Model,
    dataset: Dataset,
    budgets: Budgets,
    task: Task = None,
    columns: Columns = None,
    settings: Set = None,
    revision: Revision = None,
    secret: Secret = None,
    budget_scope: Scope = "compressible",
    quality_bound: Annotated[
        float | None, typer.Option(help="How much of the dense metric may be lost; marks the smallest such budget.")
    ] = None,
    outputs: Outputs = None,
    seed: Annotated[int, typer.Option(help="Seeds the split, the sampling and the finetuning.")] = 0,
    max_runtime: Annotated[int | None, typer.Option(help="Seconds that a run may take. Default: any.")] = None,
    retention_days: Annotated[int | None, typer.Option(help="Days until it is deleted. Default: never.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A note of yours; may be repeated.")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="Your name for this request; sent again, it makes no second job.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and show progress until it is done.")] = False,
) -> None:
    """Queue a compression.

    jactus jobs create sentence-transformers/all-MiniLM-L6-v2 reviews.csv --budget 0.8 --budget 0.5 --watch
    """
    request = _request(
        at,
        model,
        dataset,
        task,
        columns,
        budgets=tuple(budgets),
        hyperparameters=values(settings, "--set"),
        revision=revision,
        secret=secret,
        budget_scope=budget_scope,
        quality_bound=quality_bound,
        outputs=tuple(outputs or ["checkpoint"]),
        seed=seed,
        max_runtime=max_runtime,
        retention_days=retention_days,
        metadata=pairs(metadata, "--metadata"),
    )
    job = at.client.create_job(request, idempotency_key)
    if watch:
        at.remark(f"Job {job.id}.")
        _watch(at, job)
    else:
        at.tell(job, lambda: [f"Job {job.id} is {job.status.value}.", f"Watch it: jactus jobs watch {job.id}"])


@app.command(name="list")
@remote
def list_(
    at: Service,
    status: Annotated[Status | None, typer.Option(help="Only jobs of this status.")] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs for this model.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Only jobs with this note; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 20,
) -> None:
    """Your jobs, newest first."""
    found = list(islice(at.client.jobs(status, model, pairs(metadata, "--metadata")), limit))
    at.tell(
        found,
        lambda: table(
            ("job", "status", "model", "budgets", "created"),
            (
                (j.id, f"{j.status.value} {_stage(j)}".rstrip(), j.model, _budgets(j.budgets), ago(j.created_at))
                for j in found
            ),
        ),
    )


@app.command()
@remote
def show(at: Service, id: Id) -> None:
    """One job: where it is, why it failed, or what it gave."""
    job = at.client.job(id)
    at.tell(job, lambda: _described(job))


@app.command()
@remote
def watch(at: Service, id: Id) -> None:
    """Show progress until the job is done; Ctrl-C leaves the job alone. With --json: events, one per line."""
    _watch(at, at.client.job(id))


@app.command()
@remote
def log(
    at: Service, id: Id, attempt: Annotated[int | None, typer.Option(help="Default: the last one.")] = None
) -> None:
    """What the job's run has written."""
    number = attempt or at.client.job(id).attempt
    if not number:
        raise Mistake(f"Job {id} has not run yet.")
    text = at.client.log(id, number)
    at.tell({"attempt": number, "log": text}, lambda: text.rstrip("\n"))


@app.command()
@remote
def cancel(at: Service, id: Id) -> None:
    """Stop a job that waits or runs."""
    _tell_status(at, at.client.cancel(id))


@app.command()
@remote
def retry(at: Service, id: Id) -> None:
    """Run a failed or cancelled job again, from its last finished stage."""
    _tell_status(at, at.client.retry(id))


@app.command()
@remote
def delete(at: Service, id: Id) -> None:
    """Delete a finished job and its files."""
    at.client.delete(id)
    at.tell({"deleted": id}, lambda: f"Job {id} is deleted.")


@remote
def estimate(
    at: Service,
    model: Model,
    dataset: Dataset,
    budgets: Budgets,
    task: Task = None,
    columns: Columns = None,
    settings: Set = None,
    revision: Revision = None,
    secret: Secret = None,
    budget_scope: Scope = "compressible",
    outputs: Outputs = None,
) -> None:
    """What a job would take and give; nothing is queued.

    jactus estimate sentence-transformers/all-MiniLM-L6-v2 reviews.csv --budget 0.8 --budget 0.5
    """
    request = _request(
        at,
        model,
        dataset,
        task,
        columns,
        budgets=tuple(budgets),
        hyperparameters=values(settings, "--set"),
        revision=revision,
        secret=secret,
        budget_scope=budget_scope,
        outputs=tuple(outputs or ["checkpoint"]),
    )
    found = at.client.estimate(request)
    at.tell(found, lambda: _estimated(found))
    if not found.feasible:
        raise typer.Exit(FAILED)


@remote
def download(
    at: Service,
    id: Id,
    folder: Annotated[Path, typer.Argument(help="Where the files go. What is there and right is not fetched again.")],
) -> None:
    """Fetch a job's checkpoints, a few files at a time; called again, it goes on where it stopped.

    Every file's SHA-256 is compared with what the service announced.
    """
    artifacts = at.client.artifacts(id)
    if not artifacts:
        raise Mistake(f"Job {id} has no files; it is {at.client.job(id).status.value}.")
    with transfer(at.people, "downloading", sum(artifact.bytes for artifact in artifacts)) as advance:
        files = at.client.download(id, folder, advance)
    at.tell(
        {"folder": str(folder), "files": [str(file) for file in files]},
        lambda: f"{len(files)} files in {folder}; every SHA-256 is right.",
    )


def _request(at: Service, model: str, dataset: str, task: Task, columns: Columns, **fields: Any) -> schemas.JobCreate:
    """Checked before anything is uploaded."""
    request = schemas.JobCreate.model_validate({"model": model, "dataset": "-", **fields})
    if Path(dataset).is_file():
        return request.model_copy(update={"dataset": bring(at, Path(dataset), task, columns).id})
    if columns:
        raise Mistake("--column is for a file; a dataset's columns were named when it arrived.")
    return request.model_copy(update={"dataset": dataset, "task": task})


def _watch(at: Service, job: Job) -> None:
    """Until it is final; ends the command with another code than 0 unless it succeeded."""
    try:
        if at.as_json:
            for event in job.events():
                typer.echo(event.model_dump_json())
        else:
            with StageBars(at.people, len(job.budgets)) as bars:
                for event in bars.follow(job.events()):
                    at.remark(f"  {event.data.status.value}" + (f": {e.message}" if (e := event.data.error) else ""))
    except KeyboardInterrupt:
        at.remark(f"The job goes on. Come back: jactus jobs watch {job.id}; stop it: jactus jobs cancel {job.id}")
        raise typer.Exit(INTERRUPTED) from None
    job = job.refresh()
    if not at.as_json:
        at.tell(job, lambda: _outcome(job))
    if job.status != Status.SUCCEEDED:
        raise typer.Exit(NO_SUCCESS)


def _tell_status(at: Service, job: schemas.Job) -> None:
    at.tell(job, lambda: f"Job {job.id} is {job.status.value}.")


def _described(job: schemas.Job) -> Iterator[RenderableType]:
    waiting = f", number {job.queue_position} in the queue" if job.queue_position else ""
    revision = f" at {job.revision[:12]}" if job.revision else ""
    yield facts(
        (
            ("job", job.id),
            ("status", job.status.value + waiting),
            ("stage", _stage(job) or None),
            ("done by", job.estimated_finish_at and f"{job.estimated_finish_at:%Y-%m-%d %H:%M} UTC"),
            ("model", job.model + revision),
            ("dataset", job.dataset),
            ("task", job.task),
            ("budgets", _budgets(job.budgets)),
            ("attempt", job.attempt or None),
            ("created", ago(job.created_at)),
            ("finished", job.finished_at and ago(job.finished_at)),
            *((f"note {name}", value) for name, value in job.metadata.items()),
        )
    )
    yield from _outcome(job)


def _outcome(job: schemas.Job) -> Iterator[RenderableType]:
    if job.result is not None:
        yield frontier(job.result)
        yield f"Fetch it: jactus download {job.id} FOLDER"
    elif job.error is not None:
        yield wrong(f"{job.error.message} ({job.error.code})")
    if job.status in FINAL - {Status.SUCCEEDED}:
        yield f"What it wrote: jactus jobs log {job.id}; again: jactus jobs retry {job.id}"


def _estimated(found: schemas.JobEstimate) -> Iterator[RenderableType]:
    low, high = duration(found.seconds.low), duration(found.seconds.high)
    yield facts(
        (
            ("time", f"{low} to {high}, roughly"),
            ("memory", f"{size(max(found.peak_memory_bytes.values()))} at its peak"),
            ("disk", size(found.needed_disk_bytes)),
            ("worker", found.device_class or "none is large enough"),
            ("layers", found.layers),
            ("smallest budget", f"{found.smallest_budget:.4g}"),
        )
    )
    yield table(
        ("budget", "parameters", "size", "ranks by shape"),
        (
            (
                f"{b.budget:g}",
                f"{b.parameters / 1e6:.2f} M",
                size(b.bytes),
                _ranks(b.ranks) if b.feasible else "too small",
            )
            for b in found.budgets
        ),
        right=("parameters", "size"),
    )
    for problem in found.problems:
        yield wrong(f"{problem.message} ({problem.code})")


def _ranks(ranks: dict[str, int | None]) -> str:
    return ", ".join(f"{shape}: {'dense' if rank is None else rank}" for shape, rank in ranks.items())


def _stage(job: schemas.Job) -> str:
    return f"{job.stage} {job.progress:.0%}" if job.stage and job.status not in FINAL else ""


def _budgets(budgets: tuple[float, ...]) -> str:
    return ", ".join(f"{budget:g}" for budget in budgets)
