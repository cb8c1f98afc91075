"""What a finished folder says about itself: `report.json` for programs, a model card for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jactus_core.files import sha256_of, write_json
from jactus_core.tasks import TASKS

REPORT_FILE = "report.json"
CARD_FILE = "README.md"
PIPELINES = {"multiple-choice": "text-generation"}
"""Tasks whose checkpoints transformers' pipelines know under another name."""


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Write the model card, then the report with size and SHA-256 of every file beside it."""
    (folder / CARD_FILE).write_text(model_card(report), encoding="utf-8")
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != REPORT_FILE
    }
    write_json(folder / REPORT_FILE, {**report, "files": files})


def model_card(report: Mapping[str, Any]) -> str:
    """How the checkpoint was made, what it scores and weighs, how to load it, what to beware of."""
    config, task = report["config"], TASKS[report["config"]["task"]]
    dense, compressed = report["dense"], report["compressed"]
    pipeline = PIPELINES.get(task.name, task.name)
    before, after = dense["size"], compressed["size"]
    rows = "\n".join(
        f"| {name.replace('_', ' ')} | {dense['metrics'][name]:.4g} | {value:.4g} |"
        for name, value in compressed["metrics"].items()
    )
    low_rank = [layer["rank"] for layer in report["layers"].values() if layer["rank"] is not None]
    return f"""---
library_name: transformers
{_base_model(report)}pipeline_tag: {pipeline}
tags: [jactus, low-rank, compression]
---

# {Path(report["model"]["name"]).name}, {after["compressible_parameters"] / before["compressible_parameters"]:.0%} of \
its linear layers

`{report["model"]["name"]}`{_revision(report)} compressed and tuned for {task.name} in one go with JACTUS: of \
{len(report["layers"])} linear layers, {len(low_rank)} became low-rank ones, chosen by the covariances of what they \
read and of their gradients on {report["calibration_rows"]:,} rows of the task.

|  | dense model, head tuned | this model |
| --- | --- | --- |
| parameters | {before["parameters"]:,} | {after["parameters"]:,} |
| of these in compressible layers | {before["compressible_parameters"]:,} | {after["compressible_parameters"]:,} |
| weights, MB | {before["bytes"] / 1e6:.1f} | {after["bytes"] / 1e6:.1f} |
{rows}

Measured on {report["dataset"]["eval_rows"]:,} held-out rows; {report["dataset"]["rows"]:,} rows to train on, seed \
{config["seed"]}.

## Load it

```python
import jactus_core  # teaches transformers the model type
from transformers import {task.auto_class}

model = {task.auto_class}.from_pretrained("path/to/this/folder")
```

Without the package, `from_pretrained(folder, trust_remote_code=True)` runs the small `modeling_jactus.py` beside this \
file.

## Limits

The model was fitted to one dataset, and the figures are of rows like those. What the base model does besides this \
task may be lost. Its licence and its biases carry over. `report.json` has every setting, version, rank and hash.
"""


def _base_model(report: Mapping[str, Any]) -> str:
    """For the hub, which takes no folder's name here."""
    model = report["model"]
    return f"base_model: {json.dumps(model['name'])}\n" if model["revision"] else ""


def _revision(report: Mapping[str, Any]) -> str:
    revision = report["model"]["revision"]
    return f" (revision `{revision}`)" if revision else ""
