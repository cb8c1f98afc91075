"""Keys over HTTP: made, shown once, limited, changed and revoked."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi.testclient import TestClient

from jobs.keys import CONFIGURED
from jobs.settings import Settings
from tests.api.requests import assert_refused, create_job, make_key, upload_reviews
from tests.helpers import signed_in


def make(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/keys", json={"tenant": "them", **fields})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def test_a_key_is_shown_once_and_opens_its_tenant(client: TestClient) -> None:
    made = make(client, name="of the pipeline", scopes=["read"], limits={"max_queued_jobs": 5})
    key = made.pop("key")
    [listed] = [key for key in client.get("/v1/keys").json()["data"] if key["id"] == made["id"]]
    assert listed == made
    assert (made["tenant"], made["name"], made["scopes"], made["hint"]) == (
        "them",
        "of the pipeline",
        ["read"],
        key[-4:],
    )
    assert made["limits"]["max_queued_jobs"] == 5
    assert made["limits"]["max_running_jobs"] is None
    assert client.get("/v1/keys").text.count(key) == 0
    assert signed_in(client, key).get("/v1/jobs").status_code == 200


def test_a_revoked_key_opens_nothing(client: TestClient) -> None:
    made = make(client)
    admin = client.headers["Authorization"]
    assert signed_in(client, made["key"]).get("/v1/jobs").status_code == 200, "so that it is remembered"
    client.headers["Authorization"] = admin
    answers = [client.delete(f"/v1/keys/{made['id']}") for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    assert answers[0].json()["revoked_at"] is not None
    assert_refused(client.patch(f"/v1/keys/{made['id']}", json={"name": "x"}), 409, "invalid_state", None, "revoked")
    assert_refused(signed_in(client, made["key"]).get("/v1/jobs"), 401, "invalid_api_key")


def test_a_change_touches_what_it_names_and_holds_at_once(client: TestClient) -> None:
    made = make(client, name="before", limits={"max_queued_jobs": 5})
    renamed = client.patch(f"/v1/keys/{made['id']}", json={"name": "after"}).json()
    assert (renamed["name"], renamed["limits"]["max_queued_jobs"]) == ("after", 5)
    client.patch(f"/v1/keys/{made['id']}", json={"limits": {"max_running_jobs": 2}})
    limits = signed_in(client, made["key"]).get("/v1/keys/me").json()["limits"]
    assert (limits["max_queued_jobs"], limits["max_running_jobs"]) == (1000, 2)


def test_a_key_tells_its_owner_what_it_takes_up(client: TestClient, settings: Settings) -> None:
    signed_in(client, make_key(settings, "them", ("write",), max_storage_bytes=10**6))
    before = client.get("/v1/keys/me").json()
    create_job(client, upload_reviews(client))
    after = client.get("/v1/keys/me").json()
    assert before["usage"] == {"queued_jobs": 0, "running_jobs": 0, "storage_bytes": 0}
    assert (after["usage"]["queued_jobs"], after["usage"]["running_jobs"]) == (1, 0)
    assert after["usage"]["storage_bytes"] > 0
    assert "key" not in after
    assert after["limits"] == {
        "max_queued_jobs": settings.max_queued_jobs,
        "max_running_jobs": 0,
        "max_storage_bytes": 10**6,
        "max_requests_per_minute": 0,
    }


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_the_key_of_the_settings_is_changed_there_only(client: TestClient, method: str) -> None:
    answer = client.request(method, f"/v1/keys/{CONFIGURED}", json={"name": "x"})
    assert_refused(answer, 409, "invalid_state", None, "JACTUS_API_KEY")
    assert client.get("/v1/keys/me").json()["id"] == CONFIGURED


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_an_unknown_key_is_not_found(client: TestClient, method: str) -> None:
    assert_refused(client.request(method, "/v1/keys/key_1", json={}), 404, "key_not_found", None, "key_1")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tenant": ""}, "tenant"),
        ({"tenant": "a\nb"}, "tenant"),
        ({"name": "a\x00b"}, "name"),
        ({"scopes": []}, "scopes"),
        ({"scopes": ["all"]}, "scopes.0"),
        ({"limits": {"max_queued_jobs": -1}}, "limits.max_queued_jobs"),
        ({"limits": {"max_storage_bytes": 2**63}}, "limits.max_storage_bytes"),
        ({"limits": {"max_fun": 1}}, "limits.max_fun"),
        ({"admin": True}, "admin"),
    ],
    ids=str,
)
def test_a_key_that_makes_no_sense_is_refused(client: TestClient, fields: dict[str, Any], param: str) -> None:
    answer = client.post("/v1/keys", json={"tenant": "them", **fields})
    assert_refused(answer, 422, "invalid_parameter", param, param)
