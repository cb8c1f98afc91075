"""The one verb, on small random models: what it promises, what it refuses, and what its checkpoints do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

import jactus_core
from jactus_core import CompressionConfig, compress
from jactus_core.compression import CompressionResult
from jactus_core.errors import InfeasibleBudget, InvalidDataset, NonFiniteLoss, UnsupportedModel
from jactus_core.progress import STAGES
from tests.tiny import reviews

QUICK = CompressionConfig(budgets=(0.8, 0.5), max_length=32, batch_size=8, epochs=8, learning_rate=5e-3)
TEXTS = ["a great film", "the plot was very dull and cold"]


def logits_of(model: Any, folder: Path) -> torch.Tensor:
    batch = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(**batch).logits
    return logits


def in_new_process(code: str, *arguments: str, **environment: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def result(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> CompressionResult:
    return compress(str(tiny_bert), reviews(120), tmp_path_factory.mktemp("out"), QUICK)


def test_every_budget_is_kept_and_counted_right(result: CompressionResult) -> None:
    assert [point.budget for point in result.budgets] == [0.8, 0.5]
    for point in result.budgets:
        stored = load_file(point.folder / "model.safetensors")
        layers = [weight for name, weight in stored.items() if any(name.startswith(layer) for layer in point.ranks)]
        kept = sum(weight.numel() for weight in layers if weight.dim() == 2)
        assert kept == point.size.compressible_parameters
        assert kept / result.dense_size.compressible_parameters == pytest.approx(point.kept_fraction)
        assert point.kept_fraction <= point.budget
        assert sum(weight.numel() for weight in stored.values()) == point.size.parameters
        assert point.size.bytes == 4 * point.size.parameters


def test_the_compressed_models_learned_the_task(result: CompressionResult) -> None:
    for point in result.budgets:
        assert point.accuracy > max(0.75, result.dense_accuracy)


def test_the_report_says_how_the_checkpoint_was_made(result: CompressionResult) -> None:
    point = result.budgets[-1]
    report = json.loads((point.folder / "report.json").read_text())

    assert CompressionConfig.model_validate(report["config"]) == QUICK
    assert report["compressed"]["accuracy"] == point.accuracy
    assert {name: layer["rank"] for name, layer in report["layers"].items()} == point.ranks
    assert report["dataset"]["rows"] == 120
    assert report["versions"]["torch"] == torch.__version__
    assert json.loads((point.folder.parent / "frontier.json").read_text()) == result.as_dict()


def test_the_same_seed_gives_the_same_bytes(tiny_bert: Path, tmp_path: Path, result: CompressionResult) -> None:
    again = compress(str(tiny_bert), reviews(120), tmp_path, QUICK)

    for one, other in zip(result.budgets, again.budgets, strict=True):
        assert (one.folder / "model.safetensors").read_bytes() == (other.folder / "model.safetensors").read_bytes()


def test_stages_are_reported_in_full(tiny_bert: Path, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    compress(str(tiny_bert), reviews(), tmp_path, QUICK, report=lambda stage, done, _: told.append((stage, done)))

    last = dict(told)
    assert set(last) == set(STAGES) - {"publishing"}
    assert all(done == pytest.approx(1) for done in last.values())
    for stage in last:
        fractions = [done for told_stage, done in told if told_stage == stage]
        assert fractions == sorted(fractions)


ARCHITECTURES: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "roberta": (
        RobertaModel,
        RobertaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, pad_token_id=0),
    ),
    "distilbert": (DistilBertModel, DistilBertConfig(dim=16, n_layers=1, n_heads=2, hidden_dim=24)),
    "electra": (
        ElectraModel,
        ElectraConfig(
            embedding_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
        ),
    ),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_other_bert_likes_compress_save_and_load_with_the_same_logits(
    architecture: str, tiny_bert: Path, tmp_path: Path
) -> None:
    model_class, config = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    source = shutil.copytree(tiny_bert, tmp_path / architecture)
    model_class(config).save_pretrained(source)
    quick = QUICK.model_copy(update={"epochs": 0.2, "warmup_epochs": 1, "budgets": (0.6,)})

    point = compress(str(source), reviews(), tmp_path / "out", quick).budgets[0]

    loaded = AutoModelForSequenceClassification.from_pretrained(point.folder)
    code = (
        "import json, sys, torch, jactus_core\n"
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "batch = tokenizer(json.loads(sys.argv[2]), padding=True, return_tensors='pt')\n"
        "model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()\n"
        "print(json.dumps(model(**batch).logits.tolist()))\n"
    )
    elsewhere = torch.tensor(json.loads(in_new_process(code, str(point.folder), json.dumps(TEXTS))))
    torch.testing.assert_close(elsewhere, logits_of(loaded, point.folder))
    assert point.size.parameters < sum(p.numel() for p in model_class(config).parameters())


def test_without_the_package_the_folder_loads_with_trust_remote_code(result: CompressionResult, tmp_path: Path) -> None:
    folder = result.budgets[0].folder
    code = (
        "import json, sys\n"
        "sys.modules['jactus_core'] = None\n"
        "from transformers import AutoModelForSequenceClassification as Auto, AutoTokenizer\n"
        "try:\n"
        "    Auto.from_pretrained(sys.argv[1])\n"
        "except ValueError as error:\n"
        "    assert 'trust_remote_code' in str(error), error\n"
        "else:\n"
        "    raise SystemExit('loaded code of the checkpoint without being asked')\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])\n"
        "batch = tokenizer(json.loads(sys.argv[2]), padding=True, return_tensors='pt')\n"
        "model = Auto.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "model.save_pretrained(sys.argv[3])\n"
        "print()  # ends the line of transformers' question\n"
        "print(json.dumps(model(**batch).logits.tolist()))\n"
    )
    copy = tmp_path / "saved-again"
    answer = in_new_process(code, str(folder), json.dumps(TEXTS), str(copy), HF_MODULES_CACHE=str(tmp_path / "modules"))

    expected = logits_of(AutoModelForSequenceClassification.from_pretrained(folder), folder)
    torch.testing.assert_close(torch.tensor(json.loads(answer)), expected)
    again = AutoModelForSequenceClassification.from_pretrained(copy)
    torch.testing.assert_close(logits_of(again, folder), expected)


def test_saving_a_loaded_model_writes_the_same_form_back(result: CompressionResult, tmp_path: Path) -> None:
    folder = result.budgets[1].folder
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    loaded.save_pretrained(tmp_path)

    assert load_file(tmp_path / "model.safetensors").keys() == load_file(folder / "model.safetensors").keys()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "jactus"
    assert (tmp_path / "modeling_jactus.py").read_text() == (folder / "modeling_jactus.py").read_text()


def test_a_head_made_for_the_same_labels_is_kept_and_one_for_others_is_not(
    result: CompressionResult, tiny_bert: Path, tmp_path: Path
) -> None:
    from jactus_core.loading import load_classifier
    from jactus_core.models import find_model

    config = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    config.config.id2label, config.config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
    config.save_pretrained(tmp_path)
    shutil.copy(tiny_bert / "tokenizer.json", tmp_path)
    shutil.copy(tiny_bert / "tokenizer_config.json", tmp_path)

    assert not load_classifier(find_model(str(tmp_path)), ["bad", "good"]).head_is_new
    assert load_classifier(find_model(str(tmp_path)), ["no", "yes"]).head_is_new
    assert load_classifier(find_model(str(tmp_path)), ["a", "b", "c"]).head_is_new


def test_an_infeasible_budget_is_refused_before_any_work(tiny_bert: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(InfeasibleBudget, match=r"rank one in every layer keeps 0\.\d+") as caught:
        compress(
            str(tiny_bert), reviews(), tmp_path, QUICK, budgets=[0.01], report=lambda stage, *_: told.append(stage)
        )
    assert caught.value.param == "budgets"
    assert set(told) == {"loading"}
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_fit_the_config_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "broken")
    save_file({"nothing.to.see": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"do not fit its config\.json"):
        compress(str(folder), reviews(), tmp_path / "out", QUICK)


def test_an_architecture_without_a_classifier_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "vit")
    (folder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UnsupportedModel, match="no sequence classifier for the model type 'vit'"):
        compress(str(folder), reviews(), tmp_path / "out", QUICK)


def test_a_loss_that_explodes_names_the_step(tiny_bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    save_file({k: v * float("nan") for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(NonFiniteLoss, match="step 1"):
        compress(str(folder), reviews(), tmp_path / "out", QUICK)


def test_a_missing_file_is_named(tmp_path: Path, tiny_bert: Path) -> None:
    with pytest.raises(InvalidDataset, match=r"no file '.*nothing\.csv'"):
        compress(str(tiny_bert), tmp_path / "nothing.csv", tmp_path / "out", QUICK)


def test_importing_the_package_imports_no_torch_and_no_service_library() -> None:
    code = (
        "import sys, jactus_core, jactus_core.config, jactus_core.data, jactus_core.models\nprint(sorted(sys.modules))"
    )
    loaded = set(json.loads(in_new_process(code).replace("'", '"')))

    assert not loaded & {"torch", "transformers", "fastapi", "celery", "sqlalchemy", "redis", "jobs"}
    assert jactus_core.__version__
