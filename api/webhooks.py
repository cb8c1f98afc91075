"""Manage webhooks, look at what was sent to them, and send it again."""

from __future__ import annotations

from fastapi import APIRouter, Response

from api.dependencies import After, Here, Limit, Reader, Writer, page_of
from api.errors import responses
from jobs import addresses, deliveries, schemas, webhooks
from jobs.services import Services
from jobs.tables import Webhook
from jobs.vault import Vault

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], responses=responses(401, 403, 422))


@router.post("", status_code=201, responses=responses(409, 413))
def create_webhook(
    caller: Writer, services: Here, request: schemas.WebhookCreate, response: Response
) -> schemas.NewWebhook:
    """Be told when your jobs change. This answer is the only one that ever shows the secret that verifies messages."""
    _check_url(services, request.url)
    with services.database.writing() as session:
        made, secret = webhooks.create(session, caller.tenant, request, Vault.of(services.settings))
    response.headers["Location"] = f"/v1/webhooks/{made.id}"
    return _with_secret(made, secret)


@router.get("")
def list_webhooks(
    caller: Reader, services: Here, after: After = None, limit: Limit = 20
) -> schemas.Page[schemas.Webhook]:
    """Your webhooks, newest first."""
    with services.database.reading() as session:
        found = webhooks.list_webhooks(session, caller.tenant, after, limit)
        return page_of(found, limit, schemas.Webhook.model_validate)


@router.get("/{webhook_id}", responses=responses(404))
def get_webhook(caller: Reader, services: Here, webhook_id: str) -> schemas.Webhook:
    """One webhook, and whether it works."""
    with services.database.reading() as session:
        return schemas.Webhook.model_validate(webhooks.find(session, caller.tenant, webhook_id))


@router.patch("/{webhook_id}", responses=responses(404, 413))
def change_webhook(caller: Writer, services: Here, webhook_id: str, request: schemas.WebhookUpdate) -> schemas.Webhook:
    """Change what the request names; `enabled: true` also brings back a webhook that was disabled for its failures."""
    if request.url is not None:
        _check_url(services, request.url)
    with services.database.writing() as session:
        webhook = webhooks.find(session, caller.tenant, webhook_id)
        webhooks.change(session, webhook, request)
        return schemas.Webhook.model_validate(webhook)


@router.delete("/{webhook_id}", status_code=204, responses=responses(404))
def delete_webhook(caller: Writer, services: Here, webhook_id: str) -> None:
    """Delete a webhook with all that was or was to be sent to it."""
    with services.database.writing() as session:
        session.delete(webhooks.find(session, caller.tenant, webhook_id))


@router.post("/{webhook_id}/rotate-secret", responses=responses(404))
def rotate_secret(caller: Writer, services: Here, webhook_id: str) -> schemas.NewWebhook:
    """Sign with a new secret from now on. This answer is the only one that ever shows it."""
    with services.database.writing() as session:
        webhook = webhooks.find(session, caller.tenant, webhook_id)
        secret = webhooks.rotate_secret(webhook, Vault.of(services.settings))
    return _with_secret(webhook, secret)


@router.post("/{webhook_id}/test", status_code=202, responses=responses(404, 409))
def send_test(caller: Writer, services: Here, webhook_id: str) -> schemas.Delivery:
    """Send a `webhook.test` event; its delivery shows what came of it."""
    with services.database.writing() as session:
        delivery = deliveries.add_test(session, webhooks.find(session, caller.tenant, webhook_id))
    return schemas.Delivery.model_validate(delivery)


@router.get("/{webhook_id}/deliveries", responses=responses(404))
def list_deliveries(
    caller: Reader, services: Here, webhook_id: str, after: After = None, limit: Limit = 20
) -> schemas.Page[schemas.Delivery]:
    """What was or will be sent to a webhook, newest first; kept for 30 days."""
    with services.database.reading() as session:
        webhook = webhooks.find(session, caller.tenant, webhook_id)
        found = deliveries.list_deliveries(session, webhook, after, limit)
        return page_of(found, limit, schemas.Delivery.model_validate)


@router.post("/{webhook_id}/deliveries/{delivery_id}/redeliver", status_code=202, responses=responses(404, 409))
def redeliver(caller: Writer, services: Here, webhook_id: str, delivery_id: str) -> schemas.Delivery:
    """Send a message once more, now and under the same id, with all its attempts."""
    with services.database.writing() as session:
        webhook = webhooks.find(session, caller.tenant, webhook_id)
        delivery = deliveries.find(session, webhook, delivery_id)
        deliveries.send_again(session, webhook, delivery)
    return schemas.Delivery.model_validate(delivery)


def _check_url(services: Services, url: str) -> None:
    addresses.check_url(url, services.settings.allow_private_addresses, "url")


def _with_secret(webhook: Webhook, secret: str) -> schemas.NewWebhook:
    shown = schemas.Webhook.model_validate(webhook).model_dump(exclude={"enabled"})
    return schemas.NewWebhook(**shown, secret=secret)
