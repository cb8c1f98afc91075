"""The child process that does the work: `python -m worker.pipeline`.

It reads one JSON specification from standard input, then writes one JSON object per line to standard output:
`progress`, and last `result` or `error`. Standard input stays open as a lifeline: when it closes, the supervisor is
gone and the child ends at once.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Literal, TextIO

from pydantic import BaseModel

from jactus_core.config import CompressionConfig
from jactus_core.errors import JactusError
from jactus_core.models import find_model
from jactus_core.sources import Format, open_file

ORPHANED = 3
FAILED = 1


class Specification(BaseModel):
    """Everything a run needs to know."""

    model: str
    revision: str | None
    model_root: Path
    dataset: Path
    format: Format
    text_column: str
    label_column: str
    output: Path
    config: CompressionConfig


class Message(BaseModel):
    """A line of the child's standard output."""

    type: Literal["progress", "result", "error"]
    data: dict[str, Any]


def main() -> int:
    channel = _take_stdout()
    specification = Specification.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_die_with_supervisor, daemon=True).start()

    def say(type: Literal["progress", "result", "error"], **data: Any) -> None:
        channel.write(Message(type=type, data=data).model_dump_json() + "\n")
        channel.flush()

    try:
        say("result", **_run(specification, say))
        return 0
    except JactusError as error:
        traceback.print_exc()
        say("error", **error.as_dict())
    except Exception as error:  # noqa: BLE001 - the supervisor logs the traceback
        traceback.print_exc()
        message = f"The run failed with {type(error).__name__}; the worker's log has the details."
        say("error", code="internal_error", message=message, param=None)
    return FAILED


def _run(specification: Specification, say: Any) -> dict[str, Any]:
    def report(stage: str, fraction: float, note: str) -> None:
        say("progress", stage=stage, fraction=fraction, note=note)

    from jactus_core.compression import compress  # imports torch, so not before it is needed

    columns = {"text": specification.text_column, "label": specification.label_column}
    source = open_file(specification.dataset, specification.format)
    model = find_model(specification.model, specification.revision, specification.model_root)
    result = compress(model, source, specification.output, specification.config, columns=columns, report=report)
    return result.as_dict()


def _take_stdout() -> TextIO:
    """Keep the real standard output for messages; whatever libraries print goes to standard error."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return channel


def _die_with_supervisor() -> None:
    sys.stdin.read()
    os._exit(ORPHANED)


if __name__ == "__main__":
    sys.exit(main())
