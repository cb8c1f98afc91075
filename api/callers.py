"""Who sends a request, by its key; remembered for a moment, so that not every request asks the database."""

from __future__ import annotations

import hmac

from jobs import keys
from jobs.errors import Unauthorized
from jobs.keys import Caller
from jobs.memory import Memory
from jobs.services import Services

REMEMBERED = 1000
REMEMBERED_SECONDS = 5.0
"""How long a key that is changed or revoked elsewhere, by another process, may still open this one."""


class Callers:
    """Keys that were valid a moment ago, by their hashes."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._memory = Memory(REMEMBERED)
        self._edition = 0  # what is looked up while a key changes belongs to the one before

    def remembered(self, authorization: str) -> Caller | None:
        """Whose header this is, if that was asked a moment ago; asks nobody."""
        found: Caller | None = self._memory.recall((self._edition, self._hash(_key_of(authorization))))
        return found

    def find(self, authorization: str) -> Caller:
        """The caller, by the header of that name; raises Unauthorized."""
        key, settings, edition = _key_of(authorization), self._services.settings, self._edition
        if not key:
            raise Unauthorized("Send your API key as 'Authorization: Bearer <key>'.")
        if not keys.is_well_formed(key) and not _same(key, settings.api_key.get_secret_value()):
            raise Unauthorized("This is not an API key; check that it was copied whole.")
        with self._services.database.reading() as session:
            caller = keys.find_caller(session, key, settings.secret_key.get_secret_value())
        if caller is None:
            raise Unauthorized("This API key is not valid.")
        keys.note_use(self._services.database, caller)
        self._memory.keep((edition, self._hash(key)), caller, REMEMBERED_SECONDS)
        return caller

    def forget(self) -> None:
        """A key was changed: from now on every key is looked up anew."""
        self._edition += 1

    def _hash(self, key: str) -> str:
        return keys.hash_key(key, self._services.settings.secret_key.get_secret_value())


def _key_of(authorization: str) -> str:
    """Empty when the header is no bearer's."""
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _same(key: str, configured: str) -> bool:
    return bool(configured) and hmac.compare_digest(key.encode(), configured.encode())
