"""Create, watch, cancel, retry and delete jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import AwareDatetime, BeforeValidator

from api.dependencies import After, Here, Limit, Reader, Writer, page_of
from api.errors import responses
from api.idempotency import Idempotent, Once
from jobs import datasets, limits, models, schemas, store, tracing
from jobs.admission import admit
from jobs.errors import InvalidParameter
from jobs.keys import Caller
from jobs.planning import Plan
from jobs.services import Services
from jobs.states import FINAL, Status
from jobs.tables import Dataset

PLANNED_SECONDS = 60
router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=responses(401, 403, 422))


def _not_a_number(given: str) -> str:
    """Seconds since 1970 would do for pydantic."""
    if ":" not in given:
        raise ValueError("must be a date and a time with its zone, such as 2026-01-31T12:00:00Z")
    return given


Moment = Annotated[AwareDatetime, BeforeValidator(_not_a_number)]
Filter = Annotated[str | None, Query(max_length=200)]


@router.post("", status_code=201, response_model=schemas.Job, responses=responses(404, 409, 413, 429, 503))
def create_job(caller: Writer, services: Here, request: schemas.JobCreate, once: Idempotent) -> Response:
    """Queue a compression. What cannot be done is refused now: the same checks as `POST /v1/jobs/estimate`."""
    with once:
        return once.begin(request) or _create(caller, services, request, once)


@router.post("/estimate", responses=responses(404, 409, 413, 503))
def estimate_job(caller: Reader, services: Here, request: schemas.JobCreate) -> schemas.JobEstimate:
    """What the job would take and give, from the model's configuration alone. Nothing is created or downloaded."""
    plan, dataset = _plan(caller, services, request)
    return services.planner.describe(plan, request, dataset)


@router.get("")
def list_jobs(
    caller: Reader,
    services: Here,
    after: After = None,
    limit: Limit = 20,
    status: Annotated[Status | None, Query(description="Only jobs in this state.")] = None,
    model: Annotated[Filter, Query(description="Only jobs of this model.")] = None,
    metadata: Annotated[
        list[Annotated[str, Query(max_length=600)]],
        Query(max_length=16, description="Only jobs with this metadata, as key:value; may be repeated."),
    ] = [],  # noqa: B006 - FastAPI copies it
    created_after: Annotated[Moment | None, Query(description="Only jobs made after this moment.")] = None,
    created_before: Annotated[Moment | None, Query(description="Only jobs made before this moment.")] = None,
) -> schemas.Page[schemas.Job]:
    """Your jobs, newest first; filters are combined."""
    with services.database.reading() as session:
        found = store.list_jobs(
            session,
            caller.tenant,
            after,
            limit,
            status=status,
            model=model,
            metadata=[_key_and_value(given) for given in metadata],
            created_after=created_after,
            created_before=created_before,
        )
        return page_of(found, limit, store.describe)


@router.get("/{job_id}", responses=responses(404))
def get_job(caller: Reader, services: Here, job_id: str) -> schemas.Job:
    """One job with its progress, its place in the queue, its error or its result."""
    with services.database.reading() as session:
        return store.describe_fully(session, store.find(session, caller.tenant, job_id))


@router.post("/{job_id}/cancel", responses=responses(404, 409))
def cancel_job(caller: Writer, services: Here, job_id: str) -> schemas.Job:
    """Stop a waiting or running job; asking again changes nothing."""
    with services.database.writing() as session:
        job = store.find(session, caller.tenant, job_id)
        store.request_cancel(session, job)
        session.refresh(job)
        return store.describe_fully(session, job)


@router.post("/{job_id}/retry", responses=responses(404, 409, 429))
def retry_job(caller: Writer, services: Here, job_id: str) -> schemas.Job:
    """Run a failed or cancelled job again, from the beginning; asking again changes nothing."""
    with services.database.writing() as session:
        job = store.find(session, caller.tenant, job_id)
        datasets.find_dataset(session, caller.tenant, job.dataset_id, keep=True)
        models.look_up(session, services.settings, caller.tenant, job.model, secret=job.secret, keep=True)
        if job.status in FINAL:
            limits.check_new_job(session, caller, services.settings)
        store.retry(session, job)
        session.refresh(job)
        described = store.describe_fully(session, job)
    services.dispatcher.send(job.device_class)
    return described


@router.delete("/{job_id}", status_code=204, responses=responses(404, 409))
def delete_job(caller: Writer, services: Here, job_id: str) -> None:
    """Delete a finished job with its events and files."""
    with services.database.writing() as session:
        store.delete(session, store.find(session, caller.tenant, job_id))


@router.get("/{job_id}/attempts", responses=responses(404))
def list_attempts(caller: Reader, services: Here, job_id: str) -> schemas.Page[schemas.Attempt]:
    """Every run of the job, the first one first."""
    with services.database.reading() as session:
        store.find(session, caller.tenant, job_id)
        found = [schemas.Attempt.model_validate(attempt) for attempt in store.attempts(session, job_id)]
    return schemas.Page(data=found, has_more=False)


def _create(caller: Caller, services: Services, request: schemas.JobCreate, once: Once) -> Response:
    known = caller.tenant, request.dataset
    plan, dataset = _plan(caller, services, request, services.planner.datasets.recall(known))
    services.planner.datasets.keep(known, dataset, PLANNED_SECONDS)
    device = plan.require_possible()
    with services.database.writing() as session:
        admission = admit(session, caller, services.settings, request.dataset, device)
        models.look_up(session, services.settings, caller.tenant, request.model, keep=True)
        job = store.create(
            session,
            caller,
            request,
            dataset,
            revision=plan.revision,
            device_class=device,
            needed_disk_bytes=plan.needed_disk_bytes,
            trace=tracing.current_traceparent(),
            is_watched=admission.is_watched,
        )
        described = store.describe(job)
        described.queue_position = admission.queue_position
        once.keep(session, described)
    services.dispatcher.send(job.device_class)
    headers = {"Location": f"/v1/jobs/{job.id}"}
    return Response(described.model_dump_json(), 201, headers, "application/json")


def _plan(
    caller: Caller, services: Services, request: schemas.JobCreate, dataset: Dataset | None = None
) -> tuple[Plan, Dataset]:
    settings, tenant = services.settings, caller.tenant
    with services.database.reading() as session:
        dataset = dataset or datasets.find_dataset(session, tenant, request.dataset, "dataset")
        _check_task(request, dataset)
        named = models.look_up(session, settings, tenant, request.model, request.revision, request.secret)
    return services.planner.plan(named, request, dataset), dataset


def _check_task(request: schemas.JobCreate, dataset: Dataset) -> None:
    if request.task not in (None, dataset.task):
        raise InvalidParameter(f"The dataset was checked for {dataset.task}, not for {request.task}.", "task")


def _key_and_value(given: str) -> tuple[str, str]:
    key, separator, value = given.partition(":")
    if not separator or not schemas.METADATA_KEY.fullmatch(key):
        raise InvalidParameter(
            f"'{given}' is not of the form key:value, with a key of letters, digits, '_', '.' and '-'.", "metadata"
        )
    return key, value
