"""The outbox in the database: nothing lost, nothing sent twice at once, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text, update

from jactus_core.errors import JactusError
from jobs import deliveries, leases, retention, schemas, store, webhooks
from jobs.clock import id_at, new_id, now
from jobs.database import Database
from jobs.deliveries import RETRY_SECONDS, Claim
from jobs.errors import WrongState
from jobs.states import Status
from jobs.tables import Dataset, Delivery, Webhook
from jobs.vault import Vault
from tests.helpers import TENANT, add_dataset, add_job, get_job, wait_for

THREADS = 8
DISABLE_HOURS = 120
BLOCKED = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture
def dataset(database: Database, tmp_path: Path) -> Dataset:
    return add_dataset(database, tmp_path)


@pytest.fixture
def webhook(database: Database) -> str:
    return add_webhook(database)


def add_webhook(database: Database, *events: str, tenant: str = TENANT) -> str:
    request = schemas.WebhookCreate.model_validate({"url": "https://example.com/hook", "events": events or ("*",)})
    with database.writing() as session:
        return webhooks.create(session, tenant, request, Vault("secret"))[0].id


def add_test(database: Database, webhook: str) -> str:
    with database.writing() as session:
        return deliveries.add_test(session, session.get_one(Webhook, webhook)).id


def get(database: Database, id: str) -> Delivery:
    with database.reading() as session:
        return session.get_one(Delivery, id)


def get_webhook(database: Database, id: str) -> Webhook:
    with database.reading() as session:
        return session.get_one(Webhook, id)


def told(database: Database, webhook: str) -> list[str]:
    """Types of the events, in order."""
    with database.reading() as session:
        mine = select(Delivery.event).where(Delivery.webhook_id == webhook)
        return list(session.scalars(mine.order_by(Delivery.created_at)))


def claim(database: Database, id: str, lease_seconds: float = 30) -> Claim:
    with database.writing() as session:
        claimed = deliveries.claim(session, id, lease_seconds)
    assert claimed is not None
    return claimed


def fail(database: Database, claimed: Claim, status: int | None = 500) -> None:
    with database.writing() as session:
        deliveries.refused(session, claimed, status, f"It answered {status}.", DISABLE_HOURS)


def accept(database: Database, claimed: Claim) -> None:
    with database.writing() as session:
        deliveries.accepted(session, claimed, 200)


def alter(database: Database, table: type[Any], which: str, **values: Any) -> None:
    with database.writing() as session:
        session.execute(update(table).where(table.id == which).values(**values))


def make_due(database: Database, id: str) -> None:
    alter(database, Delivery, id, next_at=now() - timedelta(seconds=1))


def test_every_status_of_a_job_is_told(database: Database, dataset: Dataset, webhook: str) -> None:
    id = add_job(database, dataset)
    with database.writing() as session:
        lease = leases.claim(session, id, 30)
    assert lease is not None
    with database.writing() as session:
        leases.fail(session, lease, JactusError("no"))
    with database.writing() as session:
        store.retry(session, store.find(session, TENANT, id))
    with database.writing() as session:
        store.request_cancel(session, store.find(session, TENANT, id))
    assert told(database, webhook) == ["job.queued", "job.running", "job.failed", "job.queued", "job.cancelled"]


def test_the_message_is_thin(database: Database, dataset: Dataset, webhook: str) -> None:
    id = add_job(database, dataset)
    with database.reading() as session:
        [payload] = session.scalars(select(Delivery.payload))
    assert payload.pop("timestamp").endswith("Z")
    assert payload == {"type": "job.queued", "data": {"id": id, "status": "queued"}}


def test_a_webhook_is_told_of_what_it_wants_by_its_tenant_while_it_is_enabled(
    database: Database, dataset: Dataset
) -> None:
    wants = add_webhook(database, "job.cancelled", "job.failed")
    others = [add_webhook(database, "job.running"), add_webhook(database, tenant="them"), add_webhook(database)]
    with database.writing() as session:
        webhooks.disable(session, session.get_one(Webhook, others[-1]), "no more")
    id = add_job(database, dataset)
    with database.writing() as session:
        store.request_cancel(session, store.find(session, TENANT, id))
    assert told(database, wants) == ["job.cancelled"]
    assert [told(database, other) for other in others] == [[], [], []]


def test_what_is_rolled_back_is_not_told(database: Database, dataset: Dataset, webhook: str) -> None:
    id = add_job(database, dataset)
    with database.writing() as session:
        store.request_cancel(session, store.find(session, TENANT, id))
        session.rollback()
    assert told(database, webhook) == ["job.queued"]


def test_every_event_is_known_to_the_contract(database: Database) -> None:
    schemas.WebhookCreate.model_validate({"url": "u", "events": [f"job.{status}" for status in Status]})


def test_a_delivery_is_claimed_once_however_many_senders_want_it(database: Database, webhook: str) -> None:
    id = add_test(database, webhook)
    start = threading.Barrier(THREADS)

    def take(_: int) -> Claim | None:
        start.wait()
        with database.writing() as session:
            return deliveries.claim(session, id, 30)

    with ThreadPoolExecutor(THREADS) as pool:
        claims = list(pool.map(take, range(THREADS)))
    assert sum(claimed is not None for claimed in claims) == 1
    assert get(database, id).attempts == 1


def test_what_a_dead_sender_held_is_due_again_when_its_lease_has_run_out(database: Database, webhook: str) -> None:
    id = add_test(database, webhook)
    dead = claim(database, id)
    with database.reading() as session:
        assert deliveries.due(session, [], 10) == []
    make_due(database, id)
    with database.reading() as session:
        assert deliveries.due(session, [], 10) == [(webhook, id)]
    second = claim(database, id)
    fail(database, dead)
    assert get(database, id).next_at == second.leased_until, "the dead sender has nothing to say"
    accept(database, second)
    assert get(database, id).state == "delivered"


def test_each_webhook_gets_its_oldest_delivery_first_and_a_busy_one_none(database: Database) -> None:
    slow, other = add_webhook(database), add_webhook(database)
    waiting = {webhook: sorted(add_test(database, webhook) for _ in range(3)) for webhook in (slow, other)}
    with database.reading() as session:
        assert sorted(deliveries.due(session, [], 10)) == [(slow, waiting[slow][0]), (other, waiting[other][0])]
        assert deliveries.due(session, [slow], 10) == [(other, waiting[other][0])]
        assert len(deliveries.due(session, [], 1)) == 1


def test_failures_are_retried_at_growing_pauses_and_then_given_up(database: Database, webhook: str) -> None:
    id = add_test(database, webhook)
    for seconds in RETRY_SECONDS:
        moment = now()
        fail(database, claim(database, id))
        failed = get(database, id)
        assert (failed.state, failed.last_status, failed.finished_at) == ("pending", 500, None)
        assert failed.next_at is not None
        assert 0.8 * seconds <= (failed.next_at - moment).total_seconds() < 1.2 * seconds + 10
        make_due(database, id)
    fail(database, claim(database, id), None)
    over = get(database, id)
    assert (over.state, over.attempts, over.next_at) == ("failed", len(RETRY_SECONDS) + 1, None)
    assert over.last_status is None
    assert over.finished_at is not None
    assert get_webhook(database, webhook).disabled_at is None


def test_sending_again_gives_all_attempts_back(database: Database, webhook: str) -> None:
    id = add_test(database, webhook)
    alter(database, Delivery, id, state="failed", attempts=9, next_at=None, last_status=500, finished_at=now())
    with database.writing() as session:
        deliveries.send_again(session, session.get_one(Webhook, webhook), session.get_one(Delivery, id))
    again = get(database, id)
    assert (again.state, again.attempts, again.last_status, again.finished_at) == ("pending", 0, None, None)
    accept(database, claim(database, id))
    assert get(database, id).state == "delivered"


def test_410_disables_the_webhook_and_gives_up_what_waits(database: Database, webhook: str) -> None:
    gone, waiting = add_test(database, webhook), add_test(database, webhook)
    fail(database, claim(database, gone), 410)
    disabled = get_webhook(database, webhook)
    assert disabled.disabled_at is not None
    assert "410" in (disabled.disabled_reason or "")
    assert [get(database, id).state for id in (gone, waiting)] == ["failed", "failed"]
    with database.writing() as session, pytest.raises(WrongState, match="enable"):
        deliveries.add_test(session, session.get_one(Webhook, webhook))
    with database.writing() as session, pytest.raises(WrongState, match="enable"):
        deliveries.send_again(session, session.get_one(Webhook, webhook), session.get_one(Delivery, gone))


def test_failing_for_days_disables_the_webhook_and_one_success_begins_anew(
    database: Database, webhook: str, caplog: pytest.LogCaptureFixture
) -> None:
    id = add_test(database, webhook)
    fail(database, claim(database, id))
    assert get_webhook(database, webhook).failing_since is not None
    make_due(database, id)
    accept(database, claim(database, id))
    assert get_webhook(database, webhook).failing_since is None

    alter(database, Webhook, webhook, failing_since=now() - timedelta(hours=DISABLE_HOURS - 1))
    fail(database, claim(database, add_test(database, webhook)))
    assert get_webhook(database, webhook).disabled_at is None
    alter(database, Webhook, webhook, failing_since=now() - timedelta(hours=DISABLE_HOURS + 1))
    fail(database, claim(database, add_test(database, webhook)))
    disabled = get_webhook(database, webhook)
    assert disabled.disabled_at is not None
    assert "120 hours" in (disabled.disabled_reason or "")
    assert webhook in caplog.text


def test_a_message_written_while_its_webhook_was_disabled_is_not_sent(database: Database, webhook: str) -> None:
    id = add_test(database, webhook)
    alter(database, Webhook, webhook, disabled_at=now(), disabled_reason="off")
    with database.writing() as session:
        assert deliveries.claim(session, id, 30) is None
    assert (get(database, id).state, get(database, id).last_error) == ("failed", "off")


def test_enabling_a_webhook_clears_its_record(database: Database, webhook: str) -> None:
    alter(database, Webhook, webhook, failing_since=now(), disabled_at=now(), disabled_reason="off")
    with database.writing() as session:
        webhooks.change(session, session.get_one(Webhook, webhook), schemas.WebhookUpdate(enabled=True))
    enabled = get_webhook(database, webhook)
    assert (enabled.failing_since, enabled.disabled_at, enabled.disabled_reason) == (None, None, None)


def test_a_deleted_webhook_takes_its_deliveries_along(database: Database, webhook: str) -> None:
    claimed = claim(database, add_test(database, webhook))
    with database.writing() as session:
        session.delete(session.get_one(Webhook, webhook))
    fail(database, claimed)
    accept(database, claimed)
    assert told(database, webhook) == []


def test_a_webhook_that_is_being_deleted_does_not_disturb_a_job(postgresql_url: str, tmp_path: Path) -> None:
    database = Database(postgresql_url)
    webhook, id = add_webhook(database), add_job(database, add_dataset(database, tmp_path))

    def cancel() -> None:
        with database.writing() as session:
            store.request_cancel(session, store.find(session, TENANT, id))

    def blocked() -> bool:
        with database.reading() as session:
            return session.scalars(text(BLOCKED)).first() is not None

    with ThreadPoolExecutor(1) as pool:
        with database.writing() as session:
            session.delete(session.get_one(Webhook, webhook))
            session.flush()
            cancelling = pool.submit(cancel)
            wait_for(blocked, what="waiting for the deletion")
        cancelling.result()
    assert get_job(database, id).status == Status.CANCELLED
    assert told(database, webhook) == []
    database.close()


def test_old_deliveries_go_unless_they_still_wait(database: Database, webhook: str) -> None:
    old = f"{id_at('delivery', now() - timedelta(days=retention.DELIVERIES_KEPT_DAYS + 1))}{'0' * 15}"
    done, waiting, recent = f"{old}1", f"{old}2", add_test(database, webhook)
    for id in (done, waiting):
        alter(database, Delivery, add_test(database, webhook), id=id)
    for id in (done, recent):
        alter(database, Delivery, id, next_at=None, state="delivered", finished_at=now())
    with database.writing() as session:
        retention.expire(session)
    with database.reading() as session:
        assert set(session.scalars(select(Delivery.id))) == {waiting, recent}


def test_ids_sort_by_the_moment_they_were_made() -> None:
    before, id, after = id_at("delivery", now()), new_id("delivery"), id_at("delivery", now() + timedelta(seconds=1))
    assert before < id < after
