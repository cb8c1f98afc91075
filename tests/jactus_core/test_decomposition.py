"""Factors of a whole model, from all of its covariances and from no more of them than is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from jactus_core.calibration import calibrate, find_readers
from jactus_core.config import CompressionConfig
from jactus_core.decomposition import Decomposition, factorized
from jactus_core.factorization import Factorization
from jactus_core.layers import Targets, find_targets
from jactus_core.work import WorkFolder
from tests.jactus_core.test_calibration import CLASSIFIED, HEAD, same
from tests.tiny import tiny_classifier

CPU = torch.device("cpu")


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_classifier()


def targets_of(model: PreTrainedModel) -> Targets:
    return find_targets(model, "bert", HEAD)


def factors_of(model: PreTrainedModel, whole: bool, config: CompressionConfig) -> dict[str, Factorization]:
    targets = targets_of(model)
    groups = find_readers(model, targets.layers, CLASSIFIED[0])
    statistics = calibrate(model, targets.layers, groups, CLASSIFIED, whole=whole)
    return {
        name: factors
        for group in groups
        for name, _, factors in factorized(targets, {name: statistics[name] for name in group}, config)
    }


@pytest.mark.parametrize("weighting", ["fisher", "input", "none"])
def test_what_the_weight_makes_of_the_wider_side_is_all_that_is_needed(model: PreTrainedModel, weighting: Any) -> None:
    config = CompressionConfig(weighting=weighting, shrinkage=0.1)
    whole, products = factors_of(model, True, config), factors_of(model, False, config)

    assert whole.keys() == products.keys() == targets_of(model).layers.keys()
    for name, one in whole.items():
        other = products[name]
        torch.testing.assert_close(one.singular, other.singular, rtol=1e-3, atol=1e-5 * float(one.singular[0]))
        for rank in (3, 8):
            first, second = (f.up[:, :rank] * f.singular[:rank] @ f.down[:rank].double() for f in (one, other))
            torch.testing.assert_close(first, second, rtol=1e-2, atol=1e-3 * float(first.abs().max()))


def test_kept_statistics_come_back_as_they_were(model: PreTrainedModel, tmp_path: Path) -> None:
    targets = targets_of(model)
    groups = find_readers(model, targets.layers, CLASSIFIED[0])
    statistics = calibrate(model, targets.layers, groups, CLASSIFIED)
    kept = Decomposition(WorkFolder(tmp_path), "key", list(targets.layers))

    kept.keep_statistics(groups, statistics)
    found = kept.recall_statistics(groups, CPU)

    assert found is not None
    same(statistics, found)
    assert len({id(found[name].inputs) for name in groups[0]}) == 1
    other = Decomposition(WorkFolder(tmp_path), "another key", list(targets.layers))
    assert other.recall_statistics(groups, CPU) is None
