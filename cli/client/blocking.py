"""The client for programs without an event loop: `asynchronous`, with a loop of its own in a thread."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Concatenate, ParamSpec, TypeVar

from anyio.from_thread import start_blocking_portal
from pydantic import PrivateAttr

from cli.client.asynchronous import AsyncClient
from cli.client.handles import AsyncJob
from cli.client.transfers import Advance
from jobs import schemas
from jobs.states import Status

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Job(schemas.Job):
    """As it was when the service was asked; each method asks again and returns what it hears."""

    _client: Client = PrivateAttr()

    @classmethod
    def of(cls, client: Client, said: schemas.Job) -> Job:
        job = cls.model_construct(**dict(said))
        job._client = client
        return job

    def refresh(self) -> Job:
        return self._client.job(self.id)

    def wait(self, timeout: float | None = None) -> Job:
        """Until it is final; raises TimeoutError after `timeout` seconds, and the job goes on."""
        return self._client.wait(self.id, timeout)

    def events(self, after: int = 0) -> Iterator[schemas.Event]:
        return self._client.events(self.id, after)

    def download(self, folder: Path, advance: Advance = lambda _: None) -> list[Path]:
        return self._client.download(self.id, folder, advance)

    def cancel(self) -> Job:
        return self._client.cancel(self.id)

    def retry(self) -> Job:
        return self._client.retry(self.id)

    def delete(self) -> None:
        self._client.delete(self.id)


def _waiting(
    method: Callable[Concatenate[AsyncClient, Parameters], Awaitable[Result]],
) -> Callable[Concatenate[Client, Parameters], Result]:
    @wraps(method)
    def call(self: Client, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return self._wait(lambda: method(self._client, *args, **kwargs))

    return call


def _waiting_for_job(
    method: Callable[Concatenate[AsyncClient, Parameters], Awaitable[AsyncJob]],
) -> Callable[Concatenate[Client, Parameters], Job]:
    @wraps(method)
    def call(self: Client, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Job:
        return Job.of(self, self._wait(lambda: method(self._client, *args, **kwargs)))

    return call


def _iterating(
    method: Callable[Concatenate[AsyncClient, Parameters], AsyncGenerator[Result]],
) -> Callable[Concatenate[Client, Parameters], Iterator[Result]]:
    @wraps(method)
    def call(self: Client, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Iterator[Result]:
        return self._iterate(method(self._client, *args, **kwargs))

    return call


class Client:
    """One user of one service; for use in any thread, and closed at the end.

    Requests that can safely be sent again are, a few times; then Unreachable says that no answer came. ApiError is what
    the service itself refuses.
    """

    def __init__(self, url: str, api_key: str) -> None:
        self._stack = ExitStack()
        self._portal = self._stack.enter_context(start_blocking_portal())
        self._client = AsyncClient(url, api_key)
        self._stack.callback(lambda: self._portal.call(self._portal.stop, True))  # with what an interruption left
        self._stack.callback(lambda: self._portal.call(self._client.close))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    estimate = _waiting(AsyncClient.estimate)
    create_job = _waiting_for_job(AsyncClient.create_job)
    job = _waiting_for_job(AsyncClient.job)
    cancel = _waiting_for_job(AsyncClient.cancel)
    retry = _waiting_for_job(AsyncClient.retry)
    delete = _waiting(AsyncClient.delete)
    wait = _waiting_for_job(AsyncClient.wait)
    events = _iterating(AsyncClient.events)
    attempts = _waiting(AsyncClient.attempts)
    log = _waiting(AsyncClient.log)
    artifacts = _waiting(AsyncClient.artifacts)
    download = _waiting(AsyncClient.download)

    upload_dataset = _waiting(AsyncClient.upload_dataset)
    dataset_from_hub = _waiting(AsyncClient.dataset_from_hub)
    datasets = _iterating(AsyncClient.datasets)
    dataset = _waiting(AsyncClient.dataset)
    delete_dataset = _waiting(AsyncClient.delete_dataset)

    upload_model = _waiting(AsyncClient.upload_model)
    models = _iterating(AsyncClient.models)
    local_models = _waiting(AsyncClient.local_models)
    model = _waiting(AsyncClient.model)
    delete_model = _waiting(AsyncClient.delete_model)
    preflight = _waiting(AsyncClient.preflight)
    upload_file = _waiting(AsyncClient.upload_file)

    store_secret = _waiting(AsyncClient.store_secret)
    secrets = _iterating(AsyncClient.secrets)
    delete_secret = _waiting(AsyncClient.delete_secret)

    own_key = _waiting(AsyncClient.own_key)
    create_key = _waiting(AsyncClient.create_key)
    api_keys = _iterating(AsyncClient.api_keys)
    change_key = _waiting(AsyncClient.change_key)
    revoke_key = _waiting(AsyncClient.revoke_key)

    create_webhook = _waiting(AsyncClient.create_webhook)
    webhooks = _iterating(AsyncClient.webhooks)
    change_webhook = _waiting(AsyncClient.change_webhook)
    test_webhook = _waiting(AsyncClient.test_webhook)
    deliveries = _iterating(AsyncClient.deliveries)
    delete_webhook = _waiting(AsyncClient.delete_webhook)

    def jobs(
        self, status: Status | None = None, model: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> Iterator[Job]:
        """Your jobs, newest first, page by page as they are asked for."""
        for said in self._iterate(self._client.jobs(status, model, metadata)):
            yield Job.of(self, said)

    def _wait(self, ask: Callable[[], Awaitable[Result]]) -> Result:
        """Until it is there; when the caller is interrupted, so is the request."""
        future = self._portal.start_task_soon(ask)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _iterate(self, items: AsyncGenerator[Result]) -> Iterator[Result]:
        """One after the other; a caller who takes no more ends the request."""
        while True:
            try:
                item = self._wait(items.__anext__)
            except StopAsyncIteration:
                return
            try:
                yield item
            except BaseException:
                self._wait(items.aclose)
                raise
