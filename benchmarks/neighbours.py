"""Training beside another busy process and alone: how long threads wait for each other, by libgomp's default and ours.

    python -m benchmarks.neighbours [--model FOLDER_OR_HUB_ID] [--repeats 5]

Every turn trains in new processes, as the patience of threads is read when PyTorch is imported. Ratios of interleaved
repeats. The busy neighbour keeps one processor; PyTorch takes as many threads as it does by itself.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import jactus_core
from benchmarks.method_speed import bundled_model, uncalibrated_core_step
from benchmarks.recording import interleaved, keep, ratio, summarize

COMMAND = "python -m benchmarks.neighbours"
PATIENCES = {"libgomp": "300000", "ours": jactus_core.PATIENCE}
STEPS = 12
BOUNDS = {"busy": 0.8, "idle": 1.05}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=bundled_model(), help="a BERT-like encoder (default: the demo's MiniLM)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(seconds_per_step(options.model))
        return
    found: dict[str, dict[str, list[float]]] = {}
    for place in BOUNDS:
        found[place] = {patience: [] for patience in PATIENCES}
        for _ in range(options.repeats):
            for patience, spins in PATIENCES.items():
                with neighbour(place == "busy"):
                    found[place][patience].append(in_new_process(options.model, spins))
    keep("neighbours", {"seconds_per_step": found})
    for place, bound in BOUNDS.items():
        value = ratio(found[place], "ours", "libgomp")
        metric = f"core step, threads that sleep sooner / libgomp's default, {place} machine"
        summarize(f"patience_{place}", metric, value, f"<= {bound:g}", value <= bound, COMMAND)


def seconds_per_step(model: str) -> float:
    """Median, after one step that does not count."""
    return statistics.median(interleaved({"step": uncalibrated_core_step(model)}, STEPS)["step"])


def in_new_process(model: str, spins: str) -> float:
    command = [sys.executable, "-m", "benchmarks.neighbours", "--child", "--model", model]
    environment = os.environ | {"GOMP_SPINCOUNT": spins}
    answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(answer.stdout.splitlines()[-1])


@contextmanager
def neighbour(busy: bool) -> Iterator[None]:
    """A process that does nothing but keep a processor, or none."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        yield
    finally:
        if process:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
