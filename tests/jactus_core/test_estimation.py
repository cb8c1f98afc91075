"""Estimates agree with what a compression then takes and gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jactus_core import estimate
from jactus_core.calibration import calibrate, find_readers
from jactus_core.errors import UnsupportedModel
from jactus_core.layers import find_targets
from jactus_core.loading import load_model
from jactus_core.models import find_model
from tests.jactus_core.architectures import QUICK, Compressed, architectures

LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}


@pytest.fixture
def llama(tmp_path: Path) -> str:
    """The configuration of a model that nobody would download for a test; its weights are an empty file."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2_7B))
    (tmp_path / "model.safetensors").touch()
    return str(tmp_path)


def test_a_model_of_seven_billion_parameters_is_estimated_without_its_weights(llama: str) -> None:
    found = estimate(llama, task="text-generation", dtype="bfloat16", budgets=(0.8, 0.4, 1e-5), rank_multiple=8)

    assert found.parameters == 6_738_415_616
    assert found.bytes == 2 * found.parameters
    assert found.layers == 32 * 7
    assert found.compressible_parameters == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    per_block = 4 * (4 + 7) * 4096**2  # q, k, v share C_x; so do gate and up; of 11008 wide sides the products alone
    assert found.covariance_bytes == 32 * per_block
    assert [point.feasible for point in found.budgets] == [True, True, False]
    smallest = 32 * 8 * (4 * (4096 + 4096 - 8) + 3 * (4096 + 11008 - 8))  # rank 8 everywhere
    assert found.smallest_budget == pytest.approx(smallest / found.compressible_parameters)


def test_a_union_by_thresholds_needs_all_covariances(llama: str) -> None:
    found = estimate(llama, task="text-generation", union="thresholds")

    per_block = 4 * (3 * 4096**2 + 11008**2 + 5 * 4096**2 + 2 * 11008**2)
    assert found.covariance_bytes == 32 * per_block
    assert found.decomposition_flops > estimate(llama, task="text-generation").decomposition_flops


def test_what_a_language_model_says_takes_memory(llama: str, tmp_path: Path) -> None:
    few = estimate(llama, task="text-generation", batch_size=4, max_length=64)
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_2_7B, "vocab_size": 10 * 32000}))
    many = estimate(llama, task="text-generation", batch_size=4, max_length=64)

    logits = 4 * 4 * 64 * 9 * 32000  # float32, of 9 more words for each one
    more_weights = many.bytes - few.bytes
    for stage, models, copies in (
        ("calibrating", 1, 4),
        ("allocating", 1, 4),
        ("finetuning", 2, 8),
        ("evaluating", 2, 2),
    ):
        more = many.peak_memory_bytes[stage] - few.peak_memory_bytes[stage]
        assert more == models * more_weights + copies * logits


def test_a_bound_on_covariances_means_more_passes_and_less_memory(llama: str) -> None:
    free = estimate(llama, task="text-generation")
    bound = estimate(llama, task="text-generation", max_covariance_bytes=3 * 2**30)

    assert free.calibration_passes == 1
    assert bound.calibration_passes == 8  # four blocks of 0.7 gigabytes at a time
    for stage in ("calibrating", "allocating"):
        assert bound.peak_memory_bytes[stage] < free.peak_memory_bytes[stage]


@pytest.mark.parametrize("name", ["bert", "llama", "vit", "gpt2"])
def test_sizes_and_sharing_are_those_of_the_loaded_model(
    name: str, compressed: Callable[[str], Compressed], tmp_path: Path
) -> None:
    architecture = architectures[name]
    folder = architecture.write(tmp_path / name)
    dense = compressed(name).result.dense_size
    config = QUICK.model_copy(update={"task": architecture.task})

    found = estimate(str(folder), config)

    assert found.parameters == dense.parameters
    assert found.compressible_parameters == dense.compressible_parameters
    point = compressed(name).result.budgets[0]
    assert point.size.parameters <= found.budgets[0].parameters
    assert point.size.parameters > 0.9 * found.budgets[0].parameters

    loaded = load_model(find_model(str(folder)), ["a", "b"], config)
    targets = find_targets(loaded.model, loaded.body, loaded.head)
    rows = torch.ones(2, 4, dtype=torch.long)
    side = {"pixel_values": torch.rand(2, 3, 32, 32)} if name == "vit" else {"input_ids": rows}
    labels = rows[:, 0] * 0 if architecture.task.endswith("classification") else rows
    groups = find_readers(loaded.model, targets.layers, side)
    statistics = calibrate(loaded.model, targets.layers, groups, [{**side, "labels": labels}])
    held = {id(m): m.total.nbytes for seen in statistics.values() for m in (seen.inputs, seen.gradients)}
    assert found.covariance_bytes == sum(held.values())


def test_the_smallest_budget_of_the_whole_model_is_larger(llama: str) -> None:
    of_layers = estimate(llama, task="text-generation").smallest_budget
    of_model = estimate(llama, task="text-generation", budget_scope="model").smallest_budget
    assert of_model > of_layers + 0.03, "embeddings and head cannot go"


def test_a_task_that_the_model_cannot_do_is_refused(llama: str) -> None:
    with pytest.raises(UnsupportedModel, match="no image-classification model of the type 'llama'"):
        estimate(llama, task="image-classification")


def test_ranks_are_those_of_a_uniform_allocation(llama: str) -> None:
    found = estimate(llama, task="text-generation", budgets=(1, 0.5, 0.01), rank_multiple=8)
    dense, half, least = (point.ranks for point in found.budgets)

    assert dense == {"4096x4096": None, "4096x11008": None, "11008x4096": None}
    assert half == {"4096x4096": 1192, "4096x11008": 1672, "11008x4096": 1672}
    assert {*least.values()} == {16, 24}
    for (m, n), rank in (((4096, 4096), 1192), ((4096, 11008), 1672)):
        assert rank * (m + n - rank) <= 0.5 * m * n < (rank + 8) * (m + n - rank - 8)


def test_a_uniform_allocation_needs_what_its_least_compressible_layer_needs(llama: str) -> None:
    smallest = [
        estimate(llama, task="text-generation", allocation=kind, rank_multiple=64).smallest_budget
        for kind in ("global", "uniform")
    ]
    assert smallest[1] == pytest.approx(64 * (4096 + 4096 - 64) / 4096**2)
    assert smallest[0] < smallest[1]
