"""The client in programs with an event loop, jobs in the hand, and what importing it costs."""

from __future__ import annotations

import asyncio
import inspect
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from cli.client import ApiError, AsyncClient, AsyncJob, Client, Job, connection
from jobs import schemas
from jobs.settings import Settings
from jobs.states import Status
from tests.api.live import serving
from tests.cli.test_client import talking_to
from tests.helpers import API_KEY, QUICK
from tests.tiny import write_reviews


def public(of: type) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(of) if not name.startswith("_")}


def test_both_clients_can_do_the_same_and_say_the_same() -> None:
    asynchronous, blocking = public(AsyncClient), public(Client)
    assert asynchronous.keys() == blocking.keys()
    for name, method in asynchronous.items():
        assert inspect.signature(method).parameters.keys() == inspect.signature(blocking[name]).parameters.keys(), name
        assert inspect.getdoc(method) == inspect.getdoc(blocking[name])
    own = public(AsyncJob).keys() - public(schemas.Job).keys()
    assert own == public(Job).keys() - public(schemas.Job).keys()


def test_the_client_needs_neither_torch_nor_the_service() -> None:
    code = (
        "import sys, cli.client\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'fastapi', 'sqlalchemy', 'celery'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "[]\n"


def test_a_whole_life_over_the_event_loop(settings: Settings, tiny_bert: Path, tmp_path: Path) -> None:
    async def life(port: int) -> None:
        async with AsyncClient(f"http://127.0.0.1:{port}", API_KEY) as client:
            dataset = await client.upload_dataset(write_reviews(tmp_path / "reviews.jsonl", 20))
            assert [found.id async for found in client.datasets()] == [dataset.id]
            assert [found.name for found in await client.local_models()] == ["tiny-bert"]
            request = schemas.JobCreate(model="tiny-bert", dataset=dataset.id, budgets=(0.5,), hyperparameters=QUICK)
            first, second = await asyncio.gather(client.create_job(request), client.create_job(request))
            assert first.id != second.id
            assert {job.id async for job in client.jobs()} == {first.id, second.id}

            waiting = asyncio.create_task(first.wait())
            with pytest.raises(TimeoutError):
                await first.wait(timeout=0.1)
            assert (await first.refresh()).status == Status.QUEUED, "giving up waiting changes nothing"
            await first.cancel()
            assert (await waiting).status == Status.CANCELLED
            seen = [event.data.status async for event in first.events() if event.type == "status"]
            assert seen == [Status.QUEUED, Status.CANCELLED]
            assert [attempt.number for attempt in await client.attempts(first.id)] == []
            assert await first.download(tmp_path / "nothing") == []
            assert (await first.retry()).status == Status.QUEUED

            await first.cancel()
            await first.delete()
            with pytest.raises(ApiError, match="job_not_found"):
                await first.refresh()

    shutil.copytree(tiny_bert, tmp_path / "models" / "tiny-bert")
    with serving(settings.model_copy(update={"model_root": tmp_path / "models"})) as (_, port):
        asyncio.run(life(port))


def test_what_else_a_user_has(settings: Settings, tiny_bert: Path, tmp_path: Path) -> None:
    with (
        serving(settings.model_copy(update={"model_root": tiny_bert.parent})) as (_, port),
        Client(f"http://127.0.0.1:{port}", API_KEY) as client,
    ):
        client.store_secret("b", "hf_example")
        client.store_secret("a", "hf_example")
        assert [secret.name for secret in client.secrets()] == ["a", "b"]

        made = client.create_key(schemas.KeyCreate(tenant="films", name="ci"))
        assert {key.id for key in client.api_keys()} == {made.id, client.own_key().id}
        assert client.change_key(made.id, schemas.KeyUpdate(name="nightly")).name == "nightly"
        client.change_key(made.id, schemas.KeyUpdate(limits=schemas.Limits(max_queued_jobs=3)))
        [changed] = [key for key in client.api_keys() if key.id == made.id]
        assert (changed.name, changed.limits.max_queued_jobs) == ("nightly", 3), "what is not named stays"
        client.revoke_key(made.id)
        with Client(f"http://127.0.0.1:{port}", made.key) as theirs, pytest.raises(ApiError, match="invalid_api_key"):
            theirs.own_key()

        hook = client.create_webhook(schemas.WebhookCreate(url="https://example.com/jactus"))
        assert client.change_webhook(hook.id, schemas.WebhookUpdate(description="mine")).description == "mine"
        sent = client.test_webhook(hook.id)
        assert [delivery.id for delivery in client.deliveries(hook.id)] == [sent.id]
        client.delete_webhook(hook.id)
        assert list(client.webhooks()) == []

        dataset = client.upload_dataset(write_reviews(tmp_path / "reviews.jsonl", 20))
        assert client.dataset(dataset.id) == dataset
        client.delete_dataset(dataset.id)
        with pytest.raises(ApiError, match="dataset_not_found"):
            client.dataset(dataset.id)


def test_an_interrupted_wait_ends_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C does: the caller is free at once, and the request does not go on behind its back."""
    monkeypatch.setattr(connection, "PAUSE_SECONDS", 0.01)
    asked, gone = threading.Event(), threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.set()
        handler.rfile.read(1)  # until the other side closes
        gone.set()

    class Interrupt(BaseException):
        pass

    with talking_to(answer) as client:
        real = client._portal.start_task_soon

        def interrupted(*args: Any) -> Any:
            future = real(*args)

            def result() -> None:
                assert asked.wait(10)
                raise Interrupt

            monkeypatch.setattr(future, "result", result)
            return future

        monkeypatch.setattr(client._portal, "start_task_soon", interrupted)
        with pytest.raises(Interrupt):
            client.job("job_1")
        assert gone.wait(10)
        monkeypatch.undo()


def test_a_reader_who_takes_no_more_ends_the_stream() -> None:
    gone = threading.Event()
    said = {"number": 1, "type": "status", "data": {"status": "queued"}, "created_at": "2030-01-01T00:00:00Z"}

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        handler.wfile.write(f"id: 1\nevent: status\ndata: {json.dumps(said)}\n\n".encode())
        handler.rfile.read(1)  # until the other side closes
        gone.set()

    with talking_to(answer) as client:
        events = client.events("job_1")
        assert next(events).number == 1
        assert isinstance(events, Generator)
        events.close()
        assert gone.wait(10)


def test_closing_ends_a_request_that_nobody_waits_for_any_more() -> None:
    """As when Ctrl-C comes between asking and waiting."""
    asked = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        asked.set()
        handler.rfile.read(1)  # until the other side closes

    with talking_to(answer) as client:
        client._portal.start_task_soon(client._client.job, "job_1")
        assert asked.wait(10)
        closing = threading.Thread(target=client.close)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()
