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
        Status: Enum(Status, native_enum=False, length=16, values_callable=lambda kind: [item.value for item in kind]),
    }


class ApiKey(Base):
    """Who may call. The key itself is never stored, only its keyed hash."""

    __tablename__ = "api_keys"

    key_hash: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str]
    hint: Mapped[str]  # the last four characters, to tell keys apart
    created_at: Mapped[datetime]


class Dataset(Base):
    """A checked file in storage."""

    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(index=True)
    filename: Mapped[str]
    format: Mapped[str]
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str]
    storage_key: Mapped[str]
    text_column: Mapped[str]
    label_column: Mapped[str]
    rows: Mapped[int]
    classes: Mapped[dict[str, Any]]  # rows per class
    created_at: Mapped[datetime]


class Job(Base):
    """The one truth about a job."""

    __tablename__ = "jobs"
    __table_args__ = (Index(None, "tenant", "id"), Index(None, "status", "lease_expires_at"))

    id: Mapped[str] = mapped_column(primary_key=True)  # sorts by creation time
    tenant: Mapped[str]
    status: Mapped[Status]
    task: Mapped[str]
    model: Mapped[str]
    revision: Mapped[str | None]
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"))
    config: Mapped[dict[str, Any]]  # a CompressionConfig with every default filled in
    user_metadata: Mapped[dict[str, Any]]
    stage: Mapped[str | None]
    progress: Mapped[float] = mapped_column(default=0.0)
    attempt: Mapped[int] = mapped_column(default=0)
    last_event: Mapped[int] = mapped_column(default=0)  # number of the newest event
    error: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]
    created_at: Mapped[datetime]
    sent_at: Mapped[datetime | None]  # when the broker was last told
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    lease_token: Mapped[str | None]
    lease_expires_at: Mapped[datetime | None]


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
