"""A request that is sent again with the same `Idempotency-Key` is carried out once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from pydantic import BaseModel
from sqlalchemy import select, update

from api.app import create_app
from api.idempotency import Once
from jobs import idempotency, retention
from jobs.clock import now
from jobs.database import Database
from jobs.errors import IdempotencyKeyInFlight
from jobs.idempotency import ABANDONED_SECONDS, Answer, Reservation
from jobs.settings import Settings
from jobs.tables import IdempotencyKey
from tests.api.requests import assert_refused, make_key, upload_reviews
from tests.helpers import signed_in

RACERS = 16


@pytest.fixture
def dataset(either_client: TestClient) -> str:
    return upload_reviews(either_client)


def send(client: TestClient, dataset: str, key: str = "once", **fields: Any) -> Response:
    body = {"model": "tiny-bert", "dataset": dataset, "budgets": [0.5], **fields}
    return client.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})


def count(client: TestClient) -> int:
    return len(client.get("/v1/jobs", params={"limit": 100}).json()["data"])


def test_the_first_answer_is_given_again(either_client: TestClient, dataset: str) -> None:
    first = send(either_client, dataset, metadata={"name": "früh"})
    either_client.post(f"/v1/jobs/{first.json()['id']}/cancel")
    again = send(either_client, dataset, metadata={"name": "früh"})
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert again.headers["Location"] == first.headers["Location"]
    assert (first.headers.get("Idempotent-Replayed"), again.headers.get("Idempotent-Replayed")) == (None, "true")
    assert count(either_client) == 1


def test_another_request_under_the_same_key_is_refused(either_client: TestClient, dataset: str) -> None:
    send(either_client, dataset)
    assert_refused(send(either_client, dataset, seed=1), 422, "idempotency_key_reused", None, "once")
    assert send(either_client, dataset, "another", seed=1).status_code == 201
    assert count(either_client) == 2


def test_tenants_do_not_meet_in_a_key(either_client: TestClient, either_settings: Settings, dataset: str) -> None:
    ours = send(either_client, dataset).json()["id"]
    signed_in(either_client, make_key(either_settings, "them"))
    theirs = send(either_client, upload_reviews(either_client))
    assert theirs.status_code == 201
    assert theirs.json()["id"] != ours


def test_a_refused_request_leaves_the_key_free(either_client: TestClient, dataset: str) -> None:
    assert send(either_client, dataset, model="no-such-model").status_code == 422
    assert send(either_client, "dataset_1").status_code == 404
    assert send(either_client, dataset, budgets=[2]).status_code == 422
    assert send(either_client, dataset).status_code == 201


def test_a_crash_leaves_neither_job_nor_answer(either_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with TestClient(create_app(either_settings), raise_server_exceptions=False) as client:
        dataset = upload_reviews(signed_in(client))
        with monkeypatch.context() as patch:
            patch.setattr(idempotency, "keep", lambda *_: 1 / 0)
            assert send(client, dataset).status_code == 500
        assert count(client) == 0
        assert send(client, dataset).status_code == 201


def test_a_key_whose_first_request_is_still_at_work_is_refused(
    either_client: TestClient, either_settings: Settings, dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner: list[Response] = []
    begin = Once.begin

    def slow(once: Once, request: BaseModel) -> Any:
        found = begin(once, request)
        if not inner and found is None:
            monkeypatch.undo()
            inner.append(send(either_client, dataset))
        return found

    monkeypatch.setattr(Once, "begin", slow)
    assert send(either_client, dataset).status_code == 201
    assert_refused(inner[0], 409, "idempotency_key_in_flight", None, "once")
    assert len(inner) == 1


def test_racing_requests_make_one_job(either_client: TestClient, either_settings: Settings, dataset: str) -> None:
    with ThreadPoolExecutor(RACERS) as pool:
        answers = list(pool.map(lambda _: send(either_client, dataset), range(RACERS)))
    assert {answer.status_code for answer in answers} <= {201, 409}
    created = {answer.json()["id"] for answer in answers if answer.status_code == 201}
    assert len(created) == 1
    assert [answer.json()["error"]["code"] for answer in answers if answer.status_code == 409] == [
        "idempotency_key_in_flight" for answer in answers if answer.status_code == 409
    ]
    assert count(either_client) == 1
    assert send(either_client, dataset).json()["id"] in created


def test_the_key_of_a_process_that_died_is_taken_over_and_the_dead_come_too_late(database: Database) -> None:
    def reserve() -> Reservation | Answer:
        with database.writing() as session:
            return idempotency.reserve(session, "us", "once", "print")

    dead = reserve()
    with pytest.raises(IdempotencyKeyInFlight):
        reserve()
    long_ago = now() - timedelta(seconds=ABANDONED_SECONDS + 1)
    with database.writing() as session:
        session.execute(update(IdempotencyKey).values(created_at=long_ago))
    dead = Reservation("us", "once", long_ago)

    heir = reserve()

    assert isinstance(heir, Reservation)
    with pytest.raises(IdempotencyKeyInFlight), database.writing() as session:
        idempotency.keep(session, dead, Answer(201, {"id": "of the dead"}))
    with database.writing() as session:
        idempotency.give_up(session, dead)
        idempotency.keep(session, heir, Answer(201, {"id": "of the heir"}))
    assert reserve() == Answer(201, {"id": "of the heir"})


def test_an_abandoned_key_has_one_heir(database: Database) -> None:
    with database.writing() as session:
        idempotency.reserve(session, "us", "once", "print")
        session.execute(update(IdempotencyKey).values(created_at=now() - timedelta(hours=1)))

    def inherit(_: int) -> bool:
        try:
            with database.writing() as session:
                return isinstance(idempotency.reserve(session, "us", "once", "print"), Reservation)
        except IdempotencyKeyInFlight:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(inherit, range(8))) == 1


def test_answers_are_forgotten_after_a_day(database: Database) -> None:
    with database.writing() as session:
        for key in ("new", "old"):
            idempotency.reserve(session, "us", key, "print")
        old = now() - timedelta(hours=retention.ANSWERS_KEPT_HOURS, minutes=1)
        session.execute(update(IdempotencyKey).where(IdempotencyKey.key == "old").values(created_at=old))
        retention.expire(session)
        assert list(session.scalars(select(IdempotencyKey.key))) == ["new"]


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "ключ", "a\tb"])
def test_a_key_that_is_no_name_is_refused(client: TestClient, key: str) -> None:
    headers = {"Idempotency-Key": key.encode()}
    answer = client.post(
        "/v1/jobs",
        json={"model": "m", "dataset": "d", "budgets": [0.5]},
        headers=headers,  # type: ignore[arg-type]
    )
    assert_refused(answer, 422, "invalid_parameter", "idempotency-key")
