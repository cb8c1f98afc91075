"""Every task on real weights and real data, end to end through `compress`: quality and size before and after.

    python -m benchmarks.real_models --models FOLDER --data FOLDER [--only minilm …]

A proof that the pretrained models work, with few rows and few steps so that a laptop has it done in half an hour; it
says little about the quality that a full run reaches. `compress` loads each finished folder in a new process and
compares its logits. Fills the tables in docs/method.md, and in docs/deploy.md what each took.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.recording import DEPLOY_PAGE, METHOD_PAGE, fill, keep, kept, markdown
from jactus_core import CompressionConfig, compress, estimate
from jactus_core.progress import Stage
from jactus_core.sources import open_source

BUDGETS = (0.8, 0.6)


@dataclass(frozen=True)
class Case:
    model: str
    data: str
    rows: tuple[int, int] | None  # to train and to evaluate on, of a pair of JSON-lines files; None: all of an archive
    settings: Mapping[str, Any]


CASES: Mapping[str, Case] = {
    "minilm": Case("minilm", "text/sst2", (1280, 1821), {"task": "text-classification", "max_length": 64}),
    "vit-s": Case("vit-s", "image/dtd_10classes.zip", None, {"task": "image-classification", "image_size": 98}),
    "clip-b16": Case(
        "clip-b16",
        "image/dtd_10classes.zip",
        None,
        {"task": "image-classification", "image_size": 80, "epochs": 0.5, "calibration_samples": 256},
    ),
    "smollm2, choices": Case(
        "smollm2",
        "choice/arc_easy",
        (320, 100),
        {"task": "multiple-choice", "epochs": 0.5, "calibration_samples": 64, "max_length": 64},
    ),
    "smollm2, text": Case(
        "smollm2",
        "math/gsm8k",
        (96, 30),
        {"task": "text-generation", "epochs": 0.5, "calibration_samples": 64, "max_length": 96},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    found = kept("real_models", "cases")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name in options.only:
            found[name] = pool.apply(run, (CASES[name], options.models, options.data))
            keep("real_models", {"cases": {name: found[name] for name in CASES if name in found}})
    fill(METHOD_PAGE, "real-models", table(found))
    fill(DEPLOY_PAGE, "sizing", sizing(found))


def run(case: Case, models: Path, data: Path) -> dict[str, Any]:
    """The result and what it took, in a process of its own."""
    train, held_out = _rows(case, data)
    config, model = CompressionConfig(**case.settings, budgets=BUDGETS), str(models / case.model)
    with tempfile.TemporaryDirectory() as output:
        result = compress(model, train, output, config, eval_data=held_out, report=_say)
    print(f"{case.model}\n{result}\n", flush=True)
    memory = {
        "measured": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "estimated": max(estimate(model, config).peak_memory_bytes.values()),
    }
    return {"settings": dict(case.settings), **result.as_dict(), "peak_memory_bytes": memory}


def _rows(case: Case, data: Path) -> tuple[Any, Any]:
    """The archive, or the first rows of both files; a math problem is one text with its answer."""
    if case.rows is None:
        return data / case.data, None
    parts = []
    for part, count in zip(("train", "test"), case.rows, strict=True):
        rows = [dict(row) for _, row in islice(open_source(data / case.data / f"{part}.jsonl").train, count)]
        if case.settings["task"] == "text-generation":
            rows = [{"text": f"{row['question']}\n{row['answer']}"} for row in rows]
        parts.append(rows)
    return parts[0], parts[1]


def _say(stage: Stage, done: float, note: str) -> None:
    print(f"\r{stage:<12} {done:4.0%} {note[:60]:<60}", end="" if done < 1 else "\n", flush=True)


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The task's own metric and the whole model's parameters, dense and at each budget."""
    rows = []
    for name in (name for name in CASES if name in found):
        case = found[name]
        points = [(case["dense_metrics"], case["dense_size"])]
        points += [(point["metrics"], point["size"]) for point in case["budgets"]]
        cells = [f"{scores[case['metric']]:.3f} at {size['parameters'] / 1e6:.1f} M" for scores, size in points]
        rows.append([name, case["task"], case["metric"], *cells])
    return markdown(["model", "task", "metric", "dense", *(f"budget {budget:g}" for budget in BUDGETS)], rows)


def sizing(found: Mapping[str, Mapping[str, Any]]) -> str:
    """What a run took, beside what the estimate says of its memory before."""
    rows = []
    for name in (name for name in CASES if name in found):
        case = found[name]
        memory = [f"{case['peak_memory_bytes'][kind] / 1e9:.1f} GB" for kind in ("measured", "estimated")]
        size = f"{case['dense_size']['parameters'] / 1e6:.0f} M"
        rows.append([name, case["task"], size, *memory, f"{sum(case['seconds'].values()) / 60:.0f} min"])
    head = ["model", "task", "parameters", "a run's memory", "as estimated", f"time for {len(BUDGETS)} budgets"]
    return markdown(head, rows)


if __name__ == "__main__":
    main()
