"""Helper processes for APIs elsewhere, which then need no torch: `python -m jobs.planners HOST:PORT`.

Each connection gets a process of `jobs.planner`, whose standard input and output it is, and which ends with it. There
is no key: only the APIs must be able to connect, as in a network of their own.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from jobs.helper import HELLO, spawn
from jobs.processes import end_group

MOST = 16
"""Connections at a time; each holds half a gigabyte."""
HELLO_SECONDS = 5.0


class Planners:
    """Every process of theirs, and the folders that they work in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._processes: dict[str, subprocess.Popen[str]] = {}  # by folder

    def answer(self, connection: socket.socket) -> None:
        """Give the connection a process, unless nothing is asked or too many are there."""
        with connection:
            connection.settimeout(HELLO_SECONDS)
            try:
                said = connection.recv(len(HELLO))
            except OSError:
                return
            connection.settimeout(None)
            with self._lock:
                self._tidy()
                if said == HELLO and len(self._processes) < MOST:
                    scratch = tempfile.mkdtemp(prefix="jactus-planner-", dir=self._folder)
                    self._processes[scratch] = spawn(scratch, connection, connection)

    def _tidy(self) -> None:
        """A process that is killed leaves its folder behind."""
        for scratch, process in list(self._processes.items()):
            if process.poll() is not None:
                shutil.rmtree(scratch, ignore_errors=True)
                del self._processes[scratch]

    def stop(self) -> None:
        with self._lock:
            for process in self._processes.values():
                end_group(process, 0)


def main(address: str) -> None:
    host, _, port = address.rpartition(":")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with (
        tempfile.TemporaryDirectory(prefix="jactus-planners-") as folder,
        socket.create_server((host, int(port))) as server,
    ):
        planners = Planners(Path(folder))
        try:
            while True:
                connection, _ = server.accept()
                threading.Thread(target=planners.answer, args=(connection,), daemon=True).start()
        except KeyboardInterrupt:
            pass
        finally:
            planners.stop()


if __name__ == "__main__":
    main(sys.argv[1])
