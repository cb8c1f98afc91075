"""Stored secrets: used by name, and shown nowhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import select

from jobs import secrets
from jobs.database import Database
from jobs.errors import NotFound
from jobs.keys import create_key, new_key
from jobs.settings import Settings
from jobs.tables import Secret
from tests.api.requests import assert_refused, create_job, upload_reviews
from tests.helpers import TENANT, signed_in

TOKEN = "hf_never-to-be-seen"  # noqa: S105 - it opens nothing
NAMED = {"secret": "hub"}


def put(client: TestClient, name: str = "hub", value: Any = TOKEN, **more: Any) -> Any:
    return client.post("/v1/secrets", json={"name": name, "value": value, **more})


def test_a_secret_is_listed_by_name_replaced_and_deleted(client: TestClient, settings: Settings) -> None:
    assert put(client, "other").status_code == put(client).status_code == put(client, value="hf_new").status_code == 201
    page = client.get("/v1/secrets").json()
    assert [set(entry) for entry in page["data"]] == [{"object", "name", "created_at"}] * 2
    assert [entry["name"] for entry in page["data"]] == ["hub", "other"]
    assert client.get("/v1/secrets", params={"after": "hub"}).json()["data"] == page["data"][1:]

    database = Database(settings.database_url)
    with database.reading() as session:
        assert secrets.reveal(session, settings, TENANT, "hub") == "hf_new"
    database.close()
    assert client.delete("/v1/secrets/hub").status_code == 204
    assert_refused(client.delete("/v1/secrets/hub"), 404, "secret_not_found", None, "hub")
    assert [entry["name"] for entry in client.get("/v1/secrets").json()["data"]] == ["other"]


def test_the_value_is_in_no_answer_no_log_and_not_in_the_database(
    client: TestClient, settings: Settings, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    bodies: list[Any] = [
        {"name": "hub", "value": TOKEN},
        {"name": "hub", "value": TOKEN + " and more"},
        {"name": "hub", "value": [TOKEN]},
        {"name": "hub", "value": {"token": TOKEN}},
        {"name": "hub", "valeu": TOKEN},
        {"name": "hub", "value": TOKEN, "more": TOKEN},
        {"name": TOKEN + " ", "value": "x"},
        {"value": TOKEN},
        [TOKEN],
        TOKEN,
    ]
    answers = [client.post("/v1/secrets", json=body) for body in bodies]
    assert [answer.status_code for answer in answers] == [201] + [422] * 9
    broken = client.post("/v1/secrets", content=f'{{"value": "{TOKEN}', headers={"Content-Type": "application/json"})
    assert_refused(broken, 422, "invalid_parameter")
    job = create_job(client, upload_reviews(client), **NAMED)
    assert job.status_code == 201
    unknown = create_job(client, job.json()["dataset"], model="nobody/nothing", **NAMED)

    output = capfd.readouterr()
    said = [answer.text for answer in (*answers, broken, job, unknown, client.get("/v1/secrets"))]
    assert TOKEN not in "".join([*said, caplog.text, output.out, output.err])
    file = Path(settings.database_url.removeprefix("sqlite:///"))
    kept = b"".join(part.read_bytes() for part in file.parent.glob(f"{file.name}*"))
    assert b"hub" in kept
    assert TOKEN.encode() not in kept


def test_another_tenants_secret_does_not_exist(client: TestClient, settings: Settings) -> None:
    put(client)
    database, key = Database(settings.database_url), new_key()
    with database.writing() as session:
        create_key(session, key, settings.secret_key.get_secret_value(), "them")
    database.close()
    signed_in(client, key)
    assert client.get("/v1/secrets").json()["data"] == []
    assert_refused(client.delete("/v1/secrets/hub"), 404, "secret_not_found")
    refused = create_job(client, upload_reviews(client), **NAMED)
    assert_refused(refused, 404, "secret_not_found", "secret", "hub")


def test_a_secret_sealed_under_another_key_is_refused_with_the_remedy(client: TestClient, settings: Settings) -> None:
    put(client)
    moved = settings.model_copy(update={"secret_key": SecretStr("another secret")})
    database = Database(settings.database_url)
    with database.reading() as session:
        with pytest.raises(secrets.UnreadableSecret, match="another JACTUS_SECRET_KEY; store it again"):
            secrets.reveal(session, moved, TENANT, "hub")
        with pytest.raises(NotFound):
            secrets.reveal(session, settings, TENANT, "nothing")
    database.close()


def test_secrets_are_sealed_on_both_databases(database: Database, settings: Settings) -> None:
    for value in ("first", TOKEN):
        with database.writing() as session:
            secrets.put(session, settings, TENANT, "hub", value)
    with database.reading() as session:
        [stored] = session.scalars(select(Secret))
        assert TOKEN not in stored.sealed
        assert secrets.reveal(session, settings, TENANT, "hub") == TOKEN


@pytest.mark.parametrize("name", ["", "a b", "a/b", "x" * 65, "naïve"])
def test_a_name_that_no_path_can_hold_is_refused(client: TestClient, name: str) -> None:
    assert_refused(put(client, name), 422, "invalid_parameter", "name")


@pytest.mark.parametrize("value", ["", "x" * 4097, "two words", "line\nbreak", "naïve"])
def test_a_value_that_was_not_copied_whole_is_refused(client: TestClient, value: str) -> None:
    assert_refused(put(client, value=value), 422, "invalid_parameter", "value")
