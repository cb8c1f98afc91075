"""The life of a job, as a table: every legal move, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED})
LIVE = frozenset(Status) - FINAL


@dataclass(frozen=True)
class Move:
    """From one status to another; `needs_lease` moves are made by the worker that holds the job."""

    source: Status
    target: Status
    needs_lease: bool = False


CLAIM = Move(Status.QUEUED, Status.RUNNING)
SUCCEED = Move(Status.RUNNING, Status.SUCCEEDED, needs_lease=True)
FAIL = Move(Status.RUNNING, Status.FAILED, needs_lease=True)
STOPPED = Move(Status.CANCELLING, Status.CANCELLED, needs_lease=True)
RELEASE = Move(Status.RUNNING, Status.QUEUED, needs_lease=True)  # the worker is asked to end, the job goes on elsewhere

CANCEL_QUEUED = Move(Status.QUEUED, Status.CANCELLED)
CANCEL_RUNNING = Move(Status.RUNNING, Status.CANCELLING)
RETRY_FAILED = Move(Status.FAILED, Status.QUEUED)
RETRY_CANCELLED = Move(Status.CANCELLED, Status.QUEUED)

REQUEUE = Move(Status.RUNNING, Status.QUEUED)  # the worker died, attempts are left
GIVE_UP = Move(Status.RUNNING, Status.FAILED)  # the worker died once too often
BURY = Move(Status.CANCELLING, Status.CANCELLED)  # the worker died while stopping

MOVES = (
    *(CLAIM, SUCCEED, FAIL, STOPPED, RELEASE),
    *(CANCEL_QUEUED, CANCEL_RUNNING, RETRY_FAILED, RETRY_CANCELLED),
    *(REQUEUE, GIVE_UP, BURY),
)
