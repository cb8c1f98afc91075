"""Helpers that another machine keeps: the same answers, and nothing left behind by those who go away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from jobs.helper import HELLO, Helper, PlanningBusy, PlanningTimeout
from jobs.planners import MOST
from tests.helpers import wait_for
from tests.jobs.test_planning import ENDLESS, question


@contextmanager
def planners(scratch: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The command, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.planners", address],
        env={**os.environ, "TMPDIR": str(scratch), "JACTUS_SECRET_KEY": "hidden"},
    )
    try:
        wait_for(lambda: is_listening(address), what="the planners")
        yield process, address
    finally:
        process.terminate()
        process.wait(30)


def is_listening(address: str) -> bool:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port))).close()
    except OSError:
        return False
    return True


def children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children() if child.status() != psutil.STATUS_ZOMBIE]


def test_a_helper_elsewhere_answers_and_recovers_as_one_s_own(tmp_path: Path) -> None:
    with planners(tmp_path) as (server, address):
        assert children(server) == [], "to look whether somebody listens starts nothing"
        helper = Helper(60, address)
        first = helper.ask(question())
        assert first["layers"] == 13
        [child] = children(server)
        assert "hidden" not in child.environ().values()

        child.kill()
        assert helper.ask(question()) == first
        [child] = children(server)

        helper._seconds = 0.5
        with pytest.raises(PlanningTimeout):
            helper.ask(question(ENDLESS))
        wait_for(lambda: not children(server), what="the end of the one that was given up")
        helper._seconds = 60
        assert helper.ask(question()) == first

        helper.close()
        wait_for(lambda: not children(server), what="the end of the one whose API has gone")
        assert [*tmp_path.glob("jactus-planners-*/*")] == []
    assert [*tmp_path.glob("jactus-*")] == []


def test_stopping_them_ends_the_helpers_and_an_api_says_that_it_is_busy(tmp_path: Path) -> None:
    with planners(tmp_path) as (server, address):
        helper = Helper(60, address)
        helper.ask(question())
        [child] = children(server)
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        assert not child.is_running()
        with pytest.raises(PlanningBusy, match="does not answer"):
            helper.ask(question())
    with planners(tmp_path) as (_, address):
        helper._address = address
        assert helper.ask(question())["layers"] == 13, "it goes on when they are back"
        helper.close()


def test_nobody_takes_all_the_memory(tmp_path: Path) -> None:
    with planners(tmp_path) as (server, address):
        host, port = address.split(":")
        connections = [socket.create_connection((host, int(port))) for _ in range(MOST + 1)]
        for connection in connections:
            connection.sendall(HELLO)
        wait_for(lambda: len(children(server)) == MOST, what="as many as there may be")
        connections[-1].settimeout(30)
        with pytest.raises(PlanningBusy):
            Helper(60, address).ask(question())
        for connection in connections:
            connection.close()
        wait_for(lambda: not children(server), what="the end of all")
