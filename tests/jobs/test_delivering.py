"""Sending to real receivers: signed, once, again after failures, and nowhere it must not go."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from sqlalchemy import update
from standardwebhooks import Webhook as Verifier

from jobs import deliveries, schemas, webhooks
from jobs.addresses import Resolver, safe_addresses
from jobs.clock import now
from jobs.delivering import Sender
from jobs.services import Services
from jobs.settings import Settings
from jobs.tables import Delivery, Webhook
from jobs.vault import Vault
from tests.helpers import TENANT
from tests.receivers import Receiver, receiver

HOST = "hooks.example.com"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"allow_private_addresses": True})


@pytest.fixture
def receiving() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


def add_webhook(services: Services, url: str) -> tuple[str, str]:
    """Id and secret."""
    vault = Vault.of(services.settings)
    with services.database.writing() as session:
        webhook, secret = webhooks.create(session, TENANT, schemas.WebhookCreate(url=url), vault)
    return webhook.id, secret


def add_test(services: Services, webhook: str) -> str:
    with services.database.writing() as session:
        return deliveries.add_test(session, session.get_one(Webhook, webhook)).id


def post(services: Services, url: str, **how: Any) -> Delivery:
    """What came of one attempt to send one message."""
    id = add_test(services, add_webhook(services, url)[0])
    send(services, **how)
    return get(services, id)


def send(services: Services, **how: Any) -> None:
    asyncio.run(Sender(services, **how).send_due())


def changed(services: Services, **settings: Any) -> Services:
    return replace(services, settings=services.settings.model_copy(update=settings))


def get(services: Services, id: str) -> Delivery:
    with services.database.reading() as session:
        return session.get_one(Delivery, id)


def make_due(services: Services, id: str) -> None:
    with services.database.writing() as session:
        session.execute(update(Delivery).where(Delivery.id == id).values(next_at=now() - timedelta(seconds=1)))


def leading_to(*addresses: str) -> Resolver:
    """A resolver that gives one answer after the other, the last one for ever."""
    answers = list(addresses)

    async def resolve_so(host: str, port: int) -> list[str]:
        return [answers.pop(0) if len(answers) > 1 else answers[0]]

    return resolve_so


def test_a_message_arrives_signed_and_whole(services: Services, receiving: Receiver) -> None:
    webhook, secret = add_webhook(services, f"{receiving.url}?key=1")
    id = add_test(services, webhook)
    send(services)
    [(path, headers, body)] = receiving.requests
    assert path == "/hook?key=1"
    assert headers["webhook-id"] == id
    assert headers["content-type"] == "application/json"
    assert headers["host"] == f"127.0.0.1:{receiving.port}"
    assert Verifier(secret).verify(body, headers) == get(services, id).payload
    assert json.loads(body)["type"] == "webhook.test"
    done = get(services, id)
    assert (done.state, done.attempts, done.last_status, done.last_error) == ("delivered", 1, 204, None)
    assert done.next_at is None


def test_a_failure_is_retried_under_the_same_id_and_signed_anew(services: Services, receiving: Receiver) -> None:
    receiving.answers = [500]
    webhook, secret = add_webhook(services, receiving.url)
    id = add_test(services, webhook)
    send(services)
    failed = get(services, id)
    assert (failed.state, failed.last_status, failed.last_error) == ("pending", 500, "It answered 500.")
    make_due(services, id)
    send(services)
    assert receiving.ids == [id, id]
    for _, headers, body in receiving.requests:
        Verifier(secret).verify(body, headers)
    assert get(services, id).state == "delivered"


def test_a_rotated_secret_signs_what_is_sent_from_then_on(services: Services, receiving: Receiver) -> None:
    webhook, _ = add_webhook(services, receiving.url)
    add_test(services, webhook)
    with services.database.writing() as session:
        vault = Vault.of(services.settings)
        secret = webhooks.rotate_secret(session.get_one(Webhook, webhook), vault)
    send(services)
    [(_, headers, body)] = receiving.requests
    Verifier(secret).verify(body, headers)


def test_a_message_is_sent_once_however_many_senders_run(services: Services, receiving: Receiver) -> None:
    ids = sorted(add_test(services, add_webhook(services, receiving.url)[0]) for _ in range(10))

    async def race() -> None:
        await asyncio.gather(*(Sender(services).send_due() for _ in range(4)))

    asyncio.run(race())
    assert sorted(receiving.ids) == ids


def test_what_a_killed_sender_had_claimed_is_sent_by_another(services: Services, receiving: Receiver) -> None:
    id = add_test(services, add_webhook(services, receiving.url)[0])
    with services.database.writing() as session:
        assert deliveries.claim(session, id, 30) is not None
    send(services)
    assert receiving.ids == [], "the lease still holds"
    make_due(services, id)
    send(services)
    assert receiving.ids == [id]
    assert get(services, id).state == "delivered"


def test_a_redirect_is_not_followed(services: Services, receiving: Receiver) -> None:
    with receiver() as elsewhere:
        receiving.answers, receiving.answer_headers = [307], {"Location": elsewhere.url}
        sent = post(services, receiving.url)
        assert (sent.state, sent.last_status) == ("pending", 307)
        assert "redirects are not followed" in (sent.last_error or "")
        assert elsewhere.requests == []


def test_an_answer_that_trickles_in_is_not_waited_for(services: Services, receiving: Receiver) -> None:
    over = threading.Event()

    def trickle(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not over.wait(0.02):
            handler.wfile.write(b"X: x\r\n")

    receiving.before_answer = trickle
    sent = post(changed(services, webhook_timeout_seconds=0.5), receiving.url)
    over.set()
    assert (sent.state, sent.last_status) == ("pending", None)
    assert sent.last_error == "There was no answer within 0.5 seconds."


def test_the_body_of_an_answer_is_not_read(services: Services, receiving: Receiver) -> None:
    over = threading.Event()

    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nx")
        over.wait(60)

    receiving.before_answer = endless
    assert post(services, receiving.url).state == "delivered"
    over.set()


def test_a_slow_webhook_delays_nobody_else(services: Services, receiving: Receiver) -> None:
    with receiver() as slow:
        other_was_served = threading.Event()

        def wait(_: BaseHTTPRequestHandler) -> None:
            other_was_served.wait(60)

        slow.before_answer = wait
        receiving.before_answer = lambda _: other_was_served.set()
        slow_id = add_test(services, add_webhook(services, slow.url)[0])
        for _ in range(3):
            add_test(services, add_webhook(services, receiving.url)[0])
        send(services)
        assert len(receiving.requests) == 3
        assert get(services, slow_id).state == "delivered", "it was still under way when the others were served"


def test_a_receiver_that_is_away_is_a_failure_with_a_reason(services: Services) -> None:
    with receiver() as gone:
        url = gone.url
    sent = post(services, url)
    assert (sent.state, sent.last_status) == ("pending", None)
    assert (sent.last_error or "").startswith("The request failed: ")


def test_a_name_that_leads_nowhere_is_a_failure_with_a_reason(services: Services) -> None:
    async def nowhere(host: str, port: int) -> list[str]:
        raise OSError("Name or service not known")

    assert post(services, f"http://{HOST}", resolve=nowhere).last_error == (
        "The request failed: Name or service not known."
    )


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 x\r\n\r\n", b"\x00" * 200_000])
def test_an_answer_that_is_no_http_is_a_failure_with_a_reason(
    services: Services, receiving: Receiver, answer: bytes
) -> None:
    def babble(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(answer)
        raise ConnectionAbortedError

    receiving.before_answer = babble
    sent = post(services, receiving.url)
    assert (sent.state, sent.last_status) == ("pending", None)
    assert (sent.last_error or "").startswith("The request failed: ")


def test_the_next_address_is_tried_when_one_does_not_answer(services: Services, receiving: Receiver) -> None:
    async def two(host: str, port: int) -> list[str]:
        return ["127.0.0.2", "127.0.0.1"]

    assert post(services, f"http://{HOST}:{receiving.port}", resolve=two).state == "delivered"
    assert receiving.requests[0][1]["host"] == f"{HOST}:{receiving.port}"


def test_no_proxy_of_the_environment_is_used(
    services: Services, receiving: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert post(services, receiving.url).state == "delivered"


def test_a_name_that_turns_private_after_it_was_accepted_is_not_sent_to(
    services: Services, receiving: Receiver
) -> None:
    url, rebinding = f"https://{HOST}:{receiving.port}/hook", leading_to("93.184.216.34", "127.0.0.1")
    assert asyncio.run(safe_addresses(httpx2.URL(url), False, rebinding)) == ["93.184.216.34"]
    sent = post(changed(services, allow_private_addresses=False), url, resolve=rebinding)
    assert sent.state == "pending"
    assert sent.last_error == f"'{HOST}' leads to an address that is not public."
    assert receiving.requests == []


def test_the_connection_goes_to_the_address_that_was_checked(services: Services, receiving: Receiver) -> None:
    """The name is resolved once per attempt; nobody gets to answer a second time."""
    asked: list[str] = []

    async def count(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    assert post(services, f"http://{HOST}:{receiving.port}", resolve=count).state == "delivered"
    assert asked == [HOST]


@pytest.mark.parametrize(
    ("url", "said"),
    [("https://localhost/", "public"), ("https://127.0.0.1/", "public"), ("http://example.com/", "https://")],
)
def test_what_was_allowed_once_is_checked_again_when_it_is_sent(services: Services, url: str, said: str) -> None:
    sent = post(changed(services, allow_private_addresses=False), url)
    assert (sent.state, sent.last_status) == ("pending", None)
    assert said in (sent.last_error or "")


@pytest.mark.parametrize(("certified", "state"), [(HOST, "delivered"), ("other.example.com", "pending")])
def test_the_certificate_must_be_that_of_the_name_not_of_the_address(
    services: Services, tmp_path: Path, certified: str, state: str
) -> None:
    server, client = certificate(tmp_path, certified)
    with receiver(server) as secure:
        url = f"https://{HOST}:{secure.port}/hook"
        sent = post(services, url, resolve=leading_to("127.0.0.1"), tls=client)
        assert sent.state == state
        assert len(secure.requests) == (1 if state == "delivered" else 0)
        if state == "pending":
            assert "certificate" in (sent.last_error or "").lower()


def test_a_certificate_of_nobody_known_is_refused(services: Services, tmp_path: Path) -> None:
    server, _ = certificate(tmp_path, HOST)
    with receiver(server) as secure:
        sent = post(services, f"https://{HOST}:{secure.port}/hook", resolve=leading_to("127.0.0.1"))
        assert (sent.state, secure.requests) == ("pending", [])
        assert "certificate" in (sent.last_error or "").lower()


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS of a server with a certificate for `name`, and of a client that trusts its maker."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject, moment = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(moment - timedelta(hours=1))
        .not_valid_after(moment + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    form = serialization.Encoding.PEM
    private = key.private_bytes(form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = folder / "certificate.pem"
    file.write_bytes(private + made.public_bytes(form))
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=str(file))
    server.load_cert_chain(file)
    return server, client
