"""The least that a handler which creates jobs has to do, to compare the API with: `python -m benchmarks.bare`.

The body is validated by the API's own model; the job and its first event are inserted in one transaction by the API's
own engine. No key is asked for, nothing is looked up, planned, limited, logged or sent.
"""

from __future__ import annotations

from fastapi import FastAPI
from sqlalchemy.orm import Session

from api.__main__ import serve
from jobs.clock import new_id, now
from jobs.database import make_engine
from jobs.keys import DEFAULT_TENANT
from jobs.schemas import JobCreate
from jobs.settings import Settings
from jobs.states import Status
from jobs.tables import Event, Job


def application() -> FastAPI:
    app, engine = FastAPI(), make_engine(Settings().database_url)

    @app.post("/v1/jobs", status_code=201)
    def create_job(request: JobCreate) -> dict[str, str]:
        job = Job(
            id=new_id("job"),
            tenant=DEFAULT_TENANT,
            key_id="key",
            status=Status.QUEUED,
            device_class="cpu",
            task="text-classification",
            model=request.model,
            dataset_id=request.dataset,
            config=request.model_dump(mode="json"),
            outputs=list(request.outputs),
            user_metadata=request.metadata,
            last_event=1,
            created_at=now(),
        )
        with Session(engine, expire_on_commit=False) as session, session.begin():
            session.add(job)
            session.flush()
            event = Event(job_id=job.id, number=1, type="status", data={"status": job.status}, created_at=now())
            session.add(event)
        return {"id": job.id}

    return app


if __name__ == "__main__":
    serve("benchmarks.bare:application", Settings())
