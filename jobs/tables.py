"""The tables. Alembic's revisions in `migrations/` create them; a test keeps the two in step."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Enum, ForeignKey, Index, MetaData, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jobs.states import Status


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC on every database; SQLite itself keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime,
        dict[str, Any]: JSON(none_as_null=True),
        list[str]: JSON(none_as_null=True),
        Status: Enum(Status, native_enum=False, length=16, values_callable=lambda kind: [item.value for item in kind]),
    }


class ApiKey(Base):
    """Who may call. The key itself is never stored, only its keyed hash."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    key_hash: Mapped[str] = mapped_column(unique=True)
    tenant: Mapped[str] = mapped_column(index=True)
    name: Mapped[str]
    hint: Mapped[str]  # the last four characters, to tell keys apart
    scopes: Mapped[list[str]]
    limits: Mapped[dict[str, Any]]  # where it differs from the settings
    created_at: Mapped[datetime]
    last_used_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class Secret(Base):
    """Something that jobs refer to by name, such as a hub token; sealed, and never given back."""

    __tablename__ = "secrets"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    sealed: Mapped[str]
    created_at: Mapped[datetime]


class IdempotencyKey(Base):
    """The first answer to a request, for when it is sent again; without a status while the first still works."""

    __tablename__ = "idempotency_keys"

    tenant: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    fingerprint: Mapped[str]
    status: Mapped[int | None]
    body: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime] = mapped_column(index=True)


class Upload(Base):
    """A file on its way here, part by part."""

    __tablename__ = "uploads"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(index=True)
    key_id: Mapped[str]
    filename: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)


class UploadPart(Base):
    """A part that has arrived whole."""

    __tablename__ = "upload_parts"

    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    storage_key: Mapped[str]


class Dataset(Base):
    """A checked file in storage, or a checked dataset of the hub."""

    __tablename__ = "datasets"
    __table_args__ = (Index(None, "tenant", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    key_id: Mapped[str]
    name: Mapped[str]
    task: Mapped[str]
    format: Mapped[str]
    revision: Mapped[str | None]
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str | None]
    storage_key: Mapped[str | None]
    secret: Mapped[str | None]
    columns: Mapped[dict[str, Any]]  # column by role
    all_columns: Mapped[list[str]]
    rows: Mapped[int]
    eval_rows: Mapped[int]
    classes: Mapped[dict[str, Any]]  # training rows per class
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]


class Model(Base):
    """An uploaded model folder in storage."""

    __tablename__ = "models"
    __table_args__ = (Index(None, "tenant", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    key_id: Mapped[str]
    name: Mapped[str]
    model_type: Mapped[str]
    parameters: Mapped[int | None] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    storage_prefix: Mapped[str]
    files: Mapped[dict[str, Any]]  # bytes and sha256 by path
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]


class Job(Base):
    """The one truth about a job."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "tenant", "id"),
        Index(None, "tenant", "status", "id"),
        Index(None, "status", "device_class", "id"),
        Index(None, "status", "lease_expires_at"),
        Index(None, "key_id", "status"),
        Index(None, "dataset_id", "status"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)  # sorts by creation time
    tenant: Mapped[str]
    key_id: Mapped[str]
    status: Mapped[Status]
    device_class: Mapped[str]
    task: Mapped[str]
    model: Mapped[str]
    revision: Mapped[str | None]
    secret: Mapped[str | None]
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"))
    dataset_revision: Mapped[str | None]
    config: Mapped[dict[str, Any]]  # a CompressionConfig with every default filled in
    quality_bound: Mapped[float | None]
    outputs: Mapped[list[str]]
    max_runtime: Mapped[int | None]
    retention_days: Mapped[int | None]
    needed_disk_bytes: Mapped[int | None] = mapped_column(BigInteger)
    user_metadata: Mapped[dict[str, Any]]
    stage: Mapped[str | None]
    progress: Mapped[float] = mapped_column(default=0.0)
    attempt: Mapped[int] = mapped_column(default=0)
    attempts_before_retry: Mapped[int] = mapped_column(default=0)
    last_event: Mapped[int] = mapped_column(default=0)  # number of the newest event
    error: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    trace: Mapped[str | None]  # the W3C traceparent of the request that created it
    created_at: Mapped[datetime]
    sent_at: Mapped[datetime | None]  # when the broker was last told
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None] = mapped_column(index=True)
    deleted_at: Mapped[datetime | None] = mapped_column(index=True)
    lease_token: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]


class Attempt(Base):
    """One run of a job by one worker."""

    __tablename__ = "attempts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    worker: Mapped[str]
    outcome: Mapped[str]
    error: Mapped[dict[str, Any] | None]
    seconds: Mapped[dict[str, Any]]  # by stage
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]


class Event(Base):
    """What happened to a job, in order, from 1 without gaps."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str]
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class Artifact(Base):
    """A published file of a succeeded job."""

    __tablename__ = "artifacts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    storage_key: Mapped[str]


class Leftover(Base):
    """Files under a prefix of the storage that are deleted once they are due, unless a row came to need them."""

    __tablename__ = "leftovers"

    prefix: Mapped[str] = mapped_column(primary_key=True)
    due_at: Mapped[datetime] = mapped_column(index=True)


class Webhook(Base):
    """An address that is told when jobs change."""

    __tablename__ = "webhooks"
    __table_args__ = (Index(None, "tenant", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    url: Mapped[str]
    events: Mapped[list[str]]
    description: Mapped[str]
    sealed_secret: Mapped[str]
    failing_since: Mapped[datetime | None]
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None]
    created_at: Mapped[datetime]


class Delivery(Base):
    """One message to one webhook, until it is accepted or given up."""

    __tablename__ = "deliveries"
    __table_args__ = (Index(None, "webhook_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    event: Mapped[str]
    payload: Mapped[dict[str, Any]]
    state: Mapped[str]
    attempts: Mapped[int]
    last_status: Mapped[int | None]
    last_error: Mapped[str | None]
    created_at: Mapped[datetime]
    next_at: Mapped[datetime | None] = mapped_column(index=True)  # when it is tried; null once it is over
    finished_at: Mapped[datetime | None]


class Total(Base):
    """A number that only grows, counted in the transaction of what it counts, for the metrics."""

    __tablename__ = "totals"

    name: Mapped[str] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[float] = mapped_column(default=0.0)
