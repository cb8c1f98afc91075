"""Writing the result: a folder that `from_pretrained` loads, proven so in a clean process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from jactus_core.errors import UnfaithfulCheckpoint
from jactus_core.layers import fold_cores
from jactus_core.loading import Loaded
from jactus_core.losses import without_labels
from jactus_core.modeling_jactus import model_class_for, names_on_disk


def deploy(model: PreTrainedModel, loaded: Loaded, ranks: Mapping[str, int | None]) -> PreTrainedModel:
    """Fold the cores of `model` and make it, in place, the class that its checkpoint will load as."""
    fold_cores(model)
    dtype = loaded.model.dtype
    base = loaded.model.config
    model_class = model_class_for(base.model_type, type(model).__name__)
    model.__class__ = model_class
    model.__dict__.pop("_weight_conversions", None)  # of loading
    low_rank = {name: rank for name, rank in ranks.items() if rank is not None}
    on_disk = names_on_disk(model, low_rank)
    described = {key: value for key, value in base.to_dict().items() if key != "model_type"}
    model.config = model_class.config_class(
        **described,
        base_model_type=base.model_type,
        base_architecture=model_class.__name__.removeprefix("Jactus"),
        ranks={on_disk[name]: rank for name, rank in low_rank.items()},
        forward_defaults=loaded.forward_defaults,
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def save_checkpoint(model: PreTrainedModel, processor: Any, folder: Path, max_shard_size: str = "5GB") -> None:
    """Write weights (safetensors), configuration, modeling file and tokenizer or image processor into `folder`."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    processor.save_pretrained(folder)


@torch.inference_mode()
def save_probe(model: PreTrainedModel, batch: Mapping[str, Any], file: Path) -> None:
    """Keep a batch and the logits it gives, for `verify_checkpoints` to compare with; leaves `model` on the CPU,
    where the comparison is made."""
    model.to("cpu")  # type: ignore[arg-type]  # the wrapped method's types lose `self`
    inputs = {key: value for key, value in without_labels(batch).items() if isinstance(value, Tensor)}
    kept = {f"input.{key}": value for key, value in inputs.items()} | {"logits": model(**inputs).logits}
    save_file({name: tensor.cpu().contiguous() for name, tensor in kept.items()}, file)


def verify_checkpoints(probes: Mapping[Path, Path], auto_class: str) -> dict[str, float]:
    """Load each folder in one clean process, run its probe, and return the largest differences by folder name.

    `probes` maps checkpoint folders to files of `save_probe`. Raises UnfaithfulCheckpoint.
    """
    pairs = [[str(folder), str(file)] for folder, file in probes.items()]
    command = [sys.executable, "-m", "jactus_core.verification", auto_class, json.dumps(pairs)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise UnfaithfulCheckpoint(f"The clean process for checking failed: {answer.stderr.strip()[-2000:]}")
    found: dict[str, float | str] = json.loads(answer.stdout.splitlines()[-1])
    allowed = 1e-3 if all(_is_float32(folder) for folder in probes) else 5e-2
    complaints = [
        f"'{folder}' does not load in a clean process: {difference}"
        if isinstance(difference, str)
        else f"'{folder}', loaded in a clean process, gives logits that differ by {difference}"
        for folder, difference in found.items()
        if isinstance(difference, str) or not difference <= allowed
    ]
    if complaints:
        raise UnfaithfulCheckpoint("; ".join(complaints).rstrip(".") + ".")
    return {Path(folder).name: float(difference) for folder, difference in found.items()}


def _is_float32(folder: Path) -> bool:
    dtype: str = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("dtype", "float32")
    return dtype == "float32"
