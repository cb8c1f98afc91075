"""What is measured: `SMALL` experiments fit two CPU cores, those of `benchmarks/paper.py` want a GPU.

By hub ids, and by the names of folders and files for a machine without a hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.experiment import Experiment, Row
from benchmarks.paper import PAPER, lettered

MINILM: Mapping[str, Any] = {"model": "sentence-transformers/all-MiniLM-L6-v2", "folder": "minilm"}
VIT_S: Mapping[str, Any] = {"model": "facebook/dinov2-small", "folder": "vit-s"}
CLIP: Mapping[str, Any] = {"model": "openai/clip-vit-base-patch16", "folder": "clip-b16"}
SMOLLM2: Mapping[str, Any] = {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "folder": "smollm2"}


def _boolq(row: Row) -> Row:
    return {"question": row["question"], "choices": ["true", "false"], "answer": int(not row["answer"])}


IMAGE_SETTINGS: Mapping[str, Any] = {"image_size": 98, "batch_size": 32, "epochs": 2, "dtype": "bfloat16"}
TEXT: Mapping[str, Any] = {
    "task": "text-classification",
    **MINILM,
    "settings": {"max_length": 64, "batch_size": 32, "epochs": 2, "dtype": "bfloat16"},
}
IMAGE: Mapping[str, Any] = {"task": "image-classification", **VIT_S}
CHOICE: Mapping[str, Any] = {
    "task": "multiple-choice",
    **SMOLLM2,
    "rows": 640,
    "settings": {"max_length": 64, "batch_size": 16, "epochs": 1, "dtype": "bfloat16"},
    "scored_rows": (150, 1000),
}

SMALL: Mapping[str, Experiment] = {
    "sst2": Experiment(
        **TEXT,
        data="SetFit/sst2",
        file="text/sst2",
        rows=2400,
    ),
    "banking77": Experiment(
        **TEXT,
        data="mteb/banking77",
        file="text/banking77",
        rows=3200,
    ),
    "emotion": Experiment(
        **TEXT,
        data="cardiffnlp/tweet_eval:emotion",
        file="text/tweet_emotion",
        rows=2400,
    ),
    "cifar10": Experiment(
        **IMAGE,
        data="uoft-cs/cifar10",
        hub_columns={"image": "img"},
        file="image/cifar10_subset.zip",
        rows=1600,
        scored_rows=(600, 1000),
        settings=IMAGE_SETTINGS,
    ),
    "dtd10": Experiment(
        **IMAGE,
        data="tanganke/dtd",
        file="image/dtd_10classes.zip",
        rows=640,
        settings={**IMAGE_SETTINGS, "epochs": 5},
    ),
    "mnist": Experiment(
        **IMAGE,
        data="ylecun/mnist",
        file="image/mnist_subset.zip",
        rows=1600,
        scored_rows=(600, 1000),
        settings={**IMAGE_SETTINGS, "epochs": 1},
    ),
    "clip-cifar10": Experiment(
        "image-classification",
        **CLIP,
        data="uoft-cs/cifar10",
        hub_columns={"image": "img"},
        file="image/cifar10_subset.zip",
        rows=1280,
        scored_rows=(400, 800),
        settings={
            "image_size": 96,
            "batch_size": 16,
            "epochs": 1,
            "calibration_samples": 256,
            "dtype": "bfloat16",
        },
    ),
    "arc-easy": Experiment(**CHOICE, data="allenai/ai2_arc:ARC-Easy", from_hub=lettered, file="choice/arc_easy"),
    "boolq": Experiment(**CHOICE, data="google/boolq", from_hub=_boolq, file="choice/boolq", rates_of="arc-easy"),
    "commonsense-qa": Experiment(
        **CHOICE, data="tau/commonsense_qa", from_hub=lettered, file="choice/commonsense_qa", rates_of="arc-easy"
    ),
    "openbookqa": Experiment(
        **CHOICE, data="allenai/openbookqa:main", from_hub=lettered, file="choice/openbookqa", rates_of="arc-easy"
    ),
    "gsm8k-text": Experiment(
        **{**CHOICE, "task": "text-generation", "scored_rows": (100, 300)},
        data="openai/gsm8k:main",
        file="math/gsm8k",
        hub_columns={"prompt": "question", "text": "answer"},
        columns={"prompt": "question", "text": "answer"},
    ),
}

EXPERIMENTS: dict[str, Experiment] = {**SMALL, **PAPER}
