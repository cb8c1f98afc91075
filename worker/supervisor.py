"""One job, from claim to publication. The supervisor never touches a GPU: the pipeline runs in a child process."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from jactus_core.config import CompressionConfig
from jactus_core.errors import JactusError
from jactus_core.progress import StageClock
from jobs import leases, leftovers, logs, models, secrets, tracing
from jobs.errors import StorageUnavailable, Told
from jobs.services import Services
from jobs.tables import Artifact, Dataset, Job
from worker.bounds import Bounds, DiskFull, is_disk_full
from worker.child import Nursery
from worker.drain import Drain, Draining
from worker.folders import LOG, MODELS, OUTPUT, take, tidy
from worker.hold import Hold, Stopped
from worker.mirror import Mirror, restore_stages
from worker.pipeline import Specification
from worker.publishing import publish

logger = logging.getLogger(__name__)

WORKER = f"{socket.gethostname()}:{os.getpid()}"
PROGRESS_SECONDS = 1.0
"""Pause between two progress events of one stage; a new stage and the end of one are told at once."""


class RunCrashed(JactusError):
    """The child ended without a word."""

    code = "run_crashed"


class WorkerFailed(JactusError):
    """A mistake of the supervisor's own."""

    code = "internal_error"


class OutOfMemory(RunCrashed):
    """The kernel killed the child, as it does when memory runs out."""

    code = "out_of_memory"


def run_job(services: Services, job_id: str, drain: Drain | None = None, nursery: Nursery | None = None) -> None:
    """Claim the job and see it through; does nothing when the job is not there to be claimed."""
    settings = services.settings
    nursery = nursery or Nursery(settings)
    with services.database.writing() as session:
        lease = leases.claim(session, job_id, settings.lease_seconds, WORKER, settings.max_running_jobs)
        job = session.get(Job, job_id)
    if job is not None:
        services.dispatcher.send(job.device_class)  # there is room for another message
    if lease is None or job is None:
        logger.info("job %s does not wait any more, or is held back by a limit", job_id)
        return
    about: dict[str, Any] = {"job_id": job_id, "attempt": lease.attempt}
    with logs.bound(**about), tracing.span("attempt", job.trace, "consumer", **about) as span:
        logger.info("the attempt begins")
        hold = Hold(services, lease, drain or Drain(settings.drain_seconds))
        with hold, tracing.stages(job_id=job_id) as enter_stage:
            outcome = _Run(services, hold, nursery, enter_stage).see_through()
        logger.info("the attempt ends: %s", outcome)
        span.set_attribute("jactus.outcome", outcome)
    tidy(services)


@dataclass(frozen=True)
class _Inputs:
    """What the database knows of a job."""

    job: Job
    dataset: Dataset
    model: models.Named
    dataset_token: str | None = field(repr=False)


@dataclass
class _Run:
    services: Services
    hold: Hold
    nursery: Nursery
    enter_stage: Callable[[str], None]
    clock: StageClock = field(default_factory=StageClock)
    stage: str = ""
    told_at: float = 0.0

    def see_through(self) -> leases.Outcome:
        """Run, publish, and write the outcome; every write is guarded by the lease."""
        try:
            return self._conclude(*self._end_of_work())
        except Stopped:
            return self._let_go()

    def _end_of_work(self) -> tuple[leases.Outcome, Callable[[Session], bool]]:
        """What came of it, and how to write it down."""
        lease, seconds = self.hold.lease, self.clock.seconds
        try:
            result, files = self._work()
        except Stopped:
            raise
        except Draining:
            return "released", lambda session: leases.release(session, lease, seconds)
        except (StorageUnavailable, RunCrashed) as error:
            attempts, reason = self.services.settings.max_attempts, error
            return "failed", lambda session: leases.give_back(session, lease, reason, attempts, seconds)
        except Exception as error:  # noqa: BLE001 - whatever it is ends the attempt, and is logged
            failure = error if isinstance(error, JactusError) else _unforeseen(error)
            return "failed", lambda session: leases.fail(session, lease, failure, seconds)
        self.clock.enter(None)
        result["seconds"] = seconds
        return "succeeded", lambda session: leases.succeed(session, lease, result, files)

    def _conclude(self, outcome: leases.Outcome, end: Callable[[Session], bool]) -> leases.Outcome:
        if not self.hold.write(end):
            raise Stopped
        return outcome

    def _let_go(self) -> leases.Outcome:
        """The job was cancelled, or it is in other hands: what this attempt published goes."""
        lease = self.hold.lease

        def let_go(session: Session) -> bool:
            leftovers.leave(session, leases.files_of(lease.job_id, lease.attempt))
            return leases.confirm_stopped(session, lease, self.clock.seconds)

        return "cancelled" if self.hold.write(let_go, though_stopped=True) else "lost"

    def _work(self) -> tuple[dict[str, Any], list[Artifact]]:
        self._tell("loading", 0.0, "starting")
        inputs = self.hold.write(self._look_up)
        job = inputs.job
        settings = self.services.settings
        folder = take(settings.work_dir, self.hold.lease)
        assert job.started_at is not None
        bounds = Bounds(folder, settings.min_free_disk_bytes, job.started_at, job.max_runtime)
        if not (folder / OUTPUT).exists():
            bounds.check_room(job.needed_disk_bytes or 0)
            if settings.copies_stages and self.hold.lease.attempt > 1:
                restore_stages(self.services, self.hold, folder)
        specification = self._specify(inputs, folder)
        with Mirror(self.services, self.hold, folder):
            result = self._compress(specification, bounds)
        hidden = [] if "checkpoint" in job.outputs else [point["folder"] for point in result["budgets"]]
        return result, publish(self.services, self.hold, folder / OUTPUT, hidden, partial(self._tell, "publishing"))

    def _look_up(self, session: Session) -> _Inputs:
        job = session.get_one(Job, self.hold.lease.job_id)
        settings = self.services.settings
        named = models.look_up(session, settings, job.tenant, job.model, job.revision, job.secret)
        dataset = session.get_one(Dataset, job.dataset_id)
        token = dataset.secret and secrets.reveal(session, settings, job.tenant, dataset.secret)
        return _Inputs(job, dataset, named, token)

    def _specify(self, inputs: _Inputs, folder: Path) -> Specification:
        """Fetch the dataset and an uploaded model, and write down what to do."""
        job, dataset, named = inputs.job, inputs.dataset, inputs.model
        root = self.services.settings.model_root
        if named.uploaded is not None:
            root = folder / MODELS
            models.fetch(self.services.storage, named.uploaded, root / job.model, self.hold.check)
        file = dataset.name
        if dataset.storage_key is not None:
            file = str(folder / f"data.{dataset.format}")
            self.services.storage.fetch_file(dataset.storage_key, Path(file), self.hold.check)
        return Specification.model_validate(
            {
                "model": job.model,
                "revision": job.revision,
                "model_root": root,
                "token": named.token,
                "dataset_token": inputs.dataset_token,
                "dataset": file,
                "format": dataset.format,
                "dataset_revision": dataset.revision,
                "columns": dataset.columns,
                "output": folder / OUTPUT,
                "log": folder / LOG,
                "config": CompressionConfig.model_validate(job.config),
                "outputs": job.outputs,
                "quality_bound": job.quality_bound,
            }
        )

    def _compress(self, specification: Specification, bounds: Bounds) -> dict[str, Any]:
        log = specification.log
        log.touch()
        with self.nursery.take() as child:
            for message in child.run(specification):
                self.hold.check()
                bounds.check()
                if message is None:
                    continue
                if message.type == "progress":
                    self._tell(message.data["stage"], message.data["fraction"], message.data["note"])
                elif message.type == "error":
                    logger.error("the run failed:\n%s", _tail(log))
                    raise Told(**message.data)
                else:
                    return message.data
            code = child.exit_code()
        logger.error("the run crashed:\n%s", _tail(log))
        raise _crash(code)

    def _tell(self, stage: str, fraction: float, note: str) -> None:
        if stage != self.stage:
            self.clock.enter(stage)
            self.enter_stage(stage)
        if stage == self.stage and fraction < 1 and time.monotonic() - self.told_at < PROGRESS_SECONDS:
            return
        self.stage, self.told_at = stage, time.monotonic()
        lease = self.hold.lease
        self.hold.write(lambda session: leases.record_progress(session, lease, stage, fraction, note))


def _crash(code: int) -> RunCrashed:
    if code >= 0:
        return RunCrashed(f"The run ended without a result (exit code {code}); its log has the last words.")
    name = signal.Signals(-code).name
    if -code == signal.SIGKILL:
        return OutOfMemory(f"The run was killed by {name}; most likely the machine ran out of memory.")
    return RunCrashed(f"The run was killed by {name}; its log has the last words.")


def _unforeseen(error: Exception) -> JactusError:
    """A mistake of ours, or of the machine's."""
    logger.error("the attempt failed", exc_info=error)
    if is_disk_full(error):
        return DiskFull()
    return WorkerFailed(f"The worker failed: {type(error).__name__}; its log has the details.")


def _tail(log: Path, characters: int = 4000) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-characters:]
