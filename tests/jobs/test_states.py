"""The life of a job: every operation tried in every state, and the table that says what may happen."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from jactus_core.errors import JactusError
from jobs import leases, store
from jobs.clock import now
from jobs.database import Database
from jobs.errors import WrongState
from jobs.states import MOVES, Status
from jobs.tables import Attempt, Job
from tests.helpers import add_dataset, add_job, get_events, get_job

HOLD = "hold"
ATTEMPT = 2


def _lease(job: Job) -> leases.Lease:
    return leases.Lease(job.id, HOLD, ATTEMPT)


OPERATIONS: dict[str, tuple[Callable[[Session, Job], object], dict[Status, Status]]] = {
    "claim": (lambda session, job: leases.claim(session, job.id, 30), {Status.QUEUED: Status.RUNNING}),
    "succeed": (
        lambda session, job: leases.succeed(session, _lease(job), {}, []),
        {Status.RUNNING: Status.SUCCEEDED},
    ),
    "fail": (
        lambda session, job: leases.fail(session, _lease(job), JactusError("It broke.")),
        {Status.RUNNING: Status.FAILED},
    ),
    "release": (lambda session, job: leases.release(session, _lease(job)), {Status.RUNNING: Status.QUEUED}),
    "retry": (store.retry, {Status.FAILED: Status.QUEUED, Status.CANCELLED: Status.QUEUED}),
    "cancel": (store.request_cancel, {Status.QUEUED: Status.CANCELLED, Status.RUNNING: Status.CANCELLING}),
    "confirm stopped": (
        lambda session, job: leases.confirm_stopped(session, _lease(job)),
        {Status.CANCELLING: Status.CANCELLED},
    ),
    "take back with attempts left": (
        lambda session, _: leases.take_back_dead(session, ATTEMPT + 1),
        {Status.RUNNING: Status.QUEUED, Status.CANCELLING: Status.CANCELLED},
    ),
    "take back after the last attempt": (
        lambda session, _: leases.take_back_dead(session, ATTEMPT),
        {Status.RUNNING: Status.FAILED, Status.CANCELLING: Status.CANCELLED},
    ),
}
"""What each operation turns each status into; it leaves every other status alone."""


def _row(job: Job) -> dict[str, Any]:
    return {column.key: getattr(job, column.key) for column in Job.__table__.columns}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_makes_its_legal_moves_with_one_event_each_and_changes_nothing_else(
    operation: str, database: Database, tmp_path: Path
) -> None:
    act, moves = OPERATIONS[operation]
    dataset = add_dataset(database, tmp_path)
    for status in Status:
        id = add_job(database, dataset)
        lease = {"lease_token": HOLD, "lease_expires_at": now() - timedelta(seconds=1), "attempt": ATTEMPT}
        with database.writing() as session:
            session.execute(update(Job).where(Job.id == id).values(status=status, **lease))
            session.add(Attempt(job_id=id, number=ATTEMPT, worker="", outcome="running", seconds={}, started_at=now()))
        before, events_before = get_job(database, id), get_events(database, id)

        try:
            with database.writing() as session:
                act(session, session.get_one(Job, id))
        except WrongState:
            assert status not in moves

        after, events_after = get_job(database, id), get_events(database, id)
        if status in moves:
            assert after.status == moves[status]
            assert after.last_event == before.last_event + 1
            assert events_after[:-1] == events_before
            number, type, data = events_after[-1]
            assert (number, type, data["status"]) == (after.last_event, "status", moves[status])
        else:
            assert _row(after) == _row(before), f"{operation} changed a job that is {status}"
            assert events_after == events_before
        with database.writing() as session:  # out of the way of the sweep of the next status
            session.execute(update(Job).where(Job.id == id).values(status=Status.SUCCEEDED))


def test_the_table_of_moves_is_what_the_operations_do() -> None:
    done = {(source, target) for _, moves in OPERATIONS.values() for source, target in moves.items()}
    assert {(move.source, move.target) for move in MOVES} == done


def test_only_success_is_for_ever() -> None:
    assert {move.source for move in MOVES} == set(Status) - {Status.SUCCEEDED}


def test_every_status_can_be_reached() -> None:
    assert {move.target for move in MOVES} == set(Status)
