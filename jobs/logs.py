"""One shape for every log line, of ours and of every library, on standard error.

All code logs through the standard `logging`; structlog renders. A line carries its `extra` fields and whatever is
`bound` around it, and nothing that looks like a secret.
"""

from __future__ import annotations

import logging
import re
import sys

import structlog
from pydantic import SecretStr
from structlog.contextvars import bound_contextvars as bound
from structlog.dev import ConsoleRenderer, plain_traceback
from structlog.processors import JSONRenderer, TimeStamper, format_exc_info
from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_log_level, add_logger_name
from structlog.typing import Processor

from jobs.settings import Settings

__all__ = ["bound", "set_up"]

HIDDEN = "[hidden]"
TALKATIVE = ("alembic", "httpx", "httpx2")
"""Libraries that tell at `info` what nobody asked."""
BETWEEN = r"(?:[^\w\x1b]|\x1b\[[\d;]*m)"
"""What may stand between a header's name and its value; a terminal's colours too."""
SECRETS = re.compile(
    rf"""
    (?P<kept> (?i:authorization){BETWEEN}{{1,12}} (?:(?i:bearer|basic)\s+)? )  [^\s"',;}}\]\x1b]+
    | (?P<scheme> (?i:\bbearer)\s+ ) [\w.~+/=-]{{8,}}
    | (?P<user> ://[^\s/:@]*: ) [^\s/@]+ (?=@)
    | \bjactus_[\w-]{{20,}}
    | \bhf_[A-Za-z0-9]{{16,}}
    """,
    re.VERBOSE,
)
SHORTEST_SECRET = 8  # characters; hiding less would garble lines


def set_up(settings: Settings) -> None:
    """Send every logger of this process through one formatter; calling it again changes nothing."""
    render: Processor = JSONRenderer(default=str)
    if settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty()):
        render = ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain_traceback)
    handler = logging.StreamHandler()
    handler.setFormatter(_Discreet(settings, render))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)


class _Discreet(ProcessorFormatter):
    """Hides, in the finished line, what looks like a secret or is one of the settings'."""

    def __init__(self, settings: Settings, render: Processor) -> None:
        gather: list[Processor] = [
            structlog.contextvars.merge_contextvars,
            add_log_level,
            add_logger_name,
            ExtraAdder(),
            TimeStamper(fmt="iso", utc=True),
        ]
        finish: list[Processor] = [ProcessorFormatter.remove_processors_meta, format_exc_info, render]
        super().__init__(foreign_pre_chain=gather, processors=finish)
        values = [value.get_secret_value() for _, value in settings if isinstance(value, SecretStr)]
        self._known = [value for value in values if len(value) >= SHORTEST_SECRET]

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        for value in self._known:
            line = line.replace(value, HIDDEN)
        return SECRETS.sub(_hide, line)


def _hide(match: re.Match[str]) -> str:
    return "".join(kept for kept in match.groups() if kept) + HIDDEN
