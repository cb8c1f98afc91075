"""Sending what `deliveries` holds, signed as standardwebhooks.com says, to addresses that are safe."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl

import httpx2
from anyio.to_thread import run_sync
from standardwebhooks import Webhook as Signer

from jactus_core import __version__
from jactus_core.errors import JactusError
from jobs import addresses, deliveries
from jobs.addresses import Resolver
from jobs.clock import now
from jobs.deliveries import Claim
from jobs.services import Services
from jobs.vault import Vault

logger = logging.getLogger(__name__)

AT_ONCE = 64
"""Requests in flight, each to another webhook, so that a slow one delays nobody but itself."""
POLL_SECONDS = 1.0
MARGIN_SECONDS = 30
"""What a lease has beyond the request's timeout, for the database before and after it."""


class Sender:
    """Sends what is due. Any number of them may run at once, in any number of processes."""

    def __init__(
        self, services: Services, resolve: Resolver = addresses.resolve, tls: ssl.SSLContext | None = None
    ) -> None:
        self._settings, self._database, self._resolve = services.settings, services.database, resolve
        self._vault = Vault.of(services.settings)
        self._tls = tls or httpx2.create_ssl_context()
        self._busy: dict[str, asyncio.Task[None]] = {}  # by webhook

    async def run(self) -> None:
        """Until it is cancelled; what is in flight then is sent again once its lease has run out."""
        try:
            while True:
                try:
                    await self._start_due()
                except Exception:  # the database is away: the next round tries again
                    logger.warning("looking for deliveries failed", exc_info=True)
                await self._pause()
        finally:
            await self._stop()

    async def send_due(self) -> None:
        """One round: everything that is due now, once."""
        await self._start_due()
        await asyncio.gather(*self._busy.values())

    async def _start_due(self) -> None:
        free = AT_ONCE - len(self._busy)
        found = await run_sync(self._find_due, list(self._busy), free) if free else []
        for webhook_id, delivery_id in found:
            self._busy[webhook_id] = asyncio.create_task(self._deliver(webhook_id, delivery_id))

    async def _pause(self) -> None:
        """Until a request ends and may make room for the next one, or for a moment."""
        if self._busy:
            await asyncio.wait(self._busy.values(), timeout=POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(POLL_SECONDS)

    async def _stop(self) -> None:
        tasks = list(self._busy.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _deliver(self, webhook_id: str, id: str) -> None:
        """Never raises: what fails here is tried again when the lease has run out."""
        try:
            claim = await run_sync(self._claim, id)
            if claim is not None:
                status, error = await self._attempt(claim)
                await run_sync(self._record, claim, status, error)
        except Exception:
            logger.warning("delivery %s is undecided", id, exc_info=True)
        finally:
            del self._busy[webhook_id]

    async def _attempt(self, claim: Claim) -> tuple[int | None, str]:
        """The status that came back, and what is wrong with it; empty when nothing is."""
        seconds = self._settings.webhook_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                status = await self._send(claim)
        except TimeoutError:
            return None, f"There was no answer within {seconds:g} seconds."
        except JactusError as error:
            return None, error.message
        except Exception as error:  # whatever a stranger's server does to us is a failure of its own
            logger.debug("delivery %s failed", claim.id, exc_info=True)
            return None, f"The request failed: {str(error).rstrip('.') or type(error).__name__}."
        if 200 <= status < 300:
            return status, ""
        hint = "; redirects are not followed" if 300 <= status < 400 else ""
        return status, f"It answered {status}{hint}."

    async def _send(self, claim: Claim) -> int:
        url = addresses.check_url(claim.url, self._settings.allow_private_addresses)
        found = await addresses.safe_addresses(url, self._settings.allow_private_addresses, self._resolve)
        body = json.dumps(claim.payload, separators=(",", ":"))
        headers = {**self._signature(claim, body), "Host": url.netloc.decode("ascii")}
        for address in found[:-1]:
            try:
                return await self._post(url, address, body, headers)
            except httpx2.ConnectError:
                logger.debug("%s does not answer at %s", url.host, address)
        return await self._post(url, found[-1], body, headers)

    async def _post(self, url: httpx2.URL, address: str, body: str, headers: dict[str, str]) -> int:
        """Connect to the address itself; TLS still asks for a certificate of the URL's host. No body is read."""
        there, named = url.copy_with(host=address), {"sni_hostname": addresses.host_of(url)}
        # A client of its own: a kept connection to one host must not serve another one at the same address.
        async with (
            httpx2.AsyncClient(verify=self._tls, trust_env=False, timeout=None) as client,
            client.stream("POST", there, content=body, headers=headers, extensions=named) as answer,
        ):
            return answer.status_code

    def _signature(self, claim: Claim, body: str) -> dict[str, str]:
        moment = now()
        signer = Signer(self._vault.unseal(claim.sealed_secret))
        return {
            "Content-Type": "application/json",
            "User-Agent": f"jactus/{__version__}",
            "webhook-id": claim.id,
            "webhook-timestamp": str(int(moment.timestamp())),
            "webhook-signature": signer.sign(claim.id, moment, body),
        }

    def _find_due(self, busy: list[str], limit: int) -> list[tuple[str, str]]:
        with self._database.reading() as session:
            return deliveries.due(session, busy, limit)

    def _claim(self, id: str) -> Claim | None:
        with self._database.writing() as session:
            return deliveries.claim(session, id, self._settings.webhook_timeout_seconds + MARGIN_SECONDS)

    def _record(self, claim: Claim, status: int | None, error: str) -> None:
        with self._database.writing() as session:
            if status is not None and not error:
                deliveries.accepted(session, claim, status)
            else:
                deliveries.refused(session, claim, status, error, self._settings.webhook_disable_hours)
