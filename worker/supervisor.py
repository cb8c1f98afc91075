"""One job, from claim to publication. The supervisor never touches a GPU: the pipeline runs in a child process."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jactus_core.config import CompressionConfig
from jactus_core.errors import JactusError
from jactus_core.files import sha256_of
from jactus_core.progress import StageClock
from jobs import store
from jobs.services import Services
from jobs.tables import Artifact, Dataset, Job
from worker.child import Child
from worker.lease import Heartbeat
from worker.pipeline import Specification

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PROGRESS_SECONDS = 1.0
"""Pause between two progress events of one stage; a new stage and the end of one are told at once."""


class RunFailed(JactusError):
    """The child said why it failed."""

    def __init__(self, code: str, message: str, param: str | None) -> None:
        super().__init__(message, param)
        self.code = code


class RunCrashed(JactusError):
    """The child ended without a word."""

    code = "run_crashed"


class Stopped(Exception):
    """The job was cancelled or its lease is lost."""


def run_job(services: Services, job_id: str) -> None:
    """Claim the job and see it through; does nothing when the job is not there to be claimed."""
    with services.database.writing() as session:
        lease = store.claim(session, job_id, services.settings.lease_seconds)
    if lease is None:
        logger.info("job %s is not waiting any more", job_id)
        return
    logger.info("job %s: attempt %d", job_id, lease.attempt)
    folder = services.settings.work_dir / f"{job_id}.{lease.attempt}"  # its own: a stale attempt may still be here
    folder.mkdir(parents=True)
    try:
        with Heartbeat(services, lease) as heartbeat:
            _Run(services, lease, heartbeat, folder).see_through()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class _Run:
    services: Services
    lease: store.Lease
    heartbeat: Heartbeat
    folder: Path
    clock: StageClock = field(default_factory=StageClock)
    stage: str = ""
    told_at: float = 0.0

    def see_through(self) -> None:
        """Run, publish, and write the outcome; every write is guarded by the lease."""
        prefix = self._prefix(self.lease.attempt)
        try:
            self._clear_after_dead_attempts()
            result = self._compress()
            files = self._publish(prefix)
            self.clock.enter(None)
            result["seconds"] = self.clock.seconds
            with self.services.database.writing() as session:
                if store.succeed(session, self.lease, result, files):
                    return
            raise Stopped
        except Stopped:
            self.services.storage.delete_under(prefix)
            with self.services.database.writing() as session:
                store.confirm_stopped(session, self.lease)
        except JactusError as error:
            self._fail(prefix, error)
        except Exception as error:
            logger.exception("job %s failed", self.lease.job_id)
            self._fail(prefix, RunCrashed(f"The worker failed: {type(error).__name__}; its log has the details."))

    def _prefix(self, attempt: int) -> str:
        return f"jobs/{self.lease.job_id}/attempt-{attempt}"

    def _clear_after_dead_attempts(self) -> None:
        for left in self.folder.parent.glob(f"{self.lease.job_id}.*"):
            if left != self.folder:
                shutil.rmtree(left, ignore_errors=True)
        for attempt in range(1, self.lease.attempt):
            self.services.storage.delete_under(self._prefix(attempt))

    def _compress(self) -> dict[str, Any]:
        self._tell("loading", 0.0, "starting")
        log = self.folder / "run.log"
        with Child(self._prepare(), log, self.services.settings.cancel_grace_seconds) as child:
            for message in child.messages():
                if self.heartbeat.must_stop:
                    raise Stopped
                if message is None:
                    continue
                if message.type == "progress":
                    self._tell(message.data["stage"], message.data["fraction"], message.data["note"])
                elif message.type == "error":
                    logger.error("job %s: the run failed:\n%s", self.lease.job_id, _tail(log))
                    raise RunFailed(**message.data)
                else:
                    return message.data
            code = child.exit_code()
        logger.error("job %s: the run crashed:\n%s", self.lease.job_id, _tail(log))
        raise RunCrashed(_crash_sentence(code))

    def _prepare(self) -> Specification:
        """Fetch the dataset and write down what to do."""
        with self.services.database.reading() as session:
            job = session.get_one(Job, self.lease.job_id)
            dataset = session.get_one(Dataset, job.dataset_id)
        file = self.folder / f"data.{dataset.format}"
        self.services.storage.fetch_file(dataset.storage_key, file)
        return Specification.model_validate(
            {
                "model": job.model,
                "revision": job.revision,
                "model_root": self.services.settings.model_root,
                "dataset": file,
                "format": dataset.format,
                "text_column": dataset.text_column,
                "label_column": dataset.label_column,
                "output": self.folder / "output",
                "config": CompressionConfig.model_validate(job.config),
            }
        )

    def _publish(self, prefix: str) -> list[Artifact]:
        """Upload every file of the output, and a manifest of their hashes last."""
        output = self.folder / "output"
        paths = sorted(path for path in output.rglob("*") if path.is_file())
        files = []
        for number, path in enumerate(paths):
            self._tell("publishing", number / len(paths), path.name)
            files.append(self._upload(path, path.relative_to(output).as_posix(), prefix))
        manifest = output / MANIFEST
        manifest.write_text(json.dumps({file.path: {"bytes": file.bytes, "sha256": file.sha256} for file in files}))
        files.append(self._upload(manifest, MANIFEST, prefix))
        self._tell("publishing", 1.0, f"{len(files)} files")
        return files

    def _upload(self, path: Path, name: str, prefix: str) -> Artifact:
        if self.heartbeat.must_stop:
            raise Stopped
        key = f"{prefix}/{name}"
        self.services.storage.put_file(key, path)
        size = path.stat().st_size
        return Artifact(job_id=self.lease.job_id, path=name, bytes=size, sha256=sha256_of(path), storage_key=key)

    def _tell(self, stage: str, fraction: float, note: str) -> None:
        if stage != self.stage:
            self.clock.enter(stage)
        if stage == self.stage and fraction < 1 and time.monotonic() - self.told_at < PROGRESS_SECONDS:
            return
        self.stage, self.told_at = stage, time.monotonic()
        with self.services.database.writing() as session:
            store.record_progress(session, self.lease, stage, fraction, note)

    def _fail(self, prefix: str, error: JactusError) -> None:
        self.services.storage.delete_under(prefix)
        with self.services.database.writing() as session:
            if not store.fail(session, self.lease, error):
                store.confirm_stopped(session, self.lease)


def _crash_sentence(code: int) -> str:
    if code >= 0:
        return f"The run ended without a result (exit code {code}); the worker's log has its last words."
    name = signal.Signals(-code).name
    hint = " Most likely the machine ran out of memory." if -code == signal.SIGKILL else ""
    return f"The run was killed by {name}.{hint}"


def _tail(log: Path, characters: int = 4000) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-characters:]
