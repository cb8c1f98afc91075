"""The HTTP client: typed by the API's own schemas, without torch, FastAPI or SQLAlchemy."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx2

from jactus_core.files import sha256_of
from jactus_core.tasks import TaskName
from jobs import schemas
from jobs.states import Status

RECONNECT_SECONDS = 1.0
NOTHING_LEFT = 204
PAGE = 100
ATTEMPTS_PER_PART = 5
LARGE_BYTES = 64 * 2**20
CHECK_SECONDS = 3600  # the service reads a large file before it answers
PLANNING_SECONDS = 180  # it may have to start the process that looks at models


class ApiError(Exception):
    """The service refused; `code` is for programs."""

    def __init__(self, status: int, error: schemas.ErrorBody) -> None:
        super().__init__(f"{error.message} ({error.code})")
        self.status = status
        self.code = error.code
        self.param = error.param


class CorruptDownload(Exception):
    """A file does not have the hash that the service announced."""


class UploadInterrupted(Exception):
    """The connection broke again and again; `upload` is the id to go on with."""

    def __init__(self, upload: str) -> None:
        super().__init__(f"The connection broke again and again; what has arrived is kept as upload '{upload}'.")
        self.upload = upload


class Client:
    """One user of one service."""

    def __init__(self, url: str, api_key: str) -> None:
        self._http = httpx2.Client(
            base_url=url, headers={"Authorization": f"Bearer {api_key}"}, timeout=60, follow_redirects=True
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def upload_dataset(
        self,
        file: Path,
        task: TaskName = "text-classification",
        columns: Mapping[str, str] | None = None,
        *,
        large_bytes: int = LARGE_BYTES,
        upload: str | None = None,
    ) -> schemas.Dataset:
        """A file larger than `large_bytes` is sent in parts; `upload` is the id of an upload to go on with."""
        if upload is None and file.stat().st_size <= large_bytes:
            form = {"task": task, "columns": json.dumps(dict(columns or {}))}
            with file.open("rb") as handle:
                answer = self._http.post("/v1/datasets", data=form, files={"file": (file.name, handle)})
        else:
            body = {"upload": self.upload_file(file, upload), "task": task, "columns": dict(columns or {})}
            answer = self._http.post("/v1/datasets/from-upload", json=body, timeout=CHECK_SECONDS)
        return schemas.Dataset.model_validate(_checked(answer))

    def upload_file(self, file: Path, upload: str | None = None) -> str:
        """Send a file in parts, all but those that have arrived; returns the upload's id."""
        if upload is None:
            announced = {"filename": file.name, "bytes": file.stat().st_size, "sha256": sha256_of(file)}
            answer = self._http.post("/v1/uploads", json=announced)
        else:
            answer = self._http.get(f"/v1/uploads/{upload}")
        target = schemas.Upload.model_validate(_checked(answer))
        arrived = {part.number: part.sha256 for part in target.parts}
        with file.open("rb") as handle:
            for number, content in enumerate(iter(lambda: handle.read(target.part_bytes), b""), start=1):
                if arrived.get(number) != hashlib.sha256(content).hexdigest():
                    self._send_part(target.id, number, content)
        return target.id

    def upload_model(self, file: Path, *, large_bytes: int = LARGE_BYTES, upload: str | None = None) -> schemas.Model:
        """A zip of a model's folder; in parts like a dataset."""
        if upload is None and file.stat().st_size <= large_bytes:
            with file.open("rb") as handle:
                answer = self._http.post("/v1/models", files={"file": (file.name, handle)})
        else:
            body = {"upload": self.upload_file(file, upload)}
            answer = self._http.post("/v1/models/from-upload", json=body, timeout=CHECK_SECONDS)
        return schemas.Model.model_validate(_checked(answer))

    def preflight(
        self, model: str, task: TaskName | None = None, revision: str | None = None, secret: str | None = None
    ) -> schemas.Preflight:
        """Whether a model can be used, before it is downloaded."""
        body = {"model": model, "task": task, "revision": revision, "secret": secret}
        answer = self._http.post("/v1/models/preflight", json=body, timeout=PLANNING_SECONDS)
        return schemas.Preflight.model_validate(_checked(answer))

    def store_secret(self, name: str, value: str) -> schemas.Secret:
        """Such as a token of the hub, for `secret` of a job."""
        return schemas.Secret.model_validate(
            _checked(self._http.post("/v1/secrets", json={"name": name, "value": value}))
        )

    def delete_secret(self, name: str) -> None:
        _raise_for_error(self._http.delete(f"/v1/secrets/{name}"))

    def estimate(self, request: schemas.JobCreate) -> schemas.JobEstimate:
        """What the job would take and give; nothing is created."""
        body = request.model_dump(mode="json")
        answer = self._http.post("/v1/jobs/estimate", json=body, timeout=PLANNING_SECONDS)
        return schemas.JobEstimate.model_validate(_checked(answer))

    def create_job(self, request: schemas.JobCreate, idempotency_key: str | None = None) -> schemas.Job:
        """With a key of your choice it is made once, however often it is sent."""
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        body = request.model_dump(mode="json")
        answer = self._http.post("/v1/jobs", json=body, headers=headers, timeout=PLANNING_SECONDS)
        return schemas.Job.model_validate(_checked(answer))

    def job(self, id: str) -> schemas.Job:
        return schemas.Job.model_validate(_checked(self._http.get(f"/v1/jobs/{id}")))

    def jobs(
        self, status: Status | None = None, model: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> Iterator[schemas.Job]:
        """Your jobs, newest first, page by page as they are asked for."""
        filters = {"status": status, "model": model, "metadata": [":".join(pair) for pair in (metadata or {}).items()]}
        given = {name: value for name, value in filters.items() if value} | {"limit": PAGE}
        while True:
            page = schemas.Page[schemas.Job].model_validate(_checked(self._http.get("/v1/jobs", params=given)))
            yield from page.data
            if not page.has_more:
                return
            given["after"] = page.data[-1].id

    def cancel(self, id: str) -> schemas.Job:
        return schemas.Job.model_validate(_checked(self._http.post(f"/v1/jobs/{id}/cancel")))

    def retry(self, id: str) -> schemas.Job:
        """Run a failed or cancelled job again."""
        return schemas.Job.model_validate(_checked(self._http.post(f"/v1/jobs/{id}/retry")))

    def delete(self, id: str) -> None:
        """Delete a finished job with its files."""
        _raise_for_error(self._http.delete(f"/v1/jobs/{id}"))

    def events(self, id: str, after: int = 0) -> Iterator[schemas.Event]:
        """Every event past `after` until the job is final; a stream that ends is taken up where it ended."""
        last = after
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last)}
            try:
                with self._http.stream("GET", f"/v1/jobs/{id}/events", headers=headers) as answer:
                    _raise_for_error(answer)
                    if answer.status_code == NOTHING_LEFT:
                        return
                    for message in httpx2.EventSource(answer):
                        event = schemas.EVENT.validate_json(message.data)
                        last = event.number
                        yield event
            except httpx2.TransportError:
                time.sleep(RECONNECT_SECONDS)

    def log(self, id: str, attempt: int) -> str:
        """What an attempt has written so far."""
        answer = self._http.get(f"/v1/jobs/{id}/attempts/{attempt}/log")
        _raise_for_error(answer)
        return answer.content.decode(errors="replace")

    def artifacts(self, id: str) -> list[schemas.Artifact]:
        found: list[schemas.Artifact] = []
        while True:
            after = found[-1].path if found else ""
            answer = self._http.get(f"/v1/jobs/{id}/artifacts", params={"after": after, "limit": PAGE})
            page = schemas.Page[schemas.Artifact].model_validate(_checked(answer))
            found += page.data
            if not page.has_more:
                return found

    def download(self, id: str, folder: Path, advance: Callable[[int], None] = lambda _: None) -> list[Path]:
        """Every artifact of a job into `folder`, hashes checked; `advance` is told of each chunk's bytes."""
        return [self._download(id, artifact, folder, advance) for artifact in self.artifacts(id)]

    def _send_part(self, upload: str, number: int, content: bytes) -> None:
        for attempt in range(1, ATTEMPTS_PER_PART + 1):
            try:
                _raise_for_error(self._http.put(f"/v1/uploads/{upload}/parts/{number}", content=content))
            except httpx2.TransportError as error:
                if attempt == ATTEMPTS_PER_PART:
                    raise UploadInterrupted(upload) from error
                time.sleep(RECONNECT_SECONDS)
            else:
                return

    def _download(self, id: str, artifact: schemas.Artifact, folder: Path, advance: Callable[[int], None]) -> Path:
        target = (folder / artifact.path).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise CorruptDownload(f"The service named a path outside the folder: '{artifact.path}'.")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".part")
        digest = hashlib.sha256()
        with (
            self._http.stream("GET", f"/v1/jobs/{id}/artifacts/{quote(artifact.path)}") as answer,
            partial.open("wb") as out,
        ):
            _raise_for_error(answer)
            for chunk in answer.iter_bytes(2**20):
                out.write(chunk)
                digest.update(chunk)
                advance(len(chunk))
        if digest.hexdigest() != artifact.sha256:
            partial.unlink()
            raise CorruptDownload(f"'{artifact.path}' does not have the announced SHA-256; download it again.")
        partial.replace(target)
        return target


def _checked(answer: httpx2.Response) -> Any:
    _raise_for_error(answer)
    return answer.json()


def _raise_for_error(answer: httpx2.Response) -> None:
    if answer.is_success:
        return
    answer.read()
    try:
        error = schemas.ErrorResponse.model_validate_json(answer.content).error
    except ValueError:
        error = schemas.ErrorBody(type="server_error", code="unexpected_answer", message=answer.text[:200])
    raise ApiError(answer.status_code, error)
