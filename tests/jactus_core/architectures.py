"""Small random models of many architectures, in folders like those of the hub, and rows to compress them on."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from jactus_core import CompressionConfig, compression
from jactus_core.compression import BudgetResult, CompressionResult
from jactus_core.encoding import to_device
from jactus_core.tasks import TASKS, TaskName
from tests.tiny import FILLER, WORDS, reviews

QUICK = CompressionConfig(budgets=(0.6,), rank_multiple=1, max_length=24, batch_size=8, warmup_epochs=1, epochs=1)
UNKNOWN = "<unk>"
VOCABULARY = ["<pad>", UNKNOWN, "<s>", "</s>", *FILLER, *WORDS["good"], *WORDS["bad"]]
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
LONGEST = 48
DISTINCT = {"initializer_range": 0.2}
"""So that random features tell inputs apart."""
ENCODER: dict[str, Any] = {
    **DISTINCT,
    "vocab_size": len(VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": SPECIAL["pad_token_id"],
}
DECODER: dict[str, Any] = {**ENCODER, **SPECIAL, "num_key_value_heads": 2, "head_dim": 8}
DISTILBERT: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 64}
GPT2: dict[str, Any] = {**DISTINCT, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
T5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "num_heads": 4, "num_layers": 2, "d_ff": 48, "initializer_factor": 2.0}
IMAGE_SIZE = 32
IMAGES: dict[str, Any] = {**DISTINCT, "image_size": IMAGE_SIZE, "patch_size": 8}
VISION: dict[str, Any] = {
    **IMAGES,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SWIN: dict[str, Any] = {
    **IMAGES,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 4,
}
COLOURS = {"dawn": (220, 120, 60), "dusk": (40, 60, 160)}


@dataclass(frozen=True)
class Architecture:
    """How to make a model of one kind; `layer` is what the hub calls one of its linear layers."""

    task: TaskName
    model: str  # class of transformers
    config: Any  # settings of its configuration
    layer: str
    inputs: dict[str, Any] = field(default_factory=dict)  # of the tokenizer or the image processor

    def write(self, folder: Path) -> Path:
        """As the hub has it: random weights, and a tokenizer or an image processor."""
        torch.manual_seed(0)
        model_class = getattr(transformers, self.model)
        model_class(model_class.config_class(**self.config)).save_pretrained(folder)
        if self.task == "image-classification":
            _image_processor(**self.inputs).save_pretrained(folder)
        else:
            tokenizer(**self.inputs).save_pretrained(folder)
        return folder

    def compressed(self, folder: Path, **changes: Any) -> Compressed:
        """Compressed in no time; the clean process of the verification is left out."""
        with pytest.MonkeyPatch.context() as patch:
            probes: dict[Path, Path] = {}
            patch.setattr(compression, "verify_checkpoints", lambda found, _: probes.update(_copied(found, folder)))
            settings = QUICK.model_copy(update={"task": self.task})
            base = self.write(folder / "base")
            result = compression.compress(str(base), rows_for(self.task), folder / "out", settings, **changes)
        point = result.budgets[0]
        return Compressed(self, base, result, point, probes[point.folder])


@dataclass(frozen=True)
class Compressed:
    """A finished checkpoint; `probe` holds inputs, and the logits they gave before the model was saved."""

    architecture: Architecture
    base: Path
    result: CompressionResult
    point: BudgetResult
    probe: Path

    @property
    def folder(self) -> Path:
        return self.point.folder

    @property
    def auto_class(self) -> str:
        return TASKS[self.architecture.task].auto_class

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())

    def load(self, folder: Path | None = None, **options: Any) -> Any:
        return getattr(transformers, self.auto_class).from_pretrained(folder or self.folder, **options).eval()

    @property
    def inputs(self) -> dict[str, Tensor]:
        kept = load_file(self.probe)
        return {name.removeprefix("input."): kept[name] for name in kept if name != "logits"}

    @property
    def logits(self) -> Tensor:
        return load_file(self.probe)["logits"]

    @torch.inference_mode()
    def logits_of(self, model: Any) -> Tensor:
        """What a model in this process, on any device, makes of the inputs."""
        logits: Tensor = model(**to_device(self.inputs, model.device)).logits
        return logits.cpu()


def _copied(probes: Mapping[Path, Path], folder: Path) -> dict[Path, Path]:
    """Out of the work folder, which goes when all is done."""
    return {checkpoint: Path(shutil.copy(probe, folder)) for checkpoint, probe in probes.items()}


def tokenizer(
    template: str = "<s> $A </s>", pads: bool = True, inputs: tuple[str, ...] = ("input_ids", "attention_mask")
) -> PreTrainedTokenizerFast:
    """One token per word; `template` says which special tokens stand around a text."""
    ids = {word: number for number, word in enumerate(VOCABULARY)}
    words = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    words.pre_tokenizer = Whitespace()
    around = [(token, ids[token]) for token in ("<s>", "</s>") if token in template]
    words.post_processor = TemplateProcessing(single=template, special_tokens=around)
    special = {"unk_token": UNKNOWN, "bos_token": "<s>", "eos_token": "</s>"} | ({"pad_token": "<pad>"} if pads else {})
    return PreTrainedTokenizerFast(
        tokenizer_object=words, model_max_length=LONGEST, model_input_names=list(inputs), **special
    )


def _image_processor(kind: str, by_edge: bool = False) -> Any:
    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    size = {"shortest_edge": IMAGE_SIZE} if by_edge else square
    return getattr(transformers, kind)(size=size, crop_size=square if by_edge else None)


BARE = {"template": "$A", "pads": False}
LLAMA = {"template": "<s> $A", "pads": False}
SQUARE = {"kind": "ViTImageProcessorPil"}
BERT = ENCODER | {"type_vocab_size": 2}
TOWERS = {
    "vision_config": VISION,
    "text_config": {**ENCODER, "num_hidden_layers": 1, "bos_token_id": 2, "eos_token_id": 3},
    "projection_dim": 16,
}
architectures: dict[str, Architecture] = {
    "vit": Architecture(
        "image-classification", "ViTModel", VISION, "vit.encoder.layer.0.attention.attention.query", SQUARE
    ),
    "deit": Architecture(
        "image-classification", "DeiTModel", VISION, "deit.encoder.layer.1.attention.output.dense", SQUARE
    ),
    "swin": Architecture(
        "image-classification", "SwinModel", SWIN, "swin.encoder.layers.0.blocks.0.intermediate.dense", SQUARE
    ),
    "dinov2": Architecture(
        "image-classification",
        "Dinov2Model",
        VISION | {"mlp_ratio": 2},
        "dinov2.encoder.layer.0.attention.attention.value",
        {"kind": "BitImageProcessorPil", "by_edge": True},
    ),
    "clip": Architecture(
        "image-classification",
        "CLIPModel",
        TOWERS,
        "vision_model.encoder.layers.0.self_attn.out_proj",
        {"kind": "CLIPImageProcessorPil", "by_edge": True},
    ),
    "bert": Architecture(
        "text-classification",
        "BertModel",
        BERT,
        "bert.encoder.layer.0.attention.self.query",
        {"inputs": ("input_ids", "token_type_ids", "attention_mask")},
    ),
    "roberta": Architecture(
        "text-classification", "RobertaModel", ENCODER, "roberta.encoder.layer.1.intermediate.dense"
    ),
    "distilbert": Architecture(
        "text-classification",
        "DistilBertModel",
        DISTILBERT | DISTINCT | {"vocab_size": len(VOCABULARY)},
        "distilbert.transformer.layer.0.attention.q_lin",
    ),
    "t5": Architecture(
        "text-classification",
        "T5ForConditionalGeneration",
        T5 | SPECIAL | {"vocab_size": len(VOCABULARY), "decoder_start_token_id": 0},
        "transformer.encoder.block.0.layer.0.SelfAttention.q",
        {"template": "$A </s>"},
    ),
    "gpt2-classifier": Architecture(
        "text-classification",
        "GPT2LMHeadModel",
        GPT2 | {"vocab_size": len(VOCABULARY), "bos_token_id": 3, "eos_token_id": 3},
        "transformer.h.0.attn.c_attn",
        BARE,
    ),
    "gpt2": Architecture(
        "text-generation",
        "GPT2LMHeadModel",
        GPT2 | {"vocab_size": len(VOCABULARY), "bos_token_id": 3, "eos_token_id": 3},
        "transformer.h.1.mlp.c_fc",
        BARE,
    ),
    "llama": Architecture(
        "text-generation",
        "LlamaForCausalLM",
        DECODER | {"pad_token_id": None, "tie_word_embeddings": True},
        "model.layers.0.self_attn.k_proj",
        LLAMA,
    ),
    "mistral": Architecture("multiple-choice", "MistralForCausalLM", DECODER, "model.layers.1.mlp.down_proj", LLAMA),
    "qwen3": Architecture("multiple-choice", "Qwen3ForCausalLM", DECODER, "model.layers.0.self_attn.q_proj", BARE),
    "gemma": Architecture("text-generation", "GemmaForCausalLM", DECODER, "model.layers.0.mlp.gate_proj", LLAMA),
}


def rows_for(task: TaskName) -> list[dict[str, Any]]:
    """A few rows that the models above can read."""
    match task:
        case "image-classification":
            return pictures()
        case "text-classification":
            return [dict(row) for row in reviews(24)]
        case "text-generation":
            return [{"text": row["text"]} for row in reviews(24)]
        case "multiple-choice":
            choices = ["lovely and kind", "dull"]
            return [
                {"question": row["text"], "choices": choices, "answer": int(row["label"] == "bad")}
                for row in reviews(12)
            ]


def pictures(count: int = 24) -> list[dict[str, Any]]:
    """Noisy images of two colours, by class."""
    generator = random.Random(0)
    labels = [label for _ in range(count // 2) for label in COLOURS]
    return [{"image": _noisy(COLOURS[label], generator), "label": label} for label in labels]


def _noisy(colour: tuple[int, int, int], generator: random.Random) -> Image.Image:
    small = Image.frombytes(
        "RGB", (4, 4), bytes(part + generator.randint(-30, 30) for _ in range(16) for part in colour)
    )
    return small.resize((40, 36))
