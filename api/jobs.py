"""Create, watch and cancel jobs."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.dependencies import After, Here, Limit, Tenant, page_of
from api.errors import responses
from jactus_core.models import find_model
from jobs import datasets, schemas, store
from jobs.errors import BrokerUnavailable
from jobs.states import Status
from jobs.sweep import send

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=responses(401, 422))


@router.post("", status_code=201)
def create_job(tenant: Tenant, services: Here, request: schemas.JobCreate, response: Response) -> schemas.Job:
    """Queue a compression. The model and the dataset are looked up before the job is accepted."""
    with services.database.reading() as session:
        datasets.find_dataset(session, tenant, request.dataset, "dataset")
    model = find_model(request.model, request.revision, services.settings.model_root)
    with services.database.writing() as session:
        job = store.create(session, tenant, request, model.revision)
        session.refresh(job)
        described = store.describe(job)
    try:
        send(services.database, services.queue, job.id)
    except BrokerUnavailable:
        logger.warning("job %s waits for the broker to come back", job.id)
    response.headers["Location"] = f"/v1/jobs/{job.id}"
    return described


@router.get("")
def list_jobs(
    tenant: Tenant,
    services: Here,
    after: After = None,
    limit: Limit = 20,
    status: Annotated[Status | None, Query(description="Only jobs in this state.")] = None,
) -> schemas.Page[schemas.Job]:
    """Your jobs, newest first."""
    with services.database.reading() as session:
        found = store.list_jobs(session, tenant, status, after, limit)
        return page_of(found, limit, store.describe)


@router.get("/{job_id}", responses=responses(404))
def get_job(tenant: Tenant, services: Here, job_id: str) -> schemas.Job:
    """One job with its progress, its error or its result."""
    with services.database.reading() as session:
        return store.describe(store.find(session, tenant, job_id))


@router.post("/{job_id}/cancel", responses=responses(404, 409))
def cancel_job(tenant: Tenant, services: Here, job_id: str) -> schemas.Job:
    """Stop a waiting or running job; asking again changes nothing."""
    with services.database.writing() as session:
        job = store.find(session, tenant, job_id)
        store.request_cancel(session, job)
        session.refresh(job)
        return store.describe(job)
