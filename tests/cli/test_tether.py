"""The tether: a command lives as long as the parent, and is started again when it ends before."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from tests.helpers import command_line, descendants, is_alive, wait_for

COMMAND = ["sh", "-c", "(trap '' TERM; exec sleep 1001) & exec sleep 1000"]
"""A command with a child that does not listen."""


@pytest.fixture
def tether() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", "cli.tether", *COMMAND], stdin=subprocess.PIPE)
    yield process
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(15) is not None


def tethered(process: subprocess.Popen[bytes], known: psutil.Process | None = None) -> list[psutil.Process]:
    """The command and its child, once both are no shells any more and not the `known` ones."""

    def found() -> list[psutil.Process]:
        running = sorted(descendants("sleep 100", process.pid), key=command_line)
        ready = [command_line(one) for one in running] == ["sleep 1000", "sleep 1001"]
        return running if ready and known not in running else []

    return wait_for(found, what="the command")


def test_a_parent_that_lets_go_stops_the_whole_group(tether: subprocess.Popen[bytes]) -> None:
    group = tethered(tether)
    assert tether.stdin is not None
    tether.stdin.close()
    wait_for(lambda: not any(map(is_alive, group)), 15, "the end of the group")
    assert tether.wait(15) == 0


def test_a_command_that_died_is_started_again_and_its_group_is_gone(tether: subprocess.Popen[bytes]) -> None:
    command, child = tethered(tether)
    command.send_signal(signal.SIGKILL)
    tethered(tether, known=command)
    assert not is_alive(child)
