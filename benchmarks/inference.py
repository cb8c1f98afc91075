"""What a compressed checkpoint takes to answer, beside the dense one: throughput at batch 32, latency at batch 1.

    python -m benchmarks.inference [--models FOLDER] [--data FOLDER] [--experiments sst2 dtd10] [--repeats 15]

Eager PyTorch, in float32 and bfloat16, torch.compile and ONNX Runtime, at every budget, with ranks rounded to 1, 8, 16
and 64. All models of an engine take turns on the same batch; a figure is the median over turns of the compressed
model's time by the dense one's. What lies below `benchmarks/results/inference` is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import transformers
from transformers import PreTrainedModel

from benchmarks.experiments import EXPERIMENTS
from benchmarks.methods import BUDGETS
from benchmarks.recording import (
    RESULTS,
    interleaved,
    markdown,
    ratio,
    read_result,
    read_results,
    summarize,
    write_result,
)
from benchmarks.trial import Trial
from jactus_core.checkpoint import deploy, save_checkpoint
from jactus_core.config import CompressionConfig
from jactus_core.export import ONNX_FILE, export
from jactus_core.layers import fold_cores
from jactus_core.loading import KERNEL_CACHES
from jactus_core.losses import without_labels

COMMAND = "python -m benchmarks.inference"
FOLDER = RESULTS / "inference"
MULTIPLES = (1, 8, 16, 64)
BATCHES = (32, 1)
DENSE = "dense"
CALIBRATION_ROWS = 128
BOUND = 1.0
Batch = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder of models, instead of the hub")
    parser.add_argument("--data", type=Path, help="folder of datasets, instead of the hub")
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=["sst2", "dtd10"], metavar="NAME")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), metavar="NAME")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    os.environ |= dict.fromkeys(KERNEL_CACHES, "16384")  # models take turns, and each finds its kernels again
    transformers.utils.logging.set_verbosity_error()
    for name in options.experiments:
        measure(name, options)
    conclude()


def measure(name: str, options: argparse.Namespace) -> None:
    """Every engine at every batch that no earlier run has measured."""
    file = FOLDER / f"{name}.json"
    found = (read_result(file) or {"milliseconds": {}})["milliseconds"]
    left = [(engine, size) for engine in options.engines for size in BATCHES if place(engine, size) not in found]
    if not left:
        return
    with tempfile.TemporaryDirectory() as folder:
        trial = small_trial(name, options.models, options.data)
        models = write_models(trial, Path(folder))
        for engine, size in left:
            batch = without_labels(trial.dev.batch(trial.dev.order(by_length=True)[:size]))
            actions = {model: ENGINES[engine](models[model], batch) for model in models}
            seconds = interleaved(actions, options.repeats)
            found[place(engine, size)] = {
                model: [round(1000 * value, 3) for value in values] for model, values in seconds.items()
            }
            write_result(file, {"experiment": name, "milliseconds": found})
            print(f"{name}: {place(engine, size)}", flush=True)


def place(engine: str, size: int) -> str:
    return f"{engine}, batch {size}"


def small_trial(name: str, models: Path | None, data: Path | None) -> Trial:
    """With few rows and in float32: speed asks for ranks as a calibration gives them, not for training."""
    experiment = EXPERIMENTS[name]
    settings = {**experiment.settings, "calibration_samples": CALIBRATION_ROWS, "dtype": "float32"}
    return Trial(replace(experiment, rows=CALIBRATION_ROWS, settings=settings), 0, models, data)


def write_models(trial: Trial, folder: Path) -> dict[str, Path]:
    """Checkpoints, dense and compressed, by name."""
    found = {DENSE: folder / DENSE}
    dense, _ = trial.compressed(trial.config.model_copy(update={"budgets": (1.0,)}))
    fold_cores(dense)
    save_checkpoint(deploy(dense, trial.loaded, {}), trial.loaded.processor, found[DENSE])
    for budget in BUDGETS:
        for multiple in MULTIPLES:
            config = trial.config.model_copy(update={"budgets": (budget,), "rank_multiple": multiple})
            model, ranks = trial.compressed(config)
            name = variant(budget, multiple)
            found[name] = folder / name
            save_checkpoint(deploy(model, trial.loaded, ranks), trial.loaded.processor, found[name])
    return found


def variant(budget: float, multiple: int) -> str:
    return f"{budget:g}, ranks of {multiple}"


def eager(folder: Path, batch: Batch) -> Callable[[], Any]:
    return _answering(_load(folder), batch)


def eager_bfloat16(folder: Path, batch: Batch) -> Callable[[], Any]:
    """With weights as most language models have them."""
    pixels = {name: value.bfloat16() for name, value in batch.items() if name == "pixel_values"}
    return _answering(_load(folder).bfloat16(), batch | pixels)


def compiled(folder: Path, batch: Batch) -> Callable[[], Any]:
    """Compiled for this shape, as a server with fixed shapes would; apart from other models of the same class."""
    model = _load(folder)
    model.compile(dynamic=False, isolate_recompiles=True)
    run = _answering(model, batch)
    run()
    return run


def _answering(model: Any, batch: Batch) -> Callable[[], Any]:
    @torch.inference_mode()
    def run() -> object:
        return model(**batch)

    return run


def onnx(folder: Path, batch: Batch) -> Callable[[], Any]:
    exported = folder / "onnx"
    if not exported.exists():
        export(folder, exported, "onnx")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(exported / ONNX_FILE, settings, providers=["CPUExecutionProvider"])
    names = {given.name for given in session.get_inputs()}
    inputs = {name: value.numpy() for name, value in batch.items() if name in names}
    return lambda: session.run(None, inputs)


def _load(folder: Path) -> PreTrainedModel:
    described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    auto = next(name for name in described["auto_map"] if name != "AutoConfig")
    model: PreTrainedModel = getattr(transformers, auto).from_pretrained(folder)
    return model.eval()


ENGINES: Mapping[str, Callable[[Path, Batch], Callable[[], Any]]] = {
    "eager": eager,
    "eager bfloat16": eager_bfloat16,
    "torch.compile": compiled,
    "ONNX Runtime": onnx,
}


def ratios(milliseconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Of every compressed model to the dense one."""
    return {name: ratio(dict(milliseconds), name, DENSE) for name in milliseconds if name != DENSE}


def table() -> str:
    """Of the dense model's time, by budget; one row per engine, batch size and rounding of the ranks."""
    files = read_results(FOLDER)
    budgets = " / ".join(f"{budget:.0%}" for budget in BUDGETS)
    head = ["engine", "batch", "ranks of", *(f"{f['experiment']}, {part}" for f in files for part in (DENSE, budgets))]
    rows = (
        [engine, str(size), str(multiple), *(cell for f in files for cell in _cells(f, engine, size, multiple))]
        for engine in ENGINES
        for size in BATCHES
        for multiple in MULTIPLES
    )
    return markdown(head, rows)


def _cells(result: Mapping[str, Any], engine: str, size: int, multiple: int) -> tuple[str, str]:
    milliseconds = result["milliseconds"].get(place(engine, size))
    if milliseconds is None:
        return "", ""
    found = ratios(milliseconds)
    shares = " / ".join(f"{found[variant(budget, multiple)]:.2f}" for budget in BUDGETS)
    return f"{statistics.median(milliseconds[DENSE]):.0f} ms", shares


def conclude() -> None:
    """One figure per engine, budget and batch size, at the default rounding: the mean over experiments."""
    multiple = CompressionConfig().rank_multiple
    files = read_results(FOLDER)
    for engine in ENGINES:
        for size in BATCHES:
            key = place(engine, size)
            used = [found for found in files if key in found["milliseconds"]]
            series = [found["milliseconds"][key] for found in used]
            for budget in BUDGETS if series else ():
                value = statistics.mean(ratios(found)[variant(budget, multiple)] for found in series)
                id = f"inference_batch{size}@{budget:g}/{engine}"
                metric = f"time of compressed / dense, {engine}, batch {size}, ranks of {multiple}"
                summarize(id, metric, value, f"<= {BOUND:g}", value <= BOUND, COMMAND, used)


if __name__ == "__main__":
    main()
