"""What it takes to get a result: time and memory beside LoRA, preparation beside SVD-LLM's.

    python -m benchmarks.costs [--models FOLDER] [--data FOLDER] [--experiments sst2 …] [--seeds 0 1 2]

Time to result: JACTUS at a budget of 0.8 and LoRA are each trained with whole schedules of several lengths, at the
rates that `benchmarks.quality` chose, the shorter ones also at the next higher rate of its grid. The target is what the
worse of the two reaches on dev with the longest; the time is that of the fastest run that reaches it, calibration and
decomposition included. One more run of each method, with an eighth of the steps less, tells whether that would have
done. Every run is a process of its own, which also tells its peak memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from benchmarks.experiments import EXPERIMENTS
from benchmarks.methods import METHODS, RATES
from benchmarks.recording import (
    RESULTS,
    interleaved,
    markdown,
    peak_resident,
    ratio,
    read_result,
    read_results,
    summarize,
    write_result,
)
from benchmarks.runs import chosen_rate
from benchmarks.trial import Trial
from jactus_core.errors import NonFiniteLoss
from jactus_core.layers import matrix_of
from jactus_core.losses import without_labels

COMMAND = "python -m benchmarks.costs"
FOLDER = RESULTS / "costs"
OURS, THEIRS = "jactus", "lora"
BUDGETS = {OURS: 0.8, THEIRS: 1.0}
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the experiment's epochs."""
BOUND = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder of models, instead of the hub")
    parser.add_argument("--data", type=Path, help="folder of datasets, instead of the hub")
    parser.add_argument(
        "--experiments", nargs="+", choices=EXPERIMENTS, default=["sst2", "banking77", "dtd10"], metavar="NAME"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=3, help="of the preparation")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    if options.run:
        print(json.dumps(one_run(options, **json.loads(options.run))))
        return
    for name in options.experiments:
        measure(name, options)
    conclude()


def measure(name: str, options: argparse.Namespace) -> None:
    """Add what is missing to the experiment's file."""
    file = FOLDER / f"{name}.json"
    found = read_result(file) or {"experiment": name, "runs": [], "preparation": {}}
    for seed in options.seeds:
        for asked in chain(runs(name, seed), halfway(found["runs"], seed)):
            if not any(asked.items() <= run.items() for run in found["runs"]):
                found["runs"].append({**asked, **in_new_process(options, {"name": name, **asked})})
                write_result(file, found)
                print(f"{name}: {found['runs'][-1]}", flush=True)
    if not found["preparation"]:
        found["preparation"] = preparation(Trial(EXPERIMENTS[name], 0, options.models, options.data), options.repeats)
        write_result(file, found)


def runs(name: str, seed: int) -> Iterator[dict[str, Any]]:
    """What is to be run, both methods in turn."""
    chosen = {method: chosen_rate(name, method) for method in (OURS, THEIRS)}
    grids = {method: RATES[RATES.index(rate) :] for method, rate in chosen.items() if rate is not None}
    if len(grids) < len(chosen):
        raise SystemExit(f"Run python -m benchmarks.quality --experiments {name} --methods {OURS} {THEIRS} first.")
    for share in SHARES:
        for higher in (0, 1) if share < 1 else (0,):
            for method, grid in grids.items():
                yield {"method": method, "share": share, "seed": seed, "rate": grid[higher]}


def halfway(found: Sequence[Mapping[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
    """Between the fastest run that reached the target, of each method, and the next shorter one."""
    regular = [run for run in found if run["seed"] == seed and run["share"] in SHARES]
    for method, run in fastest(regular).items():
        yield {"method": method, "share": run["share"] - SHARES[0] / 2, "seed": seed, "rate": run["rate"]}


def in_new_process(options: argparse.Namespace, asked: Mapping[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.costs", "--run", json.dumps(asked)]
    for option in ("models", "data"):
        folder = getattr(options, option)
        command += [f"--{option}", str(folder)] if folder else []
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(answer.stdout.splitlines()[-1]))


def one_run(
    options: argparse.Namespace, name: str, method: str, share: float, seed: int, rate: float
) -> dict[str, float]:
    """Seconds from the warmed-up model to the tuned one, its score on dev, and the process's peak memory in bytes.

    A run that diverges scores nothing.
    """
    experiment = EXPERIMENTS[name]
    epochs = experiment.config(seed).epochs * share
    shorter = replace(experiment, settings={**experiment.settings, "epochs": epochs})
    trial = Trial(shorter, seed, options.models, options.data, once=True)
    tuned: list[Any] = []

    def run() -> None:
        with suppress(NonFiniteLoss):
            tuned.append(METHODS[method].run(trial, BUDGETS[method], rate))

    began = time.monotonic()
    peak = peak_resident(run)
    seconds = time.monotonic() - began
    return {"seconds": round(seconds, 2), "dev": trial.dev_score(tuned[0]) if tuned else 0.0, "peak_bytes": peak}


def preparation(trial: Trial, repeats: int) -> dict[str, list[float]]:
    """Seconds of calibration and decomposition on the same rows, ours and SVD-LLM's, in turns."""
    config = trial.config

    def ours() -> None:
        trial.factorize(trial.loaded.model, trial.calibrate(trial.loaded.model, config), config)

    def theirs() -> None:
        svd_llm(trial.targets.layers, trial.loaded.model, trial.batches(config))

    return interleaved({"ours": ours, "svd-llm": theirs}, repeats)


@torch.no_grad()
def svd_llm(layers: Mapping[str, nn.Module], model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Whitening and truncation as in SVD-LLM (Wang et al. 2025): per layer Xᵀ X, its Cholesky factor, one full SVD."""
    sums: dict[str, torch.Tensor] = {}
    mask: torch.Tensor | None = None

    def record(name: str, x: torch.Tensor) -> None:
        rows = x.flatten(0, -2) if mask is None or mask.shape != x.shape[:2] else x[mask]
        sums[name] = sums.get(name, 0) + rows.float().T @ rows.float()

    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: record(name, args[0]))
        for name, layer in layers.items()
    ]
    for batch in batches:
        mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
        model(**without_labels(batch))
    for handle in handles:
        handle.remove()
    found = {}
    for name, layer in layers.items():
        gram = sums[name].double()
        gram.diagonal().add_(1e-6 * gram.diagonal().mean())
        scaling = torch.linalg.cholesky(gram).float()
        u, s, vt = torch.linalg.svd(matrix_of(layer).float() @ scaling, full_matrices=False)
        found[name] = (
            u * s.sqrt(),
            s.sqrt()[:, None] * torch.linalg.solve_triangular(scaling, vt, upper=False, left=False),
        )
    return found


def fastest(runs: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The run of each method, with one seed, that first reached what the worse of the two reaches with all steps."""
    target = min(run["dev"] for run in runs if run["share"] == max(SHARES))
    reached = sorted((run for run in runs if run["dev"] >= target), key=lambda run: float(run["seconds"]))
    return {method: next(run for run in reached if run["method"] == method) for method in (OURS, THEIRS)}


def by_seed(found: Mapping[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """The runs of one experiment."""
    seeds = sorted({run["seed"] for run in found["runs"]})
    return {seed: [run for run in found["runs"] if run["seed"] == seed] for seed in seeds}


def peaks(runs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Bytes of each method, with all steps."""
    return {run["method"]: run["peak_bytes"] for run in runs if run["share"] == max(SHARES)}


def table() -> str:
    """Ours and LoRA's by experiment and seed: seconds to the same score on dev, of how many steps, peak memory."""
    rows = []
    for found in read_results(FOLDER):
        prepared = [f"{statistics.median(found['preparation'][name]):.1f} s" for name in ("ours", "svd-llm")]
        for seed, runs in by_seed(found).items():
            best, peak = fastest(runs), peaks(runs)
            times = [f"{best[name]['seconds']:.0f} s of {best[name]['share']:.1%}" for name in (OURS, THEIRS)]
            memories = [f"{peak[name] / 1e9:.2f} GB" for name in (OURS, THEIRS)]
            rows.append([found["experiment"], str(seed), *times, *memories, *prepared])
    sides = [f"{what}, {name}" for what in ("time", "memory") for name in ("JACTUS", "LoRA")]
    return markdown(["dataset", "seed", *sides, "preparation", "SVD-LLM's"], rows)


def conclude() -> None:
    files = read_results(FOLDER)
    names = ", ".join(found["experiment"] for found in files)
    times, memories, preparations = [], [], []
    for found in files:
        for runs in by_seed(found).values():
            best, peak = fastest(runs), peaks(runs)
            times.append(best[OURS]["seconds"] / best[THEIRS]["seconds"])
            memories.append(peak[OURS] / peak[THEIRS])
        preparations.append(ratio(found["preparation"], "ours", "svd-llm"))
    for id, values, metric in (
        ("time_vs_lora", times, "time to the same dev score, JACTUS at 0.8 / LoRA r=16"),
        ("memory_vs_lora", memories, "peak memory, JACTUS at 0.8 / LoRA r=16"),
        ("preparation_vs_svd_llm", preparations, "calibration and decomposition / SVD-LLM's"),
    ):
        value = statistics.median(values)
        summarize(id, f"{metric}, median over {names}", value, f"<= {BOUND:g}", value <= BOUND, COMMAND, files)


if __name__ == "__main__":
    main()
