"""What the database knows about the service as a whole, for Prometheus. No number names a tenant."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from jobs import totals
from jobs.classes import CLASSES
from jobs.clock import now
from jobs.leases import Outcome
from jobs.states import Status
from jobs.tables import Artifact, Dataset, Delivery, Event, Job, Model

HEAD_OF_QUEUE = 100
"""Waiting jobs per class that are asked how long they wait; a job that was retried waits since then only."""
SLOW_SECONDS = 60
"""Life of the numbers that take a look at whole tables."""


class ServiceMetrics:
    """Reads everything; keeps for a minute what is expensive to count."""

    def __init__(self) -> None:
        self._slow: list[Metric] = []
        self._slow_until = 0.0

    def read(self, session: Session) -> list[Metric]:
        if time.monotonic() >= self._slow_until:
            self._slow = [_storage(session), _deliveries(session)]
            self._slow_until = time.monotonic() + SLOW_SECONDS
        return [*_jobs(session), _oldest(session), *_totals(session), *self._slow]


def _jobs(session: Session) -> Iterator[Metric]:
    counted = select(Job.status, Job.device_class, func.count()).group_by(Job.status, Job.device_class)
    found = {(status, device): count for status, device, count in session.execute(counted)}
    jobs = GaugeMetricFamily("jactus_jobs", "Jobs that the database holds.", labels=["status", "device_class"])
    depth = GaugeMetricFamily("jactus_queue_depth", "Jobs that wait for a worker.", labels=["device_class"])
    for device in CLASSES:
        for status in Status:
            jobs.add_metric([status.value, device], found.get((status, device), 0))
        depth.add_metric([device], found.get((Status.QUEUED, device), 0))
    yield jobs
    yield depth


def _oldest(session: Session) -> Metric:
    """A waiting job's newest event is the one that made it wait."""
    ages = GaugeMetricFamily(
        "jactus_queue_oldest_seconds", "How long the job at the head of the queue has waited.", labels=["device_class"]
    )
    for device in CLASSES:
        waiting = select(Job.id, Job.last_event).where(Job.status == Status.QUEUED, Job.device_class == device)
        head = waiting.order_by(Job.id).limit(HEAD_OF_QUEUE).subquery()
        entered = select(func.min(Event.created_at)).join(
            head, (Event.job_id == head.c.id) & (Event.number == head.c.last_event)
        )
        since = session.scalars(entered).one()
        ages.add_metric([device], 0 if since is None else (now() - since).total_seconds())
    return ages


def _totals(session: Session) -> Iterator[Metric]:
    found = defaultdict[str, dict[str, float]](dict, totals.all_of(session))
    attempts = CounterMetricFamily("jactus_attempts", "Runs that have ended.", labels=["outcome"])
    for outcome in get_args(Outcome):
        attempts.add_metric([outcome], found["attempts"].get(outcome, 0))
    yield attempts
    expiries = found["lease_expiries"].get("", 0)
    yield CounterMetricFamily("jactus_lease_expiries", "Workers given up for dead while they ran a job.", expiries)
    stages = SummaryMetricFamily("jactus_stage_duration_seconds", "Time that runs spent.", labels=["stage"])
    for stage, runs in sorted(found["stage_runs"].items()):
        stages.add_metric([stage], int(runs), found["stage_seconds"].get(stage, 0))
    yield stages


def _storage(session: Session) -> Metric:
    """Of what is not deleted; artifacts of deleted jobs are few, so they are counted and taken off."""
    deleted = select(Job.id).where(Job.deleted_at.is_not(None))
    bytes_of = {
        "datasets": _sum(session, Dataset.bytes, Dataset.deleted_at.is_(None), Dataset.storage_key.is_not(None)),
        "models": _sum(session, Model.bytes, Model.deleted_at.is_(None)),
        "artifacts": _sum(session, Artifact.bytes) - _sum(session, Artifact.bytes, Artifact.job_id.in_(deleted)),
    }
    used = GaugeMetricFamily("jactus_storage_bytes", "Bytes in the object storage.", labels=["kind"])
    for kind, size in bytes_of.items():
        used.add_metric([kind], size)
    return used


def _sum(session: Session, column: InstrumentedAttribute[int], *where: ColumnElement[bool]) -> int:
    return int(session.scalars(select(func.coalesce(func.sum(column), 0)).where(*where)).one())


def _deliveries(session: Session) -> Metric:
    counted = session.execute(select(Delivery.state, func.count()).group_by(Delivery.state))
    deliveries = GaugeMetricFamily("jactus_webhook_deliveries", "Messages to webhooks.", labels=["state"])
    for state, count in counted:
        deliveries.add_metric([state], count)
    return deliveries
