"""One job under a real supervisor with a real child process: success, failure, cancellation and every kind of death."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import update

from jobs import leases, leftovers, store
from jobs.clock import now
from jobs.errors import StorageUnavailable
from jobs.services import Services
from jobs.settings import Settings
from jobs.states import Status
from jobs.storage import Storage
from jobs.tables import Artifact, Attempt, Dataset, Job
from tests.helpers import (
    ENDLESS,
    QUICK,
    TENANT,
    add_dataset,
    add_job,
    descendants,
    get_events,
    get_job,
    get_statuses,
    is_alive,
    wait_for,
)
from worker.drain import Drain
from worker.folders import tidy
from worker.supervisor import run_job

Usage = namedtuple("Usage", "free")
PIPELINE = "worker.pipeline"
LONG = QUICK.model_copy(update={"epochs": 150})
"""Hyperparameters of a run that ends by itself, but not soon."""


@pytest.fixture
def settings(settings: Settings, tiny_bert: Path) -> Settings:
    return settings.model_copy(update={"model_root": tiny_bert.parent})


@pytest.fixture
def dataset(services: Services, tmp_path: Path) -> Dataset:
    """In the database and in storage."""
    found = add_dataset(services.database, tmp_path)
    assert found.storage_key is not None
    services.storage.put_file(found.storage_key, tmp_path / found.name)
    return found


@contextmanager
def supervising(services: Services, job: str, drain: Drain | None = None) -> Iterator[threading.Thread]:
    """Run the job in a thread, which must have ended by itself in the end."""
    thread = threading.Thread(target=run_job, args=(services, job, drain))
    thread.start()
    yield thread
    thread.join(60)
    assert not thread.is_alive()


def wait_for_child(pid: int | None = None) -> psutil.Process:
    return wait_for(lambda: descendants(PIPELINE, pid), what="the start of the child")[0]


def wait_for_stage(services: Services, job: str, stage: str) -> None:
    wait_for(lambda: get_job(services.database, job).stage == stage, 60, f"stage {stage}")


def cancel(services: Services, job: str) -> None:
    with services.database.writing() as session:
        store.request_cancel(session, store.find(session, TENANT, job))


def expire(services: Services, job: str) -> None:
    """Give the worker up for dead."""
    with services.database.writing() as session:
        session.execute(update(Job).where(Job.id == job).values(lease_expires_at=now() - timedelta(seconds=1)))
        leases.take_back_dead(session, services.settings.max_attempts)


def publish(services: Services, job: str, attempt: int, folder: Path) -> None:
    """As if an attempt had come to that."""
    (folder / "config.json").write_text("{}")
    services.storage.put_file(f"jobs/{job}/attempt-{attempt}/config.json", folder / "config.json")


def published(settings: Settings) -> list[str]:
    """Files of jobs in storage, without the logs."""
    root = settings.data_dir / "storage" / "jobs"
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    return [name for name in names if "/logs/" not in name]


def assert_nothing_is_left(services: Services) -> None:
    """No process, no scratch space; in storage the logs alone, once the sweep has been there."""
    assert descendants(PIPELINE) == []
    assert list(services.settings.work_dir.iterdir()) == []
    leftovers.clear(services.database, services.storage)
    assert published(services.settings) == []


def attempts(services: Services, job: str) -> list[Attempt]:
    with services.database.reading() as session:
        return store.attempts(session, job)


def stages_of_attempt(services: Services, job: str, number: int) -> set[str]:
    """The stages that an attempt worked on; one that was finished before is reported as finished only."""
    stages: list[set[str]] = []
    for _, type, data in get_events(services.database, job):
        if type == "status" and data["status"] == Status.RUNNING:
            stages.append(set())
        elif type == "progress" and data["fraction"] < 1:
            stages[-1].add(data["stage"])
    return stages[number - 1]


def kill_at(
    settings: Settings, services: Services, job: str, stage: str, when: Callable[[], bool] = lambda: True
) -> None:
    """Run the job under a supervisor that is killed in the stage."""
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, job], env=settings.environment())
    try:
        wait_for_stage(services, job, stage)
        wait_for(when, 60)
        child = wait_for_child(supervisor.pid)
    finally:
        supervisor.kill()
        supervisor.wait()
    wait_for(lambda: not is_alive(child), 30, "the end of the child")


def error_of(services: Services, job: str) -> dict[str, str]:
    found = get_job(services.database, job)
    assert found.status == Status.FAILED
    assert found.finished_at is not None
    assert found.error is not None
    return found.error


def test_a_success_publishes_every_file_with_its_hash_and_a_manifest(
    services: Services, dataset: Dataset, settings: Settings
) -> None:
    job = add_job(services.database, dataset)
    run_job(services, job)

    with services.database.reading() as session:
        files = {artifact.path: artifact for artifact in store.artifacts(session, job)}
        described = store.describe(session.get_one(Job, job))
    assert described.status == Status.SUCCEEDED, described.error
    assert described.result is not None
    assert [point.budget for point in described.result.budgets] == [0.8]
    assert {"calibrating", "finetuning", "publishing"} <= set(described.result.seconds)
    assert {"frontier.json", "manifest.json", "budget-0.8/config.json", "budget-0.8/model.safetensors"} <= set(files)
    assert len(published(settings)) == len(files)
    for artifact in files.values():
        content = _content(services, artifact)
        assert (artifact.bytes, artifact.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    manifest = json.loads(_content(services, files.pop("manifest.json")))
    assert manifest == {path: {"bytes": file.bytes, "sha256": file.sha256} for path, file in files.items()}
    assert list(settings.work_dir.iterdir()) == []

    stages = [data["stage"] for _, type, data in get_events(services.database, job) if type == "progress"]
    assert stages[0] == "loading"
    assert stages[-1] == "publishing"
    assert get_statuses(services.database, job) == ["queued", "running", "succeeded"]


def test_a_run_that_fails_tells_why(services: Services, dataset: Dataset, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "models" / "emptied").mkdir(parents=True)
    (tmp_path / "models" / "emptied" / "config.json").write_text('{"model_type": "bert"}')
    elsewhere = replace(services, settings=settings.model_copy(update={"model_root": tmp_path / "models"}))
    job = add_job(services.database, dataset, model="emptied")
    publish(services, job, attempt=1, folder=tmp_path)
    run_job(elsewhere, job)

    error = error_of(services, job)
    assert (error["code"], error["param"]) == ("unsafe_weights", "model")
    assert "safetensors" in error["message"]
    assert get_events(services.database, job)[-1][2] == {"status": "failed", "error": error}
    assert_nothing_is_left(services)


def test_a_dataset_that_is_gone_fails_the_job(services: Services, dataset: Dataset, settings: Settings) -> None:
    services.storage.delete_under(f"datasets/{dataset.id}")
    job = add_job(services.database, dataset)
    run_job(services, job)

    error = error_of(services, job)
    assert error["code"] == "file_not_found"
    assert error["message"].endswith(".")
    assert_nothing_is_left(services)


def test_a_child_killed_in_the_last_attempt_fails_the_job_and_names_the_signal(
    services: Services, dataset: Dataset, settings: Settings
) -> None:
    once = replace(services, settings=settings.model_copy(update={"max_attempts": 1}))
    job = add_job(services.database, dataset, hyperparameters=ENDLESS)
    with supervising(once, job):
        wait_for_child().kill()

    error = error_of(services, job)
    assert attempts(services, job)[0].error == error
    assert error["code"] == "out_of_memory"
    assert "SIGKILL" in error["message"]
    assert "memory" in error["message"]
    assert_nothing_is_left(services)


def test_a_killed_child_costs_an_attempt_while_there_are_more(services: Services, dataset: Dataset) -> None:
    job = add_job(services.database, dataset, hyperparameters=ENDLESS)
    with supervising(services, job):
        wait_for_child().kill()

    assert get_statuses(services.database, job) == ["queued", "running", "queued"]
    [attempt] = attempts(services, job)
    assert attempt.error is not None
    assert (attempt.outcome, attempt.error["code"]) == ("failed", "out_of_memory")


def test_a_cancelled_job_stops_within_seconds_and_leaves_nothing(
    services: Services, dataset: Dataset, settings: Settings, tmp_path: Path
) -> None:
    job = add_job(services.database, dataset, hyperparameters=ENDLESS)
    publish(services, job, attempt=1, folder=tmp_path)
    with supervising(services, job) as thread:
        wait_for_stage(services, job, "finetuning")
        group = wait_for_child().pid
        cancel(services, job)
        thread.join(10)
        assert not thread.is_alive()

    assert get_statuses(services.database, job) == ["queued", "running", "cancelling", "cancelled"]
    assert get_job(services.database, job).finished_at is not None
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
    assert_nothing_is_left(services)


def test_a_child_that_will_not_stop_is_killed(
    services: Services, dataset: Dataset, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deaf = tmp_path / "deaf"
    deaf.mkdir()
    (deaf / "sitecustomize.py").write_text("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n")
    monkeypatch.setenv("PYTHONPATH", str(deaf))
    hasty = replace(services, settings=settings.model_copy(update={"cancel_grace_seconds": 0.5}))
    job = add_job(services.database, dataset, hyperparameters=ENDLESS)
    with supervising(hasty, job) as thread:
        child = wait_for_child()
        wait_for(lambda: _ignores_sigterm(child), what="deafness")
        cancel(services, job)
        thread.join(10)
        assert not thread.is_alive()

    assert get_job(services.database, job).status == Status.CANCELLED
    assert not is_alive(child)
    assert_nothing_is_left(services)


def test_a_run_that_lost_its_lease_stops_and_changes_nothing(
    services: Services, dataset: Dataset, settings: Settings, tmp_path: Path
) -> None:
    job = add_job(services.database, dataset, hyperparameters=ENDLESS)
    publish(services, job, attempt=1, folder=tmp_path)
    publish(services, job, attempt=2, folder=tmp_path)
    with supervising(services, job) as stale:
        wait_for_child()
        expire(services, job)
        with services.database.writing() as session:
            assert leases.claim(session, job, 30)
        stale.join(10)
        assert not stale.is_alive()

    assert get_statuses(services.database, job) == ["queued", "running", "queued", "running"]
    leftovers.clear(services.database, services.storage)
    assert published(settings) == [f"{job}/attempt-2/config.json"]
    assert [folder.name for folder in settings.work_dir.iterdir()] == [f"{job}.1"]


def test_a_stale_attempt_leaves_the_next_one_on_the_same_machine_alone(
    services: Services, dataset: Dataset, settings: Settings
) -> None:
    job = add_job(services.database, dataset, hyperparameters=ENDLESS)
    with supervising(services, job) as stale:
        wait_for_child()
        expire(services, job)
        with supervising(services, job):
            wait_for(lambda: get_job(services.database, job).attempt == 2)
            stale.join(30)
            assert not stale.is_alive()
            assert wait_for_child().is_running()
            [folder] = settings.work_dir.iterdir()
            wait_for(lambda: (folder / "run.log").exists())
            assert get_job(services.database, job).status == Status.RUNNING
            cancel(services, job)

    assert get_statuses(services.database, job) == ["queued", "running", "queued", "running", "cancelling", "cancelled"]
    assert_nothing_is_left(services)


def test_a_job_that_does_not_wait_is_left_alone(services: Services, dataset: Dataset) -> None:
    job = add_job(services.database, dataset)
    cancel(services, job)
    run_job(services, job)
    run_job(services, "job_that_never_was")
    assert get_statuses(services.database, job) == ["queued", "cancelled"]


SUPERVISOR = """
import sys
from jobs.services import Services
from jobs.settings import Settings
from worker.drain import Drain
from worker.supervisor import run_job
run_job(Services.open(Settings()), sys.argv[1])
"""


def test_a_killed_supervisor_takes_its_child_along_and_its_leavings_are_removed_by_the_next(
    services: Services, dataset: Dataset, settings: Settings, tmp_path: Path
) -> None:
    job = add_job(services.database, dataset, hyperparameters=ENDLESS)
    publish(services, job, attempt=1, folder=tmp_path)
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, job], env=settings.environment())
    try:
        child = wait_for_child(supervisor.pid)
        wait_for(lambda: list(settings.work_dir.glob("*/run.log")))
    finally:
        supervisor.kill()
        supervisor.wait()

    wait_for(lambda: not is_alive(child), 30, "the end of the child")
    assert get_job(services.database, job).status == Status.RUNNING
    expire(services, job)
    services.storage.delete_under(f"datasets/{dataset.id}")
    run_job(services, job)
    assert_nothing_is_left(services)


def test_an_attempt_goes_on_where_the_one_before_was_killed(
    services: Services, dataset: Dataset, settings: Settings
) -> None:
    job = add_job(services.database, dataset, hyperparameters=LONG)
    kill_at(settings, services, job, "finetuning")
    expire(services, job)
    run_job(services, job)

    assert get_job(services.database, job).status == Status.SUCCEEDED
    assert stages_of_attempt(services, job, 1) >= {"calibrating", "decomposing", "finetuning"}
    assert not stages_of_attempt(services, job, 2) & {"calibrating", "decomposing"}
    assert list(settings.work_dir.iterdir()) == []


def test_another_machine_goes_on_with_the_stages_that_storage_keeps(
    services: Services, dataset: Dataset, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = settings.model_copy(update={"copy_stages": "always"})
    job = add_job(services.database, dataset, hyperparameters=LONG)
    kill_at(
        shared,
        services,
        job,
        "finetuning",
        lambda: any(name.endswith("/stages/.work/silent.json") for name in published(settings)),
    )
    expire(services, job)
    elsewhere = replace(services, settings=shared.model_copy(update={"work_dir": tmp_path / "other machine"}))
    tidy(services)
    assert [folder.name for folder in settings.work_dir.iterdir()] == [f"{job}.1"]
    run_job(elsewhere, job)
    tidy(services)
    assert list(settings.work_dir.iterdir()) == []

    assert get_job(services.database, job).status == Status.SUCCEEDED
    assert not stages_of_attempt(services, job, 2) & {"calibrating", "decomposing"}
    leftovers.clear(services.database, services.storage)
    assert {name.split("/")[1] for name in published(settings)} == {"attempt-2"}


def test_a_worker_that_is_asked_to_end_hands_its_job_back_at_no_cost(
    services: Services, dataset: Dataset, settings: Settings
) -> None:
    job = add_job(services.database, dataset, hyperparameters=ENDLESS)
    drain = Drain(grace_seconds=0)
    with supervising(services, job, drain):
        wait_for_stage(services, job, "finetuning")
        drain.begin()

    found = get_job(services.database, job)
    assert (found.status, found.lease_token, found.stage) == (Status.QUEUED, None, None)
    assert found.attempt - found.attempts_before_retry == 0
    assert [attempt.outcome for attempt in attempts(services, job)] == ["released"]
    assert descendants(PIPELINE) == []
    assert [folder.name for folder in settings.work_dir.iterdir()] == [f"{job}.1"]
    cancel(services, job)
    tidy(services)
    assert_nothing_is_left(services)


def test_a_run_beyond_its_max_runtime_is_ended(services: Services, dataset: Dataset) -> None:
    job = add_job(services.database, dataset, hyperparameters=ENDLESS, max_runtime=1)
    run_job(services, job)
    error = error_of(services, job)
    assert (error["code"], error["param"]) == ("max_runtime_exceeded", "max_runtime")
    assert_nothing_is_left(services)


def test_a_job_that_cannot_fit_on_the_disk_is_not_begun(services: Services, dataset: Dataset) -> None:
    job = add_job(services.database, dataset)
    with services.database.writing() as session:
        session.execute(update(Job).where(Job.id == job).values(needed_disk_bytes=2**60))
    run_job(services, job)
    error = error_of(services, job)
    assert error["code"] == "disk_full"
    assert f"{2**60:,}" in error["message"]
    assert_nothing_is_left(services)


def test_a_run_ends_when_its_disk_fills_up(
    services: Services, dataset: Dataset, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = add_job(services.database, dataset, hyperparameters=ENDLESS)
    with supervising(services, job):
        wait_for_child()
        monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(free=settings.min_free_disk_bytes - 1))
    assert error_of(services, job)["code"] == "disk_full"
    assert_nothing_is_left(services)


def test_other_forms_are_published_and_the_smallest_good_budget_is_named(
    services: Services, dataset: Dataset, settings: Settings
) -> None:
    fields: dict[str, Any] = {"budgets": (0.9, 0.5), "outputs": ("dense", "onnx"), "quality_bound": 1.0}
    job = add_job(services.database, dataset, **fields)
    run_job(services, job)

    with services.database.reading() as session:
        described = store.describe(session.get_one(Job, job))
    assert described.result is not None, described.error
    assert described.result.chosen_budget == 0.5
    forms = [point.exports for point in described.result.budgets]
    assert forms == [{"dense": f"budget-{b}-dense", "onnx": f"budget-{b}-onnx"} for b in (0.9, 0.5)]
    folders = {name.split("/")[2] for name in published(settings) if name.count("/") > 2}
    assert folders == {folder for form in forms for folder in form.values()}


def test_the_log_of_an_attempt_is_kept(services: Services, dataset: Dataset, tmp_path: Path) -> None:
    job = add_job(services.database, dataset, model="no-such-model")
    run_job(services, job)
    assert error_of(services, job)["code"] == "model_not_found"
    services.storage.fetch_file(leases.log_of(job, 1), tmp_path / "log")
    assert "no-such-model" in (tmp_path / "log").read_text()


def test_a_publication_waits_for_a_storage_that_is_away(
    services: Services, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload, refusals = Storage.put_file, iter([StorageUnavailable()] * 3)

    def fails_at_first(storage: Storage, key: str, *rest: Any) -> str:
        if "/attempt-1/" in key and (refusal := next(refusals, None)):
            raise refusal
        return upload(storage, key, *rest)

    monkeypatch.setattr(Storage, "put_file", fails_at_first)
    monkeypatch.setattr("worker.publishing.FIRST_PAUSE_SECONDS", 0.01)
    job = add_job(services.database, dataset)
    run_job(services, job)
    assert get_job(services.database, job).status == Status.SUCCEEDED


def test_a_storage_that_stays_away_costs_attempts_and_at_last_the_job(
    services: Services, dataset: Dataset, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(storage: Storage, key: str, *_: Any) -> str:
        raise StorageUnavailable()

    monkeypatch.setattr(Storage, "put_file", refuse)
    impatient = replace(
        services, settings=settings.model_copy(update={"publish_patience_seconds": 0, "max_attempts": 2})
    )
    job = add_job(services.database, dataset)
    run_job(impatient, job)
    assert get_job(services.database, job).status == Status.QUEUED
    run_job(impatient, job)
    assert error_of(services, job)["code"] == "storage_unavailable"
    assert stages_of_attempt(services, job, 2) == {"loading", "publishing"}
    assert_nothing_is_left(services)


def _content(services: Services, artifact: Artifact) -> bytes:
    path = services.storage.local_path(artifact.storage_key)
    assert path is not None
    return path.read_bytes()


def _ignores_sigterm(process: psutil.Process) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    ignored = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn"))
    return bool(int(ignored, 16) & 1 << (signal.SIGTERM - 1))
