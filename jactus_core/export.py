"""A finished checkpoint in other forms: with dense layers, which load anywhere and save nothing, or as ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoImageProcessor, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.pytorch_utils import Conv1D

import jactus_core  # noqa: F401 - teaches transformers the checkpoint's model type
from jactus_core.errors import ModelNotFound, UnsupportedModel
from jactus_core.layers import multiplied
from jactus_core.modeling_jactus import LowRankLinear

ONNX_FILE = "model.onnx"
OWN_SETTINGS = {"base_model_type", "base_architecture", "ranks", "forward_defaults", "auto_map", "model_type"}
PROCESSOR_FILES = (
    "*token*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "preprocessor_config.json",
    "*.model",
    "*.jinja",
)


def export(folder: str | Path, output: str | Path, form: Literal["dense", "onnx"] = "dense") -> Path:
    """Write the checkpoint in `folder` to `output` in another form, with its tokenizer or image processor.

    "dense": every layer multiplied out, the base architecture, loadable without this package; for images of another
    size than the base model's it wants `interpolate_pos_encoding=True` in every call. "onnx": `model.onnx` with
    dynamic batch and sequence; needs the packages onnx and onnxscript. Raises ModelNotFound or UnsupportedModel.
    """
    folder, output = Path(folder), Path(output)
    model = _load(folder)
    output.mkdir(parents=True, exist_ok=True)
    if form == "dense":
        densify(model).save_pretrained(output)
    else:
        _write_onnx(model, folder, output / ONNX_FILE)
        _base_config(model).to_json_file(output / "config.json")
    for pattern in PROCESSOR_FILES:
        for file in folder.glob(pattern):
            (output / file.name).write_bytes(file.read_bytes())
    return output


def _load(folder: Path) -> PreTrainedModel:
    config = folder / "config.json"
    if not config.is_file():
        raise ModelNotFound(f"There is no checkpoint in '{folder}'.", "folder")
    described = json.loads(config.read_text(encoding="utf-8"))
    autos = [name for name in described.get("auto_map", {}) if name != "AutoConfig"]
    if described.get("model_type") != "jactus" or not autos:
        raise UnsupportedModel(f"'{folder}' is not a compressed checkpoint.", "folder")
    model: PreTrainedModel = getattr(transformers, autos[0]).from_pretrained(folder, dtype="auto")
    return model.eval()


@torch.no_grad()
def densify(model: PreTrainedModel) -> PreTrainedModel:
    """Turn a compressed model, in place, into one of its base architecture; the logits do not change."""
    base = getattr(transformers, model.config.base_architecture)
    config = _base_config(model)
    with torch.device("meta"):
        original = base._from_config(config)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LowRankLinear):
            transposed = isinstance(original.get_submodule(name), Conv1D)
            model.set_submodule(name, multiplied(layer, transposed))
    model.__class__ = base
    model.__dict__.pop("_weight_conversions", None)
    model.config = config
    return model


def _base_config(model: PreTrainedModel) -> PreTrainedConfig:
    described = {key: value for key, value in model.config.to_dict().items() if key not in OWN_SETTINGS}
    described["architectures"] = [model.config.base_architecture]
    config: PreTrainedConfig = CONFIG_MAPPING[model.config.base_model_type](**described)
    return config


class _OnColumns(nn.Module):
    """A low-rank layer that reads its inputs as columns: ONNX Runtime picks rows of a matrix, and adds them to a
    product, several times faster than it picks columns."""

    first: Tensor
    others: Tensor

    def __init__(self, layer: LowRankLinear) -> None:
        super().__init__()
        self.down, self.up = layer.down.weight, layer.up.weight
        self.bias = layer.bias
        first, others = layer.order.tensor_split([self.up.shape[1]])
        self.register_buffer("first", first)
        self.register_buffer("others", others)

    def forward(self, x: Tensor) -> Tensor:
        columns = x.reshape(-1, x.shape[-1]).T
        hidden = torch.addmm(columns.index_select(0, self.first), self.down, columns.index_select(0, self.others))
        return functional.linear(hidden.T, self.up, self.bias).view(*x.shape[:-1], -1)


class _Logits(nn.Module):
    """The model as a function of its tensors alone."""

    def __init__(self, model: PreTrainedModel, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.extra = {"use_cache": False} if model.can_generate() else {}

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.model(**dict(zip(self.names, inputs, strict=True)), **self.extra).logits
        return logits


def _write_onnx(model: PreTrainedModel, folder: Path, file: Path) -> None:
    """Export with dynamic batch and, for texts, sequence; `model` is changed on the way."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LowRankLinear):
            model.set_submodule(name, _OnColumns(layer))
    batch = torch.export.Dim("batch", min=1, max=65536)
    if model.main_input_name == "pixel_values":
        processor = AutoImageProcessor.from_pretrained(folder)
        pixels = processor([Image.new("RGB", (256, 256))] * 2, return_tensors="pt")["pixel_values"]
        names = ["pixel_values"]
        example: Any = (pixels.to(model.dtype),)
        shapes: Any = ({0: batch},)
    else:
        sequence = torch.export.Dim("sequence", min=2, max=65536)
        names = ["input_ids", "attention_mask"]
        example = (torch.ones(2, 16, dtype=torch.long), torch.ones(2, 16, dtype=torch.long))
        shapes = ({0: batch, 1: sequence}, {0: batch, 1: sequence})
    torch.onnx.export(
        _Logits(model, names).eval(),
        example,
        str(file),
        input_names=names,
        output_names=["logits"],
        dynamic_shapes=(shapes,),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
