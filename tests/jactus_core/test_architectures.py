"""Every kind of model compresses, and its folder loads in a new process, with the package and without it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.jactus_core.architectures import QUICK, Compressed, architectures
from tests.jactus_core.processes import WITH_PACKAGE, WITHOUT_PACKAGE, in_new_process

LOGITS = """
import torch, transformers
from safetensors.torch import load_file

found, (folders, options) = {}, arguments
for name, (auto_class, folder, probe) in folders.items():
    model = getattr(transformers, auto_class).from_pretrained(folder, **options).eval()
    inputs = {key[6:]: value for key, value in load_file(probe).items() if key != "logits"}
    with torch.inference_mode():
        found[name] = model(**inputs).logits.tolist()
print()  # ends the line of transformers' question
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Elsewhere:
    """Logits in new processes, by architecture."""

    with_package: dict[str, Any]
    without_package: dict[str, Any]


@pytest.fixture(scope="module")
def elsewhere(compressed: Callable[[str], Compressed], tmp_path_factory: pytest.TempPathFactory) -> Elsewhere:
    every = {name: compressed(name) for name in architectures}
    folders = {name: [found.auto_class, found.folder, found.probe] for name, found in every.items()}
    cache = tmp_path_factory.mktemp("modules")

    def logits(start: str, **options: Any) -> dict[str, Any]:
        return in_new_process(start + LOGITS, folders, options, HF_MODULES_CACHE=cache)

    with ThreadPoolExecutor(2) as pool:
        knowing = pool.submit(logits, WITH_PACKAGE)
        trusting = pool.submit(logits, WITHOUT_PACKAGE, trust_remote_code=True)
        return Elsewhere(knowing.result(), trusting.result())


@pytest.mark.parametrize("name", architectures)
def test_a_compressed_model_is_smaller_and_gives_the_same_logits_wherever_it_is_loaded(
    name: str, compressed: Callable[[str], Compressed], elsewhere: Elsewhere
) -> None:
    found = compressed(name)
    stored = load_file(found.folder / "model.safetensors")

    for logits in elsewhere.with_package[name], elsewhere.without_package[name]:
        torch.testing.assert_close(torch.tensor(logits), found.logits)
    assert found.point.size.parameters < found.result.dense_size.parameters
    assert 0.5 < found.point.kept_fraction <= QUICK.budgets[0]
    assert len(found.config["ranks"]) == sum(rank is not None for rank in found.point.ranks.values()) > 0
    for layer, rank in found.config["ranks"].items():
        assert stored[f"{layer}.down.weight"].shape[0] == stored[f"{layer}.up.weight"].shape[1] == rank
    assert stored.keys() & {f"{found.architecture.layer}.{part}" for part in ("weight", "down.weight")}
