"""The present, and names that sort by it."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime


def now() -> datetime:
    return datetime.now(UTC)


def new_id(kind: str) -> str:
    """`job_<milliseconds><random>` in hexadecimal: sorts by creation time, cannot be guessed."""
    return f"{kind}_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"


def id_at(kind: str, moment: datetime) -> str:
    """Greater than every id from before `moment`, smaller than every later one."""
    return f"{kind}_{int(moment.timestamp() * 1000):012x}"
