"""The clean process in which finished checkpoints are loaded: `python -m jactus_core.verification AUTO_CLASS PAIRS`."""

from __future__ import annotations

import json
import sys

import torch
import transformers
from safetensors.torch import load_file

import jactus_core  # noqa: F401 - teaches transformers the checkpoint's model type


@torch.inference_mode()
def largest_difference(auto_class: str, folder: str, probe: str) -> float:
    """Largest difference between a checkpoint's logits and those kept in `probe`, relative to their largest."""
    kept = load_file(probe)
    inputs = {key.removeprefix("input."): value for key, value in kept.items() if key.startswith("input.")}
    model = getattr(transformers, auto_class).from_pretrained(folder).eval()
    difference = (model(**inputs).logits - kept["logits"]).abs().max() / kept["logits"].abs().max().clamp(min=1.0)
    return float(difference)


def difference_or_reason(auto_class: str, folder: str, probe: str) -> float | str:
    """The largest difference, or why there is none."""
    try:
        return largest_difference(auto_class, folder, probe)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent process tells
        return f"{type(error).__name__}: {error}"


def main() -> None:
    auto_class, pairs = sys.argv[1], json.loads(sys.argv[2])
    found = {folder: difference_or_reason(auto_class, folder, probe) for folder, probe in pairs}
    print(json.dumps(found))  # noqa: T201 - the answer to the parent process


if __name__ == "__main__":
    main()
