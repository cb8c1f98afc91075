"""The helper process that looks at models: `python -m jobs.planner <scratch folder>`.

The configuration of a model comes from anyone, and building it takes torch, time and memory; so it happens here and
not in the API. The helper reads one JSON request per line from standard input and writes one JSON answer per line to
standard output, first of all `null` when it is ready. It touches neither network nor weights. When standard input
closes, its parent is gone and it ends at once, whatever it is doing.
"""

from __future__ import annotations

import os
import queue
import resource
import shutil
import sys
import threading
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from pydantic import BaseModel

from jactus_core.config import CompressionConfig
from jactus_core.errors import JactusError
from jactus_core.models import ModelReference
from jactus_core.tasks import TASKS
from jobs.processes import take_stdout

ORPHANED = 3
ONNX_PACKAGES = ("onnx", "onnxscript")
MEMORY_BYTES = 8 * 2**30
"""What a configuration may make the helper use; seven billion parameters on the meta device take 0.1 of it."""


class Request(BaseModel):
    """A model by its configuration's text; without `config`, only what its architecture allows is asked for."""

    model: str
    model_type: str
    config_json: str = ""
    config: CompressionConfig | None = None
    classes: int = 0


class Answer(BaseModel):
    """Of `data` and `error` exactly one is given."""

    data: dict[str, Any] | None = None
    error: dict[str, str | None] | None = None


def main(folder: Path) -> None:
    channel = take_stdout()
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(requests, folder), daemon=True).start()
    from jactus_core.estimation import estimate  # imports torch
    from jactus_core.modeling_jactus import ARCHITECTURES

    _limit_memory()

    def answer(request: Request) -> dict[str, Any]:
        if request.config is None:
            able = [name for name, task in TASKS.items() if request.model_type in ARCHITECTURES[task.auto_class]]
            return {"tasks": able, "missing": [name for name in ONNX_PACKAGES if find_spec(name) is None]}
        (folder / "config.json").write_text(request.config_json, encoding="utf-8")
        reference = ModelReference(request.model, str(folder), None, request.model_type)
        return estimate(reference, request.config, classes=request.classes).as_dict()

    _say(channel, "null")
    while True:
        _say(channel, _answered(answer, Request.model_validate_json(requests.get())).model_dump_json())


def _answered(answer: Callable[[Request], dict[str, Any]], request: Request) -> Answer:
    try:
        return Answer(data=answer(request))
    except JactusError as error:
        return Answer(error=error.as_dict())
    except Exception as error:  # noqa: BLE001 - a configuration from anyone may make transformers raise anything
        traceback.print_exc()
        message = f"transformers cannot build '{request.model}' from its config.json: {type(error).__name__}."
        return Answer(error={"code": "unsupported_model", "message": message, "param": "model"})


def _limit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _read(requests: queue.Queue[str], folder: Path) -> None:
    for line in sys.stdin:
        requests.put(line)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(ORPHANED)


def _say(channel: TextIO, line: str) -> None:
    channel.write(line + "\n")
    channel.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
