"""Webhooks over HTTP: made, changed, tried out, looked at, and nobody else's business."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from standardwebhooks import Webhook as Verifier

from api.app import create_app
from jobs.database import Database
from jobs.keys import create_key, new_key
from jobs.settings import Settings
from jobs.webhooks import MAX_PER_TENANT
from tests.api.requests import assert_refused, create_job, upload_reviews
from tests.helpers import signed_in, wait_for
from tests.receivers import Receiver, receiver

URL = "https://example.com/hook"


@pytest.fixture
def receiving() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@pytest.fixture
def private(settings: Settings) -> Iterator[TestClient]:
    """A service that may send to this machine."""
    with TestClient(create_app(settings.model_copy(update={"allow_private_addresses": True}))) as client:
        yield signed_in(client)


def create(client: TestClient, url: str = URL, **fields: Any) -> Response:
    return client.post("/v1/webhooks", json={"url": url, **fields})


def made(client: TestClient, url: str = URL, **fields: Any) -> dict[str, Any]:
    answer = create(client, url, **fields)
    assert answer.status_code == 201, answer.text
    assert answer.headers["Location"] == f"/v1/webhooks/{answer.json()['id']}"
    return dict(answer.json())


def delivered(client: TestClient, webhook: str) -> list[dict[str, Any]]:
    """Its deliveries, once none is pending."""

    def finished() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = client.get(f"/v1/webhooks/{webhook}/deliveries").json()["data"]
        return [] if any(delivery["state"] == "pending" for delivery in found) else found

    return wait_for(finished, what="the delivery")


def test_the_secret_is_shown_once_and_never_again(client: TestClient) -> None:
    webhook = made(client, description="ours")
    secret, id = webhook.pop("secret"), webhook["id"]
    assert secret.startswith("whsec_")
    assert webhook == {
        "object": "webhook",
        "id": id,
        "url": URL,
        "events": ["*"],
        "description": "ours",
        "enabled": True,
        "failing_since": None,
        "disabled_at": None,
        "disabled_reason": None,
        "created_at": webhook["created_at"],
    }
    shown = client.get(f"/v1/webhooks/{id}")
    assert shown.json() == webhook
    assert client.get("/v1/webhooks").json()["data"] == [webhook]
    rotated = client.post(f"/v1/webhooks/{id}/rotate-secret").json()
    assert rotated.pop("secret") not in (secret, None)
    assert rotated == webhook
    changed = client.patch(f"/v1/webhooks/{id}", json={"description": "theirs"})
    for answer in (shown, changed, client.get("/v1/webhooks")):
        assert "whsec_" not in answer.text
        assert "secret" not in answer.text


def test_the_secret_is_stored_sealed(client: TestClient, settings: Settings) -> None:
    secret = made(client)["secret"]
    assert secret.encode() not in b"".join(file.read_bytes() for file in settings.data_dir.glob("jactus.db*"))


def test_a_webhook_is_changed_field_by_field(client: TestClient) -> None:
    id = made(client, events=["job.failed"], description="ours")["id"]
    changed = client.patch(f"/v1/webhooks/{id}", json={"url": f"{URL}/2"}).json()
    assert (changed["url"], changed["events"], changed["description"]) == (f"{URL}/2", ["job.failed"], "ours")
    changed = client.patch(f"/v1/webhooks/{id}", json={"events": ["*"], "description": ""}).json()
    assert (changed["url"], changed["events"], changed["description"]) == (f"{URL}/2", ["*"], "")
    disabled = client.patch(f"/v1/webhooks/{id}", json={"enabled": False}).json()
    assert disabled["enabled"] is False
    assert disabled["disabled_reason"]
    assert_refused(client.post(f"/v1/webhooks/{id}/test"), 409, "invalid_state", said="enable")
    assert client.patch(f"/v1/webhooks/{id}", json={"enabled": True}).json()["enabled"] is True
    assert client.get(f"/v1/webhooks/{id}").json()["disabled_at"] is None


def test_a_deleted_webhook_is_gone(client: TestClient) -> None:
    id = made(client)["id"]
    assert client.delete(f"/v1/webhooks/{id}").status_code == 204
    assert_refused(client.delete(f"/v1/webhooks/{id}"), 404, "webhook_not_found")
    assert client.get("/v1/webhooks").json()["data"] == []


def test_webhooks_come_in_pages_newest_first(client: TestClient) -> None:
    ids = sorted((made(client)["id"] for _ in range(3)), reverse=True)
    page = client.get("/v1/webhooks", params={"limit": 2}).json()
    assert ([webhook["id"] for webhook in page["data"]], page["has_more"]) == (ids[:2], True)
    rest = client.get("/v1/webhooks", params={"after": ids[1]}).json()
    assert ([webhook["id"] for webhook in rest["data"]], rest["has_more"]) == (ids[2:], False)


def test_a_tenant_has_a_bounded_number_of_webhooks(client: TestClient) -> None:
    for _ in range(MAX_PER_TENANT):
        made(client)
    assert_refused(create(client), 409, "too_many_webhooks", said="delete one")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"url": "http://example.com"}, "unsafe_address", "url"),
        ({"url": "https://127.1/"}, "unsafe_address", "url"),
        ({"url": "https://[::ffff:127.0.0.1]/"}, "unsafe_address", "url"),
        ({"url": "https://localhost/"}, "unsafe_address", "url"),
        ({"url": "https://169.254.169.254/latest/meta-data"}, "unsafe_address", "url"),
        ({"url": "https://me:secret@example.com/"}, "unsafe_address", "url"),
        ({"url": "https://example.com/\u0000"}, "unsafe_address", "url"),
        ({"url": "x" * 3000}, "invalid_parameter", "url"),
        ({"url": None}, "invalid_parameter", "url"),
        ({"events": []}, "invalid_parameter", "events"),
        ({"description": "\u0000"}, "invalid_parameter", "description"),
        ({"colour": "red"}, "invalid_parameter", "colour"),
    ],
)
def test_what_makes_no_webhook_is_refused_by_name(
    client: TestClient, fields: dict[str, Any], code: str, param: str
) -> None:
    assert_refused(create(client, **{"url": URL, **fields}), 422, code, param)
    if fields != {"url": None}:  # which there means: as it is
        assert_refused(client.patch(f"/v1/webhooks/{made(client)['id']}", json=fields), 422, code, param)


def test_an_unknown_event_is_refused(client: TestClient) -> None:
    assert create(client, events=["job.exploded"]).json()["error"]["param"].startswith("events")


def test_a_jobs_life_is_told_to_a_real_receiver(private: TestClient, receiving: Receiver) -> None:
    webhook = made(private, receiving.url, events=["job.queued", "job.cancelled"])
    job = create_job(private, upload_reviews(private)).json()["id"]
    private.post(f"/v1/jobs/{job}/cancel")
    deliveries = delivered(private, webhook["id"])
    assert {delivery["event"] for delivery in deliveries} == {"job.queued", "job.cancelled"}
    assert {delivery["state"] for delivery in deliveries} == {"delivered"}
    messages = [Verifier(webhook["secret"]).verify(body, headers) for _, headers, body in receiving.requests]
    assert {(message["type"], message["data"]["id"]) for message in messages} == {
        ("job.queued", job),
        ("job.cancelled", job),
    }


def test_a_test_is_sent_whatever_the_webhook_wants_and_can_be_sent_again(
    private: TestClient, receiving: Receiver
) -> None:
    receiving.answers = [410, 204, 204]
    id = made(private, receiving.url, events=["job.failed"])["id"]
    answer = private.post(f"/v1/webhooks/{id}/test")
    assert answer.status_code == 202
    assert (answer.json()["event"], answer.json()["state"]) == ("webhook.test", "pending")
    [failed] = delivered(private, id)
    assert failed["id"] == answer.json()["id"]
    assert (failed["state"], failed["attempts"], failed["last_status"]) == ("failed", 1, 410)
    assert private.get(f"/v1/webhooks/{id}").json()["enabled"] is False
    again = f"/v1/webhooks/{id}/deliveries/{failed['id']}/redeliver"
    assert_refused(private.post(again), 409, "invalid_state", said="enable")
    private.patch(f"/v1/webhooks/{id}", json={"enabled": True})
    assert private.post(again).status_code == 202
    [done] = delivered(private, id)
    assert (done["id"], done["state"], done["attempts"], done["last_status"]) == (failed["id"], "delivered", 1, 204)
    assert receiving.ids == [failed["id"]] * 2


def test_deliveries_come_in_pages_newest_first(client: TestClient) -> None:
    id = made(client)["id"]
    ids = sorted((client.post(f"/v1/webhooks/{id}/test").json()["id"] for _ in range(3)), reverse=True)
    page = client.get(f"/v1/webhooks/{id}/deliveries", params={"limit": 2}).json()
    assert ([delivery["id"] for delivery in page["data"]], page["has_more"]) == (ids[:2], True)
    rest = client.get(f"/v1/webhooks/{id}/deliveries", params={"after": ids[1]}).json()
    assert ([delivery["id"] for delivery in rest["data"]], rest["has_more"]) == (ids[2:], False)


def test_another_tenants_webhook_does_not_exist(client: TestClient, settings: Settings) -> None:
    id, other = made(client)["id"], made(client)["id"]
    delivery = client.post(f"/v1/webhooks/{id}/test").json()["id"]
    wrong_webhook = client.post(f"/v1/webhooks/{other}/deliveries/{delivery}/redeliver")
    assert_refused(wrong_webhook, 404, "delivery_not_found")
    database, key = Database(settings.database_url), new_key()
    with database.writing() as session:
        create_key(session, key, settings.secret_key.get_secret_value(), "them")
    database.close()
    signed_in(client, key)
    assert client.get("/v1/webhooks").json()["data"] == []
    for method, path in [
        *(("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate-secret"), ("POST", "/test")),
        *(("GET", "/deliveries"), ("POST", f"/deliveries/{delivery}/redeliver")),
    ]:
        body = {"json": {"description": "mine"}} if method == "PATCH" else {}
        assert_refused(client.request(method, f"/v1/webhooks/{id}{path}", **body), 404, "webhook_not_found")  # type: ignore[arg-type]
    signed_in(client)
    assert client.get(f"/v1/webhooks/{id}").json()["description"] == ""


def test_a_key_that_may_only_read_changes_nothing(client: TestClient, settings: Settings) -> None:
    id, key, database = made(client)["id"], new_key(), Database(settings.database_url)
    with database.writing() as session:
        create_key(session, key, settings.secret_key.get_secret_value(), scopes=("read",))
    database.close()
    signed_in(client, key)
    assert client.get(f"/v1/webhooks/{id}").status_code == 200
    assert_refused(create(client), 403, "missing_scope")
    assert_refused(client.post(f"/v1/webhooks/{id}/rotate-secret"), 403, "missing_scope")
