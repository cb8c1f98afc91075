"""Two processes under torchrun give what one gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jactus_core.tasks import TaskName
from tests.jactus_core.architectures import architectures, rows_for
from tests.tiny import reviews

RUN = """
import json, sys
from pathlib import Path
import torch
from jactus_core import CompressionConfig, compress, compression, finetuning
from jactus_core.decomposition import Decomposition

model, rows, output, config = sys.argv[1:]
compression.verify_checkpoints = lambda probes, auto_class: {}
seen = {}
factors = Decomposition.factors
def spied(self, name):
    found = factors(self, name)
    seen[name] = {"singular": found.singular.tolist(), "product": (found.up * found.singular.float()[: found.rank]
        @ found.down).tolist(), "facts": [self.layer(name).tokens, *self.layer(name).shrinkage]}
    return found
Decomposition.factors = spied
trained = []
fit = finetuning.fit
def spied_fit(model, *arguments):
    fit(model, *arguments)
    trained.append(sum(float(part.double().abs().sum()) for part in model.parameters() if part.requires_grad))
finetuning.fit = spied_fit
result = compress(model, json.loads(rows), output, CompressionConfig.model_validate_json(config))
if result.budgets[0].folder.exists():
    Path(output, f"seen-{torch.distributed.get_rank() if torch.distributed.is_initialized() else 0}.json").write_text(
        json.dumps({"factors": seen, "trained": trained}))
"""
SETTINGS = (
    '{"budgets": [0.6], "max_length": 32, "batch_size": 8, "epochs": 1, "warmup_epochs": 1, "allocation": "measured", '
    '"task": "%s"}'
)


def run(model: Path, task: TaskName, output: Path, processes: int) -> None:
    script = output.parent / "run.py"
    script.write_text(RUN)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    rows = reviews() if task == "text-classification" else rows_for(task)
    command = [sys.executable, *launcher, str(script), str(model), json.dumps(rows), str(output), SETTINGS % task]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert answer.returncode == 0, answer.stderr[-4000:]


def seen(output: Path, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / f"seen-{rank}.json").read_text())
    return found


def both_seen(output: Path) -> dict[str, Any]:
    """What either of two processes saw, which must be the same factors, and the same weights after each training."""
    first = seen(output)
    assert first == seen(output, 1)
    return first


def test_two_processes_tune_a_language_model_and_then_its_cores_together(tmp_path: Path) -> None:
    mistral = architectures["mistral"]
    run(mistral.write(tmp_path / "model"), mistral.task, tmp_path / "two", 2)
    assert len(both_seen(tmp_path / "two")["trained"]) == 2


def test_two_processes_agree_with_one(tiny_bert: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run(tiny_bert, "text-classification", one, 1)
    run(tiny_bert, "text-classification", two, 2)

    alone, first = seen(one)["factors"], both_seen(two)["factors"]
    assert alone.keys() == first.keys()
    for name, facts in alone.items():
        assert first[name]["facts"] == pytest.approx(facts["facts"], rel=1e-6)
        largest = facts["singular"][0]
        assert first[name]["singular"] == pytest.approx(facts["singular"], rel=1e-6, abs=1e-6 * largest)

    ours, theirs = (json.loads((folder / "frontier.json").read_text()) for folder in (one, two))
    assert ours["budgets"][0]["ranks"] == theirs["budgets"][0]["ranks"]
    assert ours["dense_metrics"] == pytest.approx(theirs["dense_metrics"], rel=1e-5)
    assert sorted(path.name for path in (two / "budget-0.6").iterdir()) == sorted(
        path.name for path in (one / "budget-0.6").iterdir()
    )
    assert not (two / ".work").exists()
