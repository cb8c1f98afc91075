"""Sealed secrets: opened by the same key only, and different each time."""

from __future__ import annotations

import pytest

from jobs.vault import Vault


def test_only_the_same_key_opens_what_was_sealed() -> None:
    sealed = Vault("key").seal("hf_token")
    assert "hf_token" not in sealed
    assert Vault("key").unseal(sealed) == "hf_token"
    assert Vault("key").seal("hf_token") != sealed
    with pytest.raises(ValueError, match="JACTUS_SECRET_KEY"):
        Vault("other key").unseal(sealed)


def test_what_was_tampered_with_is_not_opened() -> None:
    sealed = Vault("key").seal("hf_token")
    with pytest.raises(ValueError, match="sealed under another"):
        Vault("key").unseal(sealed[:-4] + "AAA=")
