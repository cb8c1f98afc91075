"""Every request of the API as a method; all of it is written here once, and `blocking` waits for it."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import anyio
import httpx2
from pydantic import BaseModel

from cli.client import transfers
from cli.client.connection import Connection, Shape, pause
from cli.client.errors import Away
from cli.client.handles import AsyncJob
from cli.client.transfers import Advance
from jactus_core.tasks import TaskName
from jobs import schemas
from jobs.states import FINAL, Status

LARGE_BYTES = 64 * 2**20
CHECK_SECONDS = 3600  # the service reads a large file before it answers
PLANNING_SECONDS = 180  # it may have to start the process that looks at models
NOTHING_LEFT = 204


class AsyncClient:
    """One user of one service.

    Requests that can safely be sent again are, a few times; then Unreachable says that no answer came. ApiError is what
    the service itself refuses.
    """

    def __init__(self, url: str, api_key: str) -> None:
        self._connection = Connection(url, api_key)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._connection.close()

    # Jobs

    async def estimate(self, request: schemas.JobCreate) -> schemas.JobEstimate:
        """What the job would take and give; nothing is created."""
        body = request.model_dump(mode="json")
        return await self._post(
            schemas.JobEstimate, "/v1/jobs/estimate", body, repeatable=True, timeout=PLANNING_SECONDS
        )

    async def create_job(self, request: schemas.JobCreate, idempotency_key: str | None = None) -> AsyncJob:
        """Made once, however often the request has to be sent; with a key of your choice also over several calls."""
        headers, body = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}, request.model_dump(mode="json")
        said = await self._post(
            schemas.Job, "/v1/jobs", body, repeatable=True, headers=headers, timeout=PLANNING_SECONDS
        )
        return AsyncJob.of(self, said)

    async def job(self, id: str) -> AsyncJob:
        return AsyncJob.of(self, await self._connection.ask(schemas.Job, "GET", f"/v1/jobs/{id}"))

    async def jobs(
        self, status: Status | None = None, model: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> AsyncGenerator[AsyncJob]:
        """Your jobs, newest first, page by page as they are asked for."""
        filters = {"status": status, "model": model, "metadata": [":".join(pair) for pair in (metadata or {}).items()]}
        given = {name: value for name, value in filters.items() if value}
        async for said in self._connection.pages(schemas.Job, "/v1/jobs", params=given):
            yield AsyncJob.of(self, said)

    async def cancel(self, id: str) -> AsyncJob:
        return AsyncJob.of(self, await self._post(schemas.Job, f"/v1/jobs/{id}/cancel", repeatable=True))

    async def retry(self, id: str) -> AsyncJob:
        """Run a failed or cancelled job again."""
        return AsyncJob.of(self, await self._post(schemas.Job, f"/v1/jobs/{id}/retry"))

    async def delete(self, id: str) -> None:
        """Delete a finished job with its files."""
        await self._connection.send("DELETE", f"/v1/jobs/{id}")

    async def wait(self, id: str, timeout: float | None = None) -> AsyncJob:
        """The job once it is final; raises TimeoutError after `timeout` seconds, and the job goes on."""
        last = 0
        with anyio.fail_after(timeout):
            while (job := await self.job(id)).status not in FINAL:
                async for event in self.events(id, last):
                    last = event.number
        return job

    async def events(self, id: str, after: int = 0) -> AsyncGenerator[schemas.Event]:
        """Every event past `after` until the job is final; a stream that ends is taken up where it ended."""
        last, failed = after, 0
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last)}
            try:
                async with self._connection.stream(f"/v1/jobs/{id}/events", headers) as answer:
                    if answer.status_code == NOTHING_LEFT:
                        return
                    async for message in httpx2.EventSource(answer):
                        event = schemas.EVENT.validate_json(message.data)
                        last, failed = event.number, 0
                        yield event
            except (httpx2.TransportError, Away):
                failed += 1
                await anyio.sleep(pause(failed))

    async def attempts(self, id: str) -> list[schemas.Attempt]:
        """The runs of a job, the first one first."""
        return (await self._connection.ask(schemas.Page[schemas.Attempt], "GET", f"/v1/jobs/{id}/attempts")).data

    async def log(self, id: str, attempt: int) -> str:
        """What an attempt has written so far."""
        answer = await self._connection.send("GET", f"/v1/jobs/{id}/attempts/{attempt}/log")
        return answer.content.decode(errors="replace")

    async def artifacts(self, id: str) -> list[schemas.Artifact]:
        pages = self._connection.pages(schemas.Artifact, f"/v1/jobs/{id}/artifacts", cursor="path")
        return [artifact async for artifact in pages]

    async def download(self, id: str, folder: Path, advance: Advance = lambda _: None) -> list[Path]:
        """Every artifact of a job into `folder`, a few at a time, hashes checked.

        What is there already and right is not fetched, and half a file is completed. `advance` is told of each chunk's
        bytes; of fewer than none when some were wrong. Raises CorruptDownload or Unreachable.
        """
        return await transfers.download(self._connection, id, await self.artifacts(id), folder, advance)

    # Datasets and models

    async def upload_dataset(
        self,
        file: Path,
        task: TaskName = "text-classification",
        columns: Mapping[str, str] | None = None,
        *,
        large_bytes: int = LARGE_BYTES,
        upload: str | None = None,
        advance: Advance = lambda _: None,
    ) -> schemas.Dataset:
        """A file larger than `large_bytes` is sent in parts; `upload` is the id of an upload to go on with."""
        facts = {"task": task, "columns": dict(columns or {})}
        return await self._bring(schemas.Dataset, "/v1/datasets", file, facts, large_bytes, upload, advance)

    async def dataset_from_hub(self, request: schemas.DatasetFromHub) -> schemas.Dataset:
        """Use a dataset of the hub; it is looked at now and read by the worker."""
        body = request.model_dump(mode="json")
        return await self._post(schemas.Dataset, "/v1/datasets/hub", body, timeout=CHECK_SECONDS)

    def datasets(self) -> AsyncGenerator[schemas.Dataset]:
        """Your datasets, newest first."""
        return self._connection.pages(schemas.Dataset, "/v1/datasets")

    async def dataset(self, id: str) -> schemas.Dataset:
        return await self._connection.ask(schemas.Dataset, "GET", f"/v1/datasets/{id}")

    async def delete_dataset(self, id: str) -> None:
        await self._connection.send("DELETE", f"/v1/datasets/{id}")

    async def upload_model(
        self,
        file: Path,
        *,
        large_bytes: int = LARGE_BYTES,
        upload: str | None = None,
        advance: Advance = lambda _: None,
    ) -> schemas.Model:
        """A zip of a model's folder; in parts like a dataset."""
        return await self._bring(schemas.Model, "/v1/models", file, {}, large_bytes, upload, advance)

    def models(self) -> AsyncGenerator[schemas.Model]:
        """Your uploaded models, newest first."""
        return self._connection.pages(schemas.Model, "/v1/models")

    async def local_models(self) -> list[schemas.LocalModel]:
        """The folders under the host's model root."""
        return (await self._connection.ask(schemas.Page[schemas.LocalModel], "GET", "/v1/models/local")).data

    async def model(self, id: str) -> schemas.Model:
        return await self._connection.ask(schemas.Model, "GET", f"/v1/models/{id}")

    async def delete_model(self, id: str) -> None:
        await self._connection.send("DELETE", f"/v1/models/{id}")

    async def preflight(
        self, model: str, task: TaskName | None = None, revision: str | None = None, secret: str | None = None
    ) -> schemas.Preflight:
        """Whether a model can be used, before it is downloaded."""
        body = {"model": model, "task": task, "revision": revision, "secret": secret}
        return await self._post(
            schemas.Preflight, "/v1/models/preflight", body, repeatable=True, timeout=PLANNING_SECONDS
        )

    async def upload_file(self, file: Path, upload: str | None = None, advance: Advance = lambda _: None) -> str:
        """Send a file in parts, all but those that have arrived; returns the upload's id."""
        return await transfers.upload(self._connection, file, upload, advance)

    # Secrets, keys and webhooks

    async def store_secret(self, name: str, value: str) -> schemas.Secret:
        """Such as a token of the hub, for `secret` of a job; one of the same name is replaced."""
        return await self._post(schemas.Secret, "/v1/secrets", {"name": name, "value": value}, repeatable=True)

    def secrets(self) -> AsyncGenerator[schemas.Secret]:
        """The names of what is stored."""
        return self._connection.pages(schemas.Secret, "/v1/secrets", cursor="name")

    async def delete_secret(self, name: str) -> None:
        await self._connection.send("DELETE", f"/v1/secrets/{name}")

    async def own_key(self) -> schemas.OwnApiKey:
        """The key in use: its tenant, scopes and limits, and what it takes up."""
        return await self._connection.ask(schemas.OwnApiKey, "GET", "/v1/keys/me")

    async def create_key(self, request: schemas.KeyCreate) -> schemas.NewApiKey:
        """Needs a key with the scope admin, as everything about keys but one's own."""
        return await self._post(schemas.NewApiKey, "/v1/keys", request.model_dump(mode="json"))

    def api_keys(self) -> AsyncGenerator[schemas.ApiKey]:
        """Keys, newest first."""
        return self._connection.pages(schemas.ApiKey, "/v1/keys")

    async def change_key(self, id: str, request: schemas.KeyUpdate) -> schemas.ApiKey:
        return await self._patch(schemas.ApiKey, f"/v1/keys/{id}", request)

    async def revoke_key(self, id: str) -> None:
        await self._connection.send("DELETE", f"/v1/keys/{id}")

    async def create_webhook(self, request: schemas.WebhookCreate) -> schemas.NewWebhook:
        """The answer alone holds the secret that deliveries are signed with."""
        return await self._post(schemas.NewWebhook, "/v1/webhooks", request.model_dump(mode="json"))

    def webhooks(self) -> AsyncGenerator[schemas.Webhook]:
        """Your webhooks, newest first."""
        return self._connection.pages(schemas.Webhook, "/v1/webhooks")

    async def change_webhook(self, id: str, request: schemas.WebhookUpdate) -> schemas.Webhook:
        return await self._patch(schemas.Webhook, f"/v1/webhooks/{id}", request)

    async def test_webhook(self, id: str) -> schemas.Delivery:
        """Send it a test message."""
        return await self._post(schemas.Delivery, f"/v1/webhooks/{id}/test")

    def deliveries(self, id: str) -> AsyncGenerator[schemas.Delivery]:
        """What a webhook was told, newest first."""
        return self._connection.pages(schemas.Delivery, f"/v1/webhooks/{id}/deliveries")

    async def delete_webhook(self, id: str) -> None:
        await self._connection.send("DELETE", f"/v1/webhooks/{id}")

    async def _post(self, shape: type[Shape], path: str, body: Any = None, **options: Any) -> Shape:
        return await self._connection.ask(shape, "POST", path, json=body, **options)

    async def _patch(self, shape: type[Shape], path: str, request: BaseModel) -> Shape:
        """What was not set stays as it is."""
        return await self._connection.ask(
            shape, "PATCH", path, json=request.model_dump(mode="json", exclude_unset=True)
        )

    async def _bring(
        self,
        shape: type[Shape],
        path: str,
        file: Path,
        facts: Mapping[str, Any],
        large_bytes: int,
        upload: str | None,
        advance: Advance,
    ) -> Shape:
        """A file with what is to be known of it, at once or in parts."""
        if upload is not None or file.stat().st_size > large_bytes:
            body = {"upload": await self.upload_file(file, upload, advance), **facts}
            return await self._post(shape, f"{path}/from-upload", body, timeout=CHECK_SECONDS)
        form = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
        with file.open("rb") as handle:
            found = await self._connection.ask(shape, "POST", path, data=form, files={"file": (file.name, handle)})
        advance(file.stat().st_size)
        return found
