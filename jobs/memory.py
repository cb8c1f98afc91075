"""A small memory of what was expensive to find out."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any


class Memory:
    """Forgets what was not asked for the longest when it is full; safe to use from any thread."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._entries: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()

    def recall(self, key: Hashable) -> Any:
        """What was kept, or None."""
        with self._lock:
            until, value = self._entries.get(key, (0.0, None))
            if time.monotonic() > until:
                self._entries.pop(key, None)
                return None
            self._entries.move_to_end(key)
            return value

    def keep(self, key: Hashable, value: Any, seconds: float = float("inf")) -> None:
        with self._lock:
            self._entries[key] = time.monotonic() + seconds, value
            self._entries.move_to_end(key)
            if len(self._entries) > self._size:
                self._entries.popitem(last=False)
