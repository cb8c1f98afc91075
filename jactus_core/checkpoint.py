"""Writing the result: a folder that `from_pretrained` loads, with the report of how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from jactus_core.layers import fold_cores
from jactus_core.modeling_jactus import model_class_for

REPORT_FILE = "report.json"


def deployed(model: PreTrainedModel, ranks: dict[str, int | None]) -> PreTrainedModel:
    """Fold the cores of `model` in place and return it as the class that its checkpoint will load as."""
    fold_cores(model)
    base = model.config
    model_class = model_class_for(base.model_type, type(model).__name__)
    described = {key: value for key, value in base.to_dict().items() if key != "model_type"}
    config = model_class.config_class(
        **described,
        base_model_type=base.model_type,
        base_architecture=type(model).__name__,
        ranks={name: rank for name, rank in ranks.items() if rank is not None},
    )
    twin: PreTrainedModel = model_class(config)
    twin.load_state_dict(model.state_dict(), strict=True, assign=True)
    twin.to(model.device)  # type: ignore[arg-type]  # buffers; the wrapped method's types lose `self`
    return twin.eval()


def save_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, report: dict[str, Any], folder: Path
) -> None:
    """Write weights (safetensors), configuration, modeling file, tokenizer and report into `folder`."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
