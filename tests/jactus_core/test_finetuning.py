"""What finetuning moves, and how far."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from jactus_core.config import CompressionConfig
from jactus_core.encoding import encode
from jactus_core.examples import read_examples
from jactus_core.factorization import Factorization, Metric, factorize
from jactus_core.finetuning import finetune_cores
from jactus_core.layers import find_targets, install_cores, matrix_of
from jactus_core.loading import load_model
from jactus_core.models import find_model
from tests.tiny import reviews

RATE, STEPS, RANK = 1e-3, 6, 4
UNLIKE = 30.0
"""How much larger one factor is made than the other."""
FARTHEST = 4.0
"""Adam's steps stay within a few times its rate."""


def unlike_factors(weight: Tensor) -> Factorization:
    m, n = weight.shape
    found = factorize(weight, Metric.identity(n), Metric.identity(m))
    return replace(found, up=found.up * UNLIKE, down=found.down / UNLIKE)


@pytest.mark.parametrize("trained", ["core", "factors"])
def test_training_moves_factors_by_a_share_of_their_own_size_or_not_at_all(
    trained: Literal["core", "factors"], tiny_bert: Path
) -> None:
    config = CompressionConfig(
        trained=trained, learning_rate=RATE, epochs=1, batch_size=8, max_length=24, warmup_epochs=1
    )
    examples, _ = read_examples(reviews(8 * STEPS), config.task)
    torch.manual_seed(0)
    loaded = load_model(find_model(str(tiny_bert)), examples.label_names, config)
    targets = find_targets(loaded.model, loaded.body, loaded.head)
    factors = {name: unlike_factors(matrix_of(layer)) for name, layer in targets.layers.items()}
    install_cores(loaded.model, factors.__getitem__, dict.fromkeys(targets.layers, RANK))
    before = {name: parameter.detach().clone() for name, parameter in loaded.model.named_parameters()}

    finetune_cores(loaded.model, loaded.head, encode(examples, loaded, config), config, lambda done: None)

    for name, parameter in loaded.model.named_parameters():
        moved = float((parameter.detach() - before[name]).norm() / before[name].norm())
        if name.endswith((".up", ".down")) and trained == "core":
            assert moved == 0
        elif name.endswith((".up", ".down")):
            assert 0.1 * RATE < moved < FARTHEST * STEPS * RATE
        elif name.endswith(".core"):
            assert moved > 0
