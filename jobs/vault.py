"""Sealing what must be stored but never read back by eye: hub tokens, webhook secrets."""

from __future__ import annotations

import base64
import hashlib

from cryptography.fernet import Fernet, InvalidToken

from jobs.settings import Settings


class Vault:
    """Authenticated encryption under a key derived from the service's secret key."""

    def __init__(self, secret_key: str) -> None:
        derived = hashlib.sha256(b"jactus vault\0" + secret_key.encode()).digest()
        self._fernet = Fernet(base64.urlsafe_b64encode(derived))

    @classmethod
    def of(cls, settings: Settings) -> Vault:
        return cls(settings.secret_key.get_secret_value())

    def seal(self, secret: str) -> str:
        return self._fernet.encrypt(secret.encode()).decode()

    def unseal(self, sealed: str) -> str:
        """Raises ValueError when it was sealed under another secret key."""
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken as error:
            raise ValueError("sealed under another JACTUS_SECRET_KEY") from error
