"""the service in full

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels = None
depends_on = None


JOB_INDEXES: tuple[tuple[str, ...], ...] = (
    ("dataset_id", "status"),
    ("deleted_at",),
    ("expires_at",),
    ("key_id", "status"),
    ("status", "device_class", "id"),
    ("tenant", "status", "id"),
)
JSON_COLUMNS: sa.ColumnClause[Any] = sa.column("columns", sa.JSON())


def upgrade() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("body", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "key", name=op.f("pk_idempotency_keys")),
    )
    with op.batch_alter_table("idempotency_keys", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_idempotency_keys_created_at"), ["created_at"], unique=False)

    op.create_table(
        "leftovers",
        sa.Column("prefix", sa.String(), nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("prefix", name=op.f("pk_leftovers")),
    )
    with op.batch_alter_table("leftovers", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_leftovers_due_at"), ["due_at"], unique=False)

    op.create_table(
        "models",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("model_type", sa.String(), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=True),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("storage_prefix", sa.String(), nullable=False),
        sa.Column("files", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
    )
    with op.batch_alter_table("models", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_models_tenant_id"), ["tenant", "id"], unique=False)

    op.create_table(
        "secrets",
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("sealed", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "name", name=op.f("pk_secrets")),
    )
    op.create_table(
        "totals",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "label", name=op.f("pk_totals")),
    )
    op.create_table(
        "uploads",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    with op.batch_alter_table("uploads", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_uploads_expires_at"), ["expires_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_uploads_tenant"), ["tenant"], unique=False)

    op.create_table(
        "webhooks",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("events", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("sealed_secret", sa.String(), nullable=False),
        sa.Column("failing_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("disabled_reason", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhooks")),
    )
    with op.batch_alter_table("webhooks", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_webhooks_tenant_id"), ["tenant", "id"], unique=False)

    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("webhook_id", sa.String(), nullable=False),
        sa.Column("event", sa.String(), nullable=False),
        sa.Column("payload", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_status", sa.Integer(), nullable=True),
        sa.Column("last_error", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["webhook_id"], ["webhooks.id"], name=op.f("fk_deliveries_webhook_id_webhooks"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deliveries")),
    )
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_deliveries_next_at"), ["next_at"], unique=False)
        batch_op.create_index(batch_op.f("ix_deliveries_webhook_id_id"), ["webhook_id", "id"], unique=False)

    op.create_table(
        "upload_parts",
        sa.Column("upload_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("storage_key", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["upload_id"], ["uploads.id"], name=op.f("fk_upload_parts_upload_id_uploads")),
        sa.PrimaryKeyConstraint("upload_id", "number", name=op.f("pk_upload_parts")),
    )
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("worker", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("error", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("seconds", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_attempts_job_id_jobs")),
        sa.PrimaryKeyConstraint("job_id", "number", name=op.f("pk_attempts")),
    )
    op.drop_table("api_keys")  # the one key that it can hold is that of the settings, which is accepted at each start
    _create_api_keys(
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("scopes", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("limits", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.UniqueConstraint("key_hash", name=op.f("uq_api_keys_key_hash")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_index(op.f("ix_api_keys_tenant"), "api_keys", ["tenant"], unique=False)

    with op.batch_alter_table("datasets", schema=None) as batch_op:
        batch_op.add_column(sa.Column("key_id", sa.String(), nullable=False, server_default="key_configured"))
        batch_op.add_column(sa.Column("task", sa.String(), nullable=False, server_default="text-classification"))
        batch_op.add_column(sa.Column("revision", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("secret", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("columns", sa.JSON(none_as_null=True), nullable=False, server_default="{}"))
        batch_op.add_column(sa.Column("all_columns", sa.JSON(none_as_null=True), nullable=False, server_default="[]"))
        batch_op.add_column(sa.Column("eval_rows", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.alter_column("filename", new_column_name="name")
        batch_op.alter_column("sha256", existing_type=sa.String(), nullable=True)
        batch_op.alter_column("storage_key", existing_type=sa.String(), nullable=True)
        batch_op.drop_index(batch_op.f("ix_datasets_tenant"))
        batch_op.create_index(batch_op.f("ix_datasets_tenant_id"), ["tenant", "id"], unique=False)
    datasets = sa.table("datasets", *map(sa.column, ("id", "text_column", "label_column")), JSON_COLUMNS)
    for id, text, label in op.get_bind().execute(
        sa.select(datasets.c.id, datasets.c.text_column, datasets.c.label_column)
    ):
        columns = {"text": text, "label": label}
        op.get_bind().execute(sa.update(datasets).where(datasets.c.id == id).values(columns=columns))
    with op.batch_alter_table("datasets", schema=None) as batch_op:
        for name in ("key_id", "task", "columns", "all_columns", "eval_rows"):
            batch_op.alter_column(name, server_default=None)
        batch_op.drop_column("label_column")
        batch_op.drop_column("text_column")

    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("key_id", sa.String(), nullable=False, server_default="key_configured"))
        batch_op.add_column(sa.Column("device_class", sa.String(), nullable=False, server_default="cpu"))
        batch_op.add_column(sa.Column("secret", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("dataset_revision", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("quality_bound", sa.Double(), nullable=True))
        batch_op.add_column(
            sa.Column("outputs", sa.JSON(none_as_null=True), nullable=False, server_default='["checkpoint"]')
        )
        batch_op.add_column(sa.Column("max_runtime", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("retention_days", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("needed_disk_bytes", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("attempts_before_retry", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("trace", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True))
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        for name in ("key_id", "device_class", "outputs", "attempts_before_retry"):
            batch_op.alter_column(name, server_default=None)
        for indexed in JOB_INDEXES:
            batch_op.create_index(batch_op.f(f"ix_jobs_{'_'.join(indexed)}"), list(indexed), unique=False)


def downgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        for columns in JOB_INDEXES:
            batch_op.drop_index(batch_op.f(f"ix_jobs_{'_'.join(columns)}"))
        for name in (
            *("deleted_at", "expires_at", "trace", "attempts_before_retry", "needed_disk_bytes", "retention_days"),
            *("max_runtime", "outputs", "quality_bound", "dataset_revision", "secret", "device_class", "key_id"),
        ):
            batch_op.drop_column(name)

    with op.batch_alter_table("datasets", schema=None) as batch_op:
        batch_op.add_column(sa.Column("text_column", sa.String(), nullable=False, server_default="text"))
        batch_op.add_column(sa.Column("label_column", sa.String(), nullable=False, server_default="label"))
        batch_op.alter_column("name", new_column_name="filename")
        batch_op.drop_index(batch_op.f("ix_datasets_tenant_id"))
        batch_op.create_index(batch_op.f("ix_datasets_tenant"), ["tenant"], unique=False)
        for name in ("deleted_at", "eval_rows", "all_columns", "columns", "secret", "revision", "task", "key_id"):
            batch_op.drop_column(name)

    op.drop_table("api_keys")
    _create_api_keys(sa.PrimaryKeyConstraint("key_hash", name=op.f("pk_api_keys")))

    op.drop_table("attempts")
    op.drop_table("upload_parts")
    with op.batch_alter_table("deliveries", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_deliveries_webhook_id_id"))
        batch_op.drop_index(batch_op.f("ix_deliveries_next_at"))

    op.drop_table("deliveries")
    with op.batch_alter_table("webhooks", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_webhooks_tenant_id"))

    op.drop_table("webhooks")
    with op.batch_alter_table("uploads", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_uploads_tenant"))
        batch_op.drop_index(batch_op.f("ix_uploads_expires_at"))

    op.drop_table("uploads")
    op.drop_table("totals")
    op.drop_table("secrets")
    with op.batch_alter_table("models", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_models_tenant_id"))

    op.drop_table("models")
    with op.batch_alter_table("leftovers", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_leftovers_due_at"))

    op.drop_table("leftovers")
    with op.batch_alter_table("idempotency_keys", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_idempotency_keys_created_at"))

    op.drop_table("idempotency_keys")


def _create_api_keys(*further: Any) -> None:
    op.create_table(
        "api_keys",
        sa.Column("key_hash", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("hint", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        *further,
    )
