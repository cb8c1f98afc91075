"""The child process that does the work: `python -m worker.pipeline`.

It imports what every run needs and reads one JSON specification from standard input. Then it writes one JSON object per
line to standard output: `progress`, and last `result` or `error`. Standard input stays open as a lifeline: when it
closes, the supervisor is gone and the child ends at once.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from jactus_core.config import CompressionConfig
from jactus_core.errors import JactusError
from jactus_core.files import WORK_FOLDER
from jactus_core.models import find_model
from jactus_core.sources import Format, open_file, open_hub
from jobs.processes import log_to, take_stdout
from worker.bounds import DiskFull, is_disk_full

if TYPE_CHECKING:
    from jactus_core.compression import BudgetResult
    from jactus_core.progress import Report

RESULT = "result.json"
NO_MEMORY = "can't allocate memory"
"""What torch says on a CPU, in a RuntimeError."""
ORPHANED = 3
FAILED = 1


class Specification(BaseModel):
    """Everything a run needs to know."""

    model: str
    revision: str | None
    model_root: Path
    dataset: str  # a file, or an id on the hub
    format: Format | Literal["hub"]
    dataset_revision: str | None
    columns: dict[str, str]
    output: Path
    log: Path
    config: CompressionConfig
    outputs: list[Literal["checkpoint", "dense", "onnx"]] = ["checkpoint"]
    quality_bound: float | None = None
    token: str | None = Field(default=None, repr=False)  # of the hub, for the model
    dataset_token: str | None = Field(default=None, repr=False)


class Message(BaseModel):
    """A line of the child's standard output."""

    type: Literal["progress", "result", "error"]
    data: dict[str, Any]


def main() -> int:
    channel = take_stdout()
    import jactus_core.compression  # noqa: F401 - with torch, before there is anything to do

    given = sys.stdin.readline()
    if not given:
        return ORPHANED
    specification = Specification.model_validate_json(given)
    log_to(specification.log)
    threading.Thread(target=_die_with_supervisor, daemon=True).start()
    if specification.token is not None:
        os.environ["HF_TOKEN"] = specification.token

    def say(type: Literal["progress", "result", "error"], **data: Any) -> None:
        channel.write(Message(type=type, data=data).model_dump_json() + "\n")
        channel.flush()

    try:
        say("result", **_run(specification, say))
        return 0
    except JactusError as error:
        traceback.print_exc()
        say("error", **error.as_dict())
    except Exception as error:  # noqa: BLE001 - the log has the traceback
        traceback.print_exc()
        say("error", **_described(error))
    return FAILED


def _described(error: Exception) -> dict[str, str | None]:
    """What a foreign error means for the job."""
    if is_disk_full(error):
        return DiskFull().as_dict()
    if isinstance(error, MemoryError) or "OutOfMemoryError" in type(error).__name__ or NO_MEMORY in str(error):
        code, message = "out_of_memory", "Memory ran out; take a smaller batch_size, or set gradient_checkpointing."
    else:
        code, message = "internal_error", f"The run failed with {type(error).__name__}; its log has the details."
    return {"code": code, "message": message, "param": None}


def _run(specification: Specification, say: Any) -> dict[str, Any]:
    """The result; an attempt after one that came so far has it already."""
    seal = specification.output / WORK_FOLDER / RESULT
    if seal.is_file():
        told: dict[str, Any] = json.loads(seal.read_text(encoding="utf-8"))
        return told
    told = _compress(specification, say)
    seal.parent.mkdir(parents=True, exist_ok=True)
    draft = seal.with_suffix(".part")
    draft.write_text(json.dumps(told), encoding="utf-8")
    draft.replace(seal)
    return told


def _compress(specification: Specification, say: Any) -> dict[str, Any]:
    def report(stage: str, fraction: float, note: str) -> None:
        say("progress", stage=stage, fraction=fraction, note=note)

    from jactus_core.compression import compress

    if specification.format == "hub":
        source = open_hub(specification.dataset, specification.dataset_revision, specification.dataset_token)
    else:
        source = open_file(Path(specification.dataset), specification.format)
    model = find_model(specification.model, specification.revision, specification.model_root)
    result = compress(
        model, source, specification.output, specification.config, columns=specification.columns, report=report
    )
    told = result.as_dict()
    for point, described in zip(result.budgets, told["budgets"], strict=True):
        described["exports"] = _export(point, specification, report)
    if specification.quality_bound is not None:
        chosen = result.within(specification.quality_bound)
        told["chosen_budget"] = chosen and chosen.budget
    return told


def _export(point: BudgetResult, specification: Specification, report: Report) -> dict[str, str]:
    """Further forms of a checkpoint, each in a folder beside it."""
    from jactus_core.export import export

    folders: dict[str, str] = {}
    for form in specification.outputs:
        if form != "checkpoint":
            report("publishing", 0.0, f"budget {point.budget:g} as {form}")
            folders[form] = f"{point.folder.name}-{form}"
            export(point.folder, specification.output / folders[form], form)
    return folders


def _die_with_supervisor() -> None:
    sys.stdin.read()
    os._exit(ORPHANED)


if __name__ == "__main__":
    sys.exit(main())
