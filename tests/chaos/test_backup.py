"""Backups as docs/operations.md has them, with the real tools: everything is lost, and comes back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import obstore
import psycopg
import pytest
from obstore.store import LocalStore, ObjectStore, S3Store

from cli.client import ApiError, Client
from jactus_core.files import sha256_of
from jobs import schemas
from jobs.settings import Settings
from jobs.states import Status
from tests.chaos.stack import empty_stack, new_dataset, new_job, outcomes, small_job, stack
from tests.chaos.test_faults import LONG, assert_nothing_else, assert_succeeded, wait_for_stage
from tests.helpers import TENANT, get_job
from tests.servers import S3, Postgres


def test_a_service_that_lost_everything_is_restored_from_its_backup(
    tmp_path: Path, postgres_server: Postgres, s3_server: S3, tiny_bert: Path
) -> None:
    pg_dump, pg_restore = (str(postgres_server.binaries / name) for name in ("pg_dump", "pg_restore"))
    dump, copied = str(tmp_path / "jactus.dump"), LocalStore(tmp_path / "bucket", mkdir=True)

    with stack(tmp_path / "lost", postgres_server, s3_server, tiny_bert.parent) as lost, lost.client() as admin:
        key = admin.create_key(schemas.KeyCreate(tenant=TENANT, name="older than the backup")).key
        lost.start_worker()
        finished = new_job(admin, tmp_path)
        dataset = assert_succeeded(lost, admin, finished).dataset
        hashes = hashes_of(admin.download(finished, tmp_path / "before"), tmp_path / "before")
        interrupted, waiting = new_job(admin, tmp_path, LONG), new_job(admin, tmp_path)
        wait_for_stage(lost, interrupted, "finetuning")
        subprocess.run([pg_dump, "--format=custom", f"--file={dump}", lost.settings.database_url], check=True)
        too_late = new_dataset(admin, tmp_path)
        copy(bucket_of(lost.settings), copied)
    lose(postgres_server, lost.settings)

    with empty_stack(tmp_path / "restored", postgres_server, s3_server, tiny_bert.parent) as restored:
        url = restored.settings.database_url
        copy(copied, bucket_of(restored.settings))
        subprocess.run([pg_restore, "--exit-on-error", "--no-owner", f"--dbname={url}", dump], check=True)
        subprocess.run([sys.executable, "-m", "migrations"], env=restored.settings.environment(), check=True)
        assert get_job(restored.database, finished).status == Status.SUCCEEDED
        assert get_job(restored.database, interrupted).status == Status.RUNNING
        assert get_job(restored.database, waiting).status == Status.QUEUED
        restored.start_api()
        restored.start_worker(worker_slots=2)

        with restored.client() as admin, Client(restored.url(), key) as user:
            assert admin.own_key().id != user.own_key().id
            assert hashes_of(user.download(finished, tmp_path / "after"), tmp_path / "after") == hashes
            new = user.create_job(small_job(dataset)).id
            for job in (interrupted, waiting, new):
                assert_succeeded(restored, user, job)
                user.download(job, tmp_path / job)  # which checks every hash
            assert outcomes(restored, interrupted) == ["lost", "succeeded"]
            assert_nothing_else(restored, user, [finished, interrupted, waiting, new])
            with pytest.raises(ApiError, match="not_found"):
                user.dataset(too_late)
            assert any(too_late in key for key in restored.storage.keys_under("datasets"))


def hashes_of(files: Iterable[Path], folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): sha256_of(file) for file in files}


def bucket_of(settings: Settings) -> S3Store:
    return S3Store.from_url(
        settings.storage_url,
        endpoint=settings.s3_endpoint,
        access_key_id=settings.s3_access_key_id,
        secret_access_key=settings.s3_secret_access_key.get_secret_value(),
        region=settings.s3_region,
        client_options={"allow_http": True},
    )


def copy(source: ObjectStore, target: ObjectStore) -> None:
    """Every object, one after the other, as tools do it; one that is deleted meanwhile is missed."""
    for entry in obstore.list(source).collect():
        with suppress(FileNotFoundError):
            obstore.put(target, entry["path"], obstore.get(source, entry["path"]).bytes())


def lose(postgres: Postgres, settings: Settings) -> None:
    """The database and every object of a service; its broker and its scratch space are nobody's any more."""
    with psycopg.connect(f"{postgres.url}/postgres", autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {settings.database_url.rpartition('/')[2]} WITH (FORCE)".encode())
    bucket = bucket_of(settings)
    obstore.delete(bucket, [entry["path"] for entry in obstore.list(bucket).collect()])
