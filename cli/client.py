"""The HTTP client: typed by the API's own schemas, without torch, FastAPI or SQLAlchemy."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

from jobs import schemas
from jobs.states import FINAL

RECONNECT_SECONDS = 1.0


class ApiError(Exception):
    """The service refused; `code` is for programs."""

    def __init__(self, status: int, error: schemas.ErrorBody) -> None:
        super().__init__(f"{error.message} ({error.code})")
        self.status = status
        self.code = error.code
        self.param = error.param


class CorruptDownload(Exception):
    """A file does not have the hash that the service announced."""


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

    def upload_dataset(self, file: Path, text_column: str = "text", label_column: str = "label") -> schemas.Dataset:
        columns = {"text_column": text_column, "label_column": label_column}
        with file.open("rb") as handle:
            answer = self._http.post("/v1/datasets", data=columns, files={"file": (file.name, handle)})
        return schemas.Dataset.model_validate(_checked(answer))

    def create_job(self, request: schemas.JobCreate) -> schemas.Job:
        answer = self._http.post("/v1/jobs", json=request.model_dump(mode="json"))
        return schemas.Job.model_validate(_checked(answer))

    def job(self, id: str) -> schemas.Job:
        return schemas.Job.model_validate(_checked(self._http.get(f"/v1/jobs/{id}")))

    def cancel(self, id: str) -> schemas.Job:
        return schemas.Job.model_validate(_checked(self._http.post(f"/v1/jobs/{id}/cancel")))

    def events(self, id: str) -> Iterator[schemas.Event]:
        """Every event until the job is final; a broken connection is taken up where it broke."""
        last = 0
        while True:
            try:
                for event in self._stream(id, last):
                    last = event.number
                    yield event
                    if event.type == "status" and event.data["status"] in FINAL:
                        return
            except httpx2.TransportError:
                time.sleep(RECONNECT_SECONDS)

    def artifacts(self, id: str) -> list[schemas.Artifact]:
        page = schemas.Page[schemas.Artifact].model_validate(_checked(self._http.get(f"/v1/jobs/{id}/artifacts")))
        return page.data

    def download(self, id: str, folder: Path, advance: Callable[[int], None] = lambda _: None) -> list[Path]:
        """Every artifact of a job into `folder`, hashes checked; `advance` is told of each chunk's bytes."""
        return [self._download(id, artifact, folder, advance) for artifact in self.artifacts(id)]

    def _download(self, id: str, artifact: schemas.Artifact, folder: Path, advance: Callable[[int], None]) -> Path:
        target = (folder / artifact.path).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise CorruptDownload(f"The service named a path outside the folder: '{artifact.path}'.")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".part")
        digest = hashlib.sha256()
        with self._http.stream("GET", f"/v1/jobs/{id}/artifacts/{artifact.path}") as answer, partial.open("wb") as out:
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

    def _stream(self, id: str, last: int) -> Iterator[schemas.Event]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last)}
        with self._http.stream("GET", f"/v1/jobs/{id}/events", headers=headers) as answer:
            _raise_for_error(answer)
            for message in httpx2.EventSource(answer):
                yield schemas.Event.model_validate_json(message.data)


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
