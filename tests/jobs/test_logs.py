"""Log lines: one shape for everybody, what is bound around them, and no secret in any."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import logs
from jobs.keys import new_key
from tests.helpers import make_settings

KEY = new_key()
HUB_TOKEN = "hf_" + "aB3" * 11


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_carries_what_is_bound_and_what_is_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(make_settings(tmp_path, log_format="json"))
    with logs.bound(job_id="job_1", attempt=2):
        logging.getLogger("some.library").info("loading %s", "bert", extra={"seconds": 1.5})
    logging.getLogger("some.library").warning("after")

    inside, after = lines(capsys)
    assert inside.pop("timestamp").endswith("Z")
    assert inside == {
        "event": "loading bert",
        "level": "info",
        "logger": "some.library",
        "job_id": "job_1",
        "attempt": 2,
        "seconds": 1.5,
    }
    assert not {"job_id", "attempt"} & after.keys()


def test_an_exception_stays_one_line_of_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(make_settings(tmp_path, log_format="json"))
    try:
        raise ValueError("no such thing")
    except ValueError:
        logging.getLogger().exception("failed")
    [line] = lines(capsys)
    assert line["event"] == "failed"
    assert "ValueError: no such thing" in line["exception"]


def test_only_lines_from_the_level_on_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(make_settings(tmp_path, log_format="json", log_level="warning"))
    logging.getLogger("ours").info("a detail")
    logging.getLogger("ours").warning("a warning")
    assert [line["event"] for line in lines(capsys)] == ["a warning"]


def test_set_up_twice_every_line_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        logs.set_up(make_settings(tmp_path, log_format="json"))
    logging.getLogger("ours").info("once")
    assert [line["event"] for line in lines(capsys)] == ["once"]


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize(
    ("message", "extra", "secret", "kept"),
    [
        (f"the key {KEY} was sent", {}, KEY, "was sent"),
        (f"token={HUB_TOKEN};", {}, HUB_TOKEN, "token="),
        ("sent", {"headers": {"Authorization": "Basic dXNlcjpw", "Accept": "text/plain"}}, "dXNlcjpw", "text/plain"),
        ("sent", {"authorization": "Bearer abc.def.ghi"}, "abc.def.ghi", "sent"),
        ("sent", {"headers": [(b"authorization", b"Bearer abc.def.ghi"), (b"a", b"kept")]}, "abc.def.ghi", "kept"),
        ("Authorization: Bearer abc.def.ghi", {}, "abc.def.ghi", "Authorization: Bearer"),
        ("cannot reach redis://user:pass-word@host:6379/0", {}, "pass-word", "host:6379/0"),
        ("the configured key is chosen by you", {}, "chosen by you", "the configured key"),
    ],
    ids=["key", "hub token", "header", "field", "pairs", "text", "url", "setting"],
)
def test_no_line_holds_a_secret(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    log_format: str,
    message: str,
    extra: dict[str, Any],
    secret: str,
    kept: str,
) -> None:
    logs.set_up(make_settings(tmp_path, log_format=log_format, api_key="chosen by you"))
    with logs.bound(note=secret if secret.startswith(("jactus_", "hf_")) else "none"):
        try:
            raise ValueError(message)
        except ValueError:
            logging.getLogger("ours").exception(message, extra=extra)
    written = capsys.readouterr().err
    assert secret not in written
    assert kept in written
    assert logs.HIDDEN in written


def test_what_merely_begins_like_a_key_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(make_settings(tmp_path, log_format="json"))
    message = "jactus_core/compression.py, hf_hub and https://host:443/v1/jobs are no secrets"
    logging.getLogger("ours").info(message)
    assert [line["event"] for line in lines(capsys)] == [message]
