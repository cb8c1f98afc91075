"""Keep a command running for as long as the parent lives: `python -m cli.tether COMMAND …`.

The parent holds the other end of standard input. When it closes, however the parent died, the command's whole process
group is stopped. A command that ends by itself is started again.
"""

from __future__ import annotations

import subprocess
import sys
import threading

from jobs.processes import end_group

POLL_SECONDS = 0.1
RESTART_SECONDS = 1.0
GRACE_SECONDS = 5.0


def main(command: list[str]) -> None:
    parent_gone = threading.Event()
    threading.Thread(target=_wait_for_parent, args=(parent_gone,), daemon=True).start()
    while not parent_gone.is_set():
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None and not parent_gone.wait(POLL_SECONDS):
            pass
        end_group(process, GRACE_SECONDS)
        parent_gone.wait(RESTART_SECONDS)


def _wait_for_parent(gone: threading.Event) -> None:
    sys.stdin.buffer.read()
    gone.set()


if __name__ == "__main__":
    main(sys.argv[1:])
