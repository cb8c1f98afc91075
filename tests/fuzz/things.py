"""Real things that requests are about, so that they reach more than a 404."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import deliveries, keys, leases, models, schemas, secrets, store, uploads, webhooks
from jobs.keys import Caller
from jobs.moves import Lease
from jobs.schemas import Scope
from jobs.services import Services
from jobs.states import Status
from jobs.tables import Artifact, Dataset
from jobs.vault import Vault
from tests.helpers import TENANT, add_dataset, add_job
from tests.tiny import reviews

FOLDER, FILE, LOG = "budget-0.5", "budget-0.5/config.json", b"one line\nand another\n"
PART = b"a part"
LONG = 24 * 3600.0
SIZE = {"parameters": 10, "bytes": 40, "compressible_parameters": 8, "compressible_bytes": 32}
RESULT: dict[str, Any] = {
    "task": "text-classification",
    "metric": "accuracy",
    "dense_metrics": {"accuracy": 1.0},
    "dense_size": SIZE,
    "budgets": [
        {
            "budget": 0.5,
            "folder": FOLDER,
            "exports": {},
            "kept_fraction": 0.5,
            "metrics": {"accuracy": 0.75},
            "size": SIZE,
            "ranks": {"layer": 4, "dense": None},
        }
    ],
    "seconds": {"loading": 1.0},
}
CSV = "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in reviews(20))
CALLER = Caller(TENANT, keys.CONFIGURED)


class Things:
    """Makes them; `parameters` are those of one operation's path, with a thing of its own unless it only looks."""

    def __init__(self, services: Services, folder: Path, archive: bytes, seed: int) -> None:
        self._services, self._folder, self._archive = services, folder, archive
        self._secret = services.settings.secret_key.get_secret_value()
        self._numbers = itertools.count(1)
        self.random = random.Random(seed)
        self.dataset = self._new_dataset()
        self.model = self._new_model()
        self.secret = self._new_secret()
        self._kept: dict[tuple[str, ...], list[dict[str, Any]]] = {}

    def parameters(self, names: tuple[str, ...], *, looks: bool) -> dict[str, Any]:
        """Path parameters of these names that lead to something real."""
        if not looks:
            return self._new(names)
        kept = self._kept.setdefault(names, [])
        if len(kept) < (2 * len(Status) if names == ("job_id",) else 3):
            kept.append(self._new(names))
        return self.random.choice(kept)

    def body_values(self) -> dict[str, Callable[[], Any]]:
        """What a field of a JSON body may name, by the field."""
        return {
            "dataset": lambda: self.dataset.id,
            "model": lambda: self.random.choice([self.model, "tiny-bert"]),
            "secret": lambda: self.secret,
            "upload": lambda: self._new_upload(complete=True),
        }

    def key(self, *scopes: Scope, **limits: int) -> str:
        """An API key of the tenant."""
        key = keys.new_key()
        with self._services.database.writing() as session:
            keys.create_key(session, key, self._secret, scopes=scopes, limits=limits)
        return key

    def make_room_for_webhooks(self) -> None:
        """A tenant may have a few only."""
        kept = {found.get("webhook_id") for things in self._kept.values() for found in things}
        with self._services.database.writing() as session:
            for webhook in webhooks.list_webhooks(session, TENANT, None, 100)[10:]:
                if webhook.id not in kept:
                    session.delete(webhook)

    def file(self, path: str = "") -> tuple[str, bytes]:
        """Name and content of something that can be uploaded: what this path is for, else anything."""
        dataset, model = ("reviews.csv", CSV.encode()), ("model.zip", self._archive)
        wanted = {"/v1/datasets": dataset, "/v1/models": model}
        return wanted.get(path) or self.random.choice([dataset, model])

    def _new(self, names: tuple[str, ...]) -> dict[str, Any]:
        match names:
            case ("job_id",):
                return {"job_id": self._new_job(self.random.choice(list(Status)))}
            case ("job_id", "path"):
                return {"job_id": self._new_job(Status.SUCCEEDED), "path": FILE}
            case ("folder", "job_id"):
                return {"job_id": self._new_job(Status.SUCCEEDED), "folder": FOLDER}
            case ("job_id", "number"):
                return {"job_id": self._new_job(Status.SUCCEEDED), "number": 1}
            case ("dataset_id",):
                return {"dataset_id": self._new_dataset().id}
            case ("model_id",):
                return {"model_id": self._new_model()}
            case ("upload_id",):
                return {"upload_id": self._new_upload()}
            case ("number", "upload_id"):
                return {"upload_id": self._new_upload(("part.csv", PART)), "number": 1}
            case ("name",):
                return {"name": self._new_secret()}
            case ("key_id",):
                return {"key_id": self._new_key_id()}
            case ("webhook_id",):
                return {"webhook_id": self._new_delivery()[0]}
            case ("delivery_id", "webhook_id"):
                return dict(zip(("webhook_id", "delivery_id"), self._new_delivery(), strict=True))
        raise AssertionError(f"nothing real is known for {names}")

    def _new_job(self, status: Status) -> str:
        services = self._services
        id = add_job(services.database, self.dataset, metadata={"made": "by hand"})
        if status == Status.QUEUED:
            return id
        with services.database.writing() as session:
            lease = leases.claim(session, id, LONG, "a-worker")
            assert lease is not None
            leases.record_progress(session, lease, "calibrating", 0.5, "half of it")
        services.storage.put_file(leases.log_of(id, 1), self._write(LOG))
        if status == Status.SUCCEEDED:
            self._publish(lease)
        elif status == Status.FAILED:
            with services.database.writing() as session:
                assert leases.fail(session, lease, leases.WorkerLost("It is gone."), {"loading": 1.0})
        elif status in (Status.CANCELLING, Status.CANCELLED):
            with services.database.writing() as session:
                store.request_cancel(session, store.find(session, TENANT, id))
                if status == Status.CANCELLED:
                    assert leases.confirm_stopped(session, lease)
        return id

    def _publish(self, lease: Lease) -> None:
        key = f"{leases.files_of(lease.job_id, lease.attempt)}/{FILE}"
        digest = self._services.storage.put_file(key, self._write(b"{}"))
        file = Artifact(job_id=lease.job_id, path=FILE, bytes=2, sha256=digest, storage_key=key)
        with self._services.database.writing() as session:
            assert leases.succeed(session, lease, RESULT, [file])

    def _new_dataset(self) -> Dataset:
        return add_dataset(self._services.database, self._folder, 20)

    def _new_model(self) -> str:
        archive = self._write(self._archive)
        return models.receive(self._services.database, self._services.storage, CALLER, "tiny.zip", archive).id

    def _new_upload(self, file: tuple[str, bytes] | None = None, *, complete: bool = False) -> str:
        services, (name, content) = self._services, file or self.file()
        request = schemas.UploadCreate(filename=name, bytes=len(content))
        with services.database.writing() as session:
            upload = uploads.create_upload(session, CALLER, request, services.settings)
        if complete:
            part = self._folder / "part"
            uploads.keep_part(services, upload, 1, part, uploads.write_hashed([content], part))
        return upload.id

    def _new_secret(self) -> str:
        name = f"secret-{next(self._numbers)}"
        with self._services.database.writing() as session:
            secrets.put(session, self._services.settings, TENANT, name, "hf_nothing")
        return name

    def _new_key_id(self) -> str:
        with self._services.database.writing() as session:
            return keys.create_key(session, keys.new_key(), self._secret, "another tenant").id

    def _new_delivery(self) -> tuple[str, str]:
        self.make_room_for_webhooks()
        request = schemas.WebhookCreate(url="https://webhooks.example/jactus", events=("job.failed",))
        with self._services.database.writing() as session:
            webhook, _ = webhooks.create(session, TENANT, request, Vault(self._secret))
            session.flush()
            return webhook.id, deliveries.add_test(session, webhook).id

    def _write(self, content: bytes) -> Path:
        file = self._folder / "content"
        file.write_bytes(content)
        return file
