"""A compressed checkpoint in forms that need nothing of this package."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoTokenizer

from jactus_core.errors import ModelNotFound, UnsupportedModel
from jactus_core.export import ONNX_FILE, export
from tests.jactus_core.architectures import Compressed, architectures, pictures
from tests.jactus_core.processes import WITHOUT_PACKAGE, in_new_process

Compress = Callable[[str], Compressed]
DENSE = ("bert", "gpt2", "llama", "vit")
LOAD = """
import torch, transformers
from safetensors.torch import load_file

found = {}
for name, (auto_class, folder, probe) in arguments[0].items():
    model = getattr(transformers, auto_class).from_pretrained(folder).eval()
    inputs = {key[6:]: value for key, value in load_file(probe).items() if key != "logits"}
    with torch.inference_mode():
        logits = model(**inputs).logits.tolist()
    found[name] = [type(model).__name__, model.config.model_type, logits]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def dense(compressed: Compress, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: export(compressed(name).folder, tmp_path_factory.mktemp("dense") / name) for name in DENSE}


@pytest.fixture(scope="module")
def loaded_without_package(compressed: Compress, dense: dict[str, Path]) -> Any:
    """Class, model type and logits of each dense folder."""
    folders = {name: [compressed(name).auto_class, dense[name], compressed(name).probe] for name in DENSE}
    return in_new_process(WITHOUT_PACKAGE + LOAD, folders)


@pytest.mark.parametrize("name", DENSE)
def test_the_dense_form_is_the_base_architecture_with_the_same_logits(
    name: str, compressed: Compress, loaded_without_package: Any
) -> None:
    found = compressed(name)
    model_class, model_type, logits = loaded_without_package[name]

    assert (model_class, model_type) == (found.config["base_architecture"], name)
    torch.testing.assert_close(torch.tensor(logits), found.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", DENSE)
def test_the_dense_form_has_the_names_and_settings_of_the_base_architecture(
    name: str, compressed: Compress, dense: dict[str, Path]
) -> None:
    config = json.loads((dense[name] / "config.json").read_text())
    low_rank = compressed(name).config["ranks"]
    stored = load_file(dense[name] / "model.safetensors")

    assert not config.keys() & {"ranks", "forward_defaults", "auto_map", "base_model_type", "base_architecture"}
    assert not (dense[name] / "modeling_jactus.py").exists()
    assert {f"{layer}.weight" for layer in low_rank} <= stored.keys()
    assert not any("down.weight" in key or "up.weight" in key for key in stored)


def test_the_tokenizer_and_the_image_processor_come_along(dense: dict[str, Path]) -> None:
    assert AutoTokenizer.from_pretrained(dense["bert"])("a great film").input_ids[0] == 2
    assert AutoImageProcessor.from_pretrained(dense["vit"])(pictures()[0]["image"]).pixel_values[0].shape == (3, 32, 32)


def run_onnx(folder: Path, inputs: dict[str, Any]) -> torch.Tensor:
    session = onnxruntime.InferenceSession(folder / ONNX_FILE, providers=["CPUExecutionProvider"])
    wanted = {given.name for given in session.get_inputs()}
    (logits,) = session.run(["logits"], {key: np.asarray(inputs[key]) for key in wanted})
    return torch.from_numpy(logits)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_onnx_reads_texts_of_any_number_and_length(name: str, compressed: Compress, tmp_path: Path) -> None:
    model = compressed(name).load()
    folder = export(compressed(name).folder, tmp_path, "onnx")

    for rows, length in ((1, 7), (3, 29)):
        ids = torch.randint(4, 30, (rows, length), generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        mask[-1, length // 2 :] = 0
        with torch.inference_mode():
            expected = model(input_ids=ids, attention_mask=mask).logits
        logits = run_onnx(folder, {"input_ids": ids, "attention_mask": mask})
        if logits.dim() == 3:
            logits, expected = logits[mask.bool()], expected[mask.bool()]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert AutoTokenizer.from_pretrained(folder)("a great film").input_ids


def test_onnx_picks_the_inputs_of_low_rank_layers_as_rows(compressed: Compress, tmp_path: Path) -> None:
    found = compressed("bert")
    graph = onnx.load(export(found.folder, tmp_path, "onnx") / ONNX_FILE).graph
    columns = {node.output[0] for node in graph.node if node.op_type == "Transpose"}
    picked = [node for node in graph.node if node.op_type == "Gather" and node.input[0] in columns]

    assert [node.attribute[0].i for node in picked] == [0, 0] * len(found.config["ranks"])


def test_onnx_reads_any_number_of_images_of_the_size_that_the_model_was_compressed_for(tmp_path: Path) -> None:
    found = architectures["vit"].compressed(tmp_path, image_size=48)
    pixels = torch.randn(5, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = found.load()(pixels).logits

    folder = export(found.folder, tmp_path / "onnx", "onnx")

    torch.testing.assert_close(run_onnx(folder, {"pixel_values": pixels}), expected, rtol=1e-4, atol=1e-4)
    described = json.loads((folder / "config.json").read_text())
    assert (described["model_type"], described["architectures"]) == ("vit", ["ViTForImageClassification"])
    assert described["id2label"] == {"0": "dawn", "1": "dusk"}


def test_only_a_compressed_checkpoint_is_exported(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="There is no checkpoint in"):
        export(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(UnsupportedModel, match="is not a compressed checkpoint"):
        export(tiny_bert, tmp_path / "out")
    assert not (tmp_path / "out").exists()
