"""What a key may take up, as its owner meets it."""

from __future__ import annotations

import logging

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from sqlalchemy import event

from api.app import create_app
from jobs import limits
from jobs.keys import Caller
from jobs.services import Services
from jobs.settings import Settings
from tests.api.requests import assert_refused, create_job, make_key, upload, upload_reviews
from tests.helpers import NOBODY_LISTENS, signed_in


def assert_limited(answer: Response, code: str, said: str) -> None:
    assert_refused(answer, 429, code, None, said)
    assert int(answer.headers["Retry-After"]) > 0


def test_a_key_s_waiting_jobs_are_limited_and_a_cancelled_one_makes_room(
    either_client: TestClient, either_settings: Settings
) -> None:
    client = signed_in(either_client, make_key(either_settings, max_queued_jobs=2))
    dataset = upload_reviews(client)
    first = create_job(client, dataset).json()["id"]
    assert create_job(client, dataset).status_code == 201
    assert_limited(create_job(client, dataset), "too_many_queued_jobs", "2 jobs")
    client.post(f"/v1/jobs/{first}/cancel")
    assert create_job(client, dataset).status_code == 201
    assert_limited(client.post(f"/v1/jobs/{first}/retry"), "too_many_queued_jobs", "2 jobs")
    signed_in(client)
    assert create_job(client, dataset).status_code == 201, "another key of the same tenant has its own limit"


def test_a_key_without_limits_of_its_own_has_those_of_the_settings(settings: Settings) -> None:
    strict = settings.model_copy(update={"max_queued_jobs": 1})
    with TestClient(create_app(strict)) as client:
        dataset = upload_reviews(signed_in(client))
        assert create_job(client, dataset).status_code == 201
        assert_limited(create_job(client, dataset), "too_many_queued_jobs", "1 jobs")
        signed_in(client, make_key(strict, max_queued_jobs=0))
        assert [create_job(client, dataset).status_code for _ in range(3)] == [201] * 3


def test_a_full_key_keeps_nothing_more(either_client: TestClient, either_settings: Settings) -> None:
    content = b"text,label\none,good\ntwo,bad\n"
    client = signed_in(either_client, make_key(either_settings, max_storage_bytes=len(content)))
    kept = upload(client, content, "one.csv")
    assert kept.status_code == 201
    assert_limited(upload(client, content, "two.csv"), "storage_limit_reached", str(len(content)))
    assert_limited(create_job(client, kept.json()["id"]), "storage_limit_reached", "delete")
    objects = [path for path in (either_settings.data_dir / "storage").rglob("*") if path.is_file()]
    assert len(objects) == 1
    client.delete(f"/v1/datasets/{kept.json()['id']}")
    assert upload(client, content, "two.csv").status_code == 201


def test_requests_are_limited_per_key_and_minute(client: TestClient, settings: Settings) -> None:
    signed_in(client, make_key(settings, max_requests_per_minute=3))
    assert [client.get("/v1/jobs").status_code for _ in range(3)] == [200] * 3
    answer = client.get("/v1/jobs")
    assert_limited(answer, "rate_limited", "3 requests")
    assert int(answer.headers["Retry-After"]) <= 60
    assert signed_in(client).get("/v1/jobs").status_code == 200


def test_requests_pass_uncounted_while_the_broker_is_away(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    lonely = settings.model_copy(update={"broker_url": NOBODY_LISTENS, "sweep_seconds": 1000})
    with TestClient(create_app(lonely)) as client, caplog.at_level(logging.WARNING, "api.gate"):
        signed_in(client, make_key(lonely, max_requests_per_minute=1))
        assert [client.get("/v1/jobs").status_code for _ in range(5)] == [200] * 5
    assert [record.name for record in caplog.records if "not counted" in record.message] == ["api.gate"]


def test_a_check_costs_one_query_or_none(services: Services) -> None:
    asked: list[str] = []
    with services.database.reading() as session:
        event.listen(session.get_bind(), "before_cursor_execute", lambda *given: asked.append(given[2]))
        for own, queries in (({"max_queued_jobs": 0}, 0), ({}, 1), ({"max_storage_bytes": 5}, 1)):
            asked.clear()
            limits.check_new_job(session, Caller("us", "key_1", limits=own), services.settings)
            assert len([statement for statement in asked if statement != "BEGIN"]) == queries
