"""Two processes under torchrun give what one gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import json, sys
from pathlib import Path
import torch
from jactus_core import CompressionConfig, compress, compression
from jactus_core.decomposition import Decomposition
from tests.tiny import reviews

model, output, config = sys.argv[1:]
compression.verify_checkpoints = lambda probes, auto_class: {}
seen = {}
factors = Decomposition.factors
def spied(self, name):
    found = factors(self, name)
    seen[name] = {"singular": found.singular.tolist(), "product": (found.up * found.singular.float()[: found.rank]
        @ found.down).tolist(), "facts": [self.layer(name).tokens, *self.layer(name).shrinkage]}
    return found
Decomposition.factors = spied
result = compress(model, reviews(), output, CompressionConfig.model_validate_json(config))
if result.budgets[0].folder.exists():
    Path(output, f"seen-{torch.distributed.get_rank() if torch.distributed.is_initialized() else 0}.json").write_text(
        json.dumps(seen))
"""
SETTINGS = '{"budgets": [0.6], "max_length": 32, "batch_size": 8, "epochs": 1, "warmup_epochs": 1, "task": "%s"}'


def run(model: Path, output: Path, processes: int) -> None:
    script = output.parent / "run.py"
    script.write_text(RUN)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *launcher, str(script), str(model), str(output), SETTINGS % "text-classification"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert answer.returncode == 0, answer.stderr[-4000:]


def test_two_processes_agree_with_one(tiny_bert: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run(tiny_bert, one, 1)
    run(tiny_bert, two, 2)

    alone, first, second = (
        json.loads(file.read_text()) for file in (one / "seen-0.json", two / "seen-0.json", two / "seen-1.json")
    )
    assert first == second, "both processes read the same factors"
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
