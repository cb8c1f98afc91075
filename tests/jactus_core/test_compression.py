"""The one verb, on small random models: what it promises, what it refuses, and how it goes on after a kill."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import jactus_core
from jactus_core import CompressionConfig, compress, compression
from jactus_core.compression import CompressionResult
from jactus_core.errors import (
    DatasetNotFound,
    InfeasibleBudget,
    NonFiniteLoss,
    UnionTooSmall,
    UnknownLabel,
    UnsupportedModel,
)
from jactus_core.loading import load_model
from jactus_core.models import find_model
from jactus_core.progress import STAGES
from tests.jactus_core.architectures import architectures, rows_for
from tests.jactus_core.processes import in_new_process
from tests.tiny import reviews

QUICK = CompressionConfig(
    budgets=(0.8, 0.5), rank_multiple=1, max_length=32, batch_size=8, epochs=8, learning_rate=5e-3
)
SHORT = QUICK.model_copy(update={"epochs": 0.2, "warmup_epochs": 1, "budgets": (0.6,)})


@pytest.fixture(autouse=True)
def trusting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without the clean process at the end, which takes seconds and has tests of its own."""
    with monkeypatch.context() as patch:
        patch.setattr(compression, "verify_checkpoints", lambda probes, auto_class: {})
        yield


@pytest.fixture(scope="module")
def result(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> CompressionResult:
    return compress(str(tiny_bert), reviews(120), tmp_path_factory.mktemp("out"), QUICK)


def weights(result: CompressionResult) -> list[bytes]:
    return [(point.folder / "model.safetensors").read_bytes() for point in result.budgets]


def test_every_budget_is_kept_and_counted_right(result: CompressionResult) -> None:
    assert [point.budget for point in result.budgets] == [0.8, 0.5]
    for point in result.budgets:
        stored = load_file(point.folder / "model.safetensors")
        layers = [weight for name, weight in stored.items() if any(name.startswith(layer) for layer in point.ranks)]
        kept = sum(weight.numel() for weight in layers if weight.dim() == 2)
        assert kept == point.size.compressible_parameters
        assert kept / result.dense_size.compressible_parameters == pytest.approx(point.kept_fraction)
        assert point.kept_fraction <= point.budget
        parameters = [tensor for tensor in stored.values() if tensor.is_floating_point()]
        assert sum(parameter.numel() for parameter in parameters) == point.size.parameters
        assert sum(tensor.nbytes for tensor in stored.values()) == point.size.bytes


def test_the_compressed_models_learned_the_task(result: CompressionResult) -> None:
    for point in result.budgets:
        assert point.metrics["accuracy"] > max(0.75, result.dense_metrics["accuracy"])


def test_the_report_says_how_the_checkpoint_was_made(result: CompressionResult) -> None:
    point = result.budgets[-1]
    report = json.loads((point.folder / "report.json").read_text())

    assert CompressionConfig.model_validate(report["config"]) == QUICK
    assert report["compressed"]["metrics"] == point.metrics
    assert {name: layer["rank"] for name, layer in report["layers"].items()} == point.ranks
    assert all(0 < layer["k_L/m"] <= 1 and 0 <= layer["kept_energy"] <= 1 for layer in report["layers"].values())
    assert report["dataset"]["rows"] + report["dataset"]["eval_rows"] == 120
    assert report["versions"]["torch"] == torch.__version__
    assert report["seconds"]["finetuning"] > 0
    assert json.loads((point.folder.parent / "frontier.json").read_text()) == result.as_dict()


def test_the_result_comes_with_a_table_and_pictures(result: CompressionResult) -> None:
    lines = str(result).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["dense", "budget", "budget"]
    assert f"{result.budgets[0].metrics['accuracy']:.4f}" in lines[2]
    for name in ("frontier.svg", "ranks.svg"):
        assert "<svg" in (result.budgets[0].folder.parent / name).read_text()


def test_the_same_seed_gives_the_same_bytes(tiny_bert: Path, tmp_path: Path, result: CompressionResult) -> None:
    assert weights(compress(str(tiny_bert), reviews(120), tmp_path, QUICK)) == weights(result)


def test_stages_are_reported_in_full(tiny_bert: Path, tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    compress(str(tiny_bert), reviews(), tmp_path, SHORT, report=lambda stage, done, _: told.append((stage, done)))

    last = dict(told)
    assert set(last) == set(STAGES) - {"publishing"}
    assert all(done == pytest.approx(1) for done in last.values())
    for stage in last:
        fractions = [done for told_stage, done in told if told_stage == stage]
        assert fractions == sorted(fractions)


def test_rows_to_evaluate_on_can_be_given(tiny_bert: Path, tmp_path: Path) -> None:
    splits = DatasetDict(train=Dataset.from_list(reviews(40)), validation=Dataset.from_list(reviews(10)))
    for number, data in enumerate(({"data": splits}, {"data": reviews(40), "eval_data": reviews(10)})):
        point = compress(str(tiny_bert), output=tmp_path / str(number), config=SHORT, **data).budgets[0]
        counted = json.loads((point.folder / "report.json").read_text())["dataset"]
        assert (counted["rows"], counted["eval_rows"]) == (40, 10)

    with pytest.raises(UnknownLabel, match="'odd'"):
        compress(str(tiny_bert), reviews(40), tmp_path, SHORT, eval_data=[{"text": "a film", "label": "odd"}])


@pytest.mark.parametrize(
    "changes",
    [
        {"weighting": "input"},
        {"weighting": "none"},
        {"union": "thresholds", "weight_energy": 0.7, "input_energy": 0.7, "gradient_energy": 0.7},
        {"shrinkage": "oas"},
        {"shrinkage": 0.3},
        {"fisher": "sampled"},
        {"allocation": "uniform"},
        {"allocation": "measured"},
        {"rank_multiple": 4},
        {"core_basis": "orthonormal"},
        {"trained": "core+norms"},
        {"trained": "factors"},
        {"gradient_checkpointing": True},
        {"budget_scope": "model", "budgets": (0.9,)},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
def test_every_switch_changes_the_result_and_keeps_the_budget(
    changes: dict[str, Any], tiny_bert: Path, tmp_path: Path, plain: bytes
) -> None:
    point = compress(str(tiny_bert), reviews(), tmp_path, SHORT, **changes).budgets[0]

    stored = (point.folder / "model.safetensors").read_bytes()
    assert (stored == plain) == ("gradient_checkpointing" in changes)
    if "budget_scope" in changes:
        dense = json.loads((tmp_path / "frontier.json").read_text())["dense_size"]
        assert 0.85 < point.size.parameters / dense["parameters"] <= 0.9
    else:
        assert point.kept_fraction <= 0.6
    if "rank_multiple" in changes:
        assert all(rank is None or rank % 4 == 0 for rank in point.ranks.values())
    AutoModelForSequenceClassification.from_pretrained(point.folder)


@pytest.fixture(scope="module")
def plain(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Weights that the short settings lead to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "verify_checkpoints", lambda probes, auto_class: {})
        return weights(compress(str(tiny_bert), reviews(), tmp_path_factory.mktemp("plain"), SHORT))[0]


def test_a_bound_on_covariances_changes_nothing_but_the_passes(tiny_bert: Path, tmp_path: Path, plain: bytes) -> None:
    told: list[str] = []
    result = compress(
        str(tiny_bert),
        reviews(),
        tmp_path,
        SHORT,
        max_covariance_bytes=40_000,
        report=lambda stage, *_: told.append(stage),
    )

    assert weights(result) == [plain]
    turns = [stage for stage, before in zip(told[1:], told, strict=False) if stage != before]
    assert turns.count("decomposing") > 1


def test_eight_calibration_rows_work_with_a_warning(
    tiny_bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        few = compress(str(tiny_bert), reviews(120), tmp_path, QUICK, calibration_samples=8)

    assert "only 8 calibration rows" in caplog.text
    assert min(point.metrics["accuracy"] for point in few.budgets) > 0.7


class Killed(Exception):
    """Stands for a kill where the process itself must live on."""


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "publishing"])
def test_after_a_stop_in_any_stage_the_next_call_ends_with_the_same_bytes(
    stage: str, tiny_bert: Path, tmp_path: Path, plain: bytes
) -> None:
    def stop(told: str, done: float, note: str) -> None:
        if told == stage and done > 0:
            raise Killed

    bounded = SHORT.model_copy(update={"max_covariance_bytes": 40_000})
    with pytest.raises(Killed):
        compress(str(tiny_bert), reviews(), tmp_path, bounded, report=stop)
    assert not (tmp_path / "frontier.json").exists()

    assert weights(compress(str(tiny_bert), reviews(), tmp_path, bounded)) == [plain]
    assert not (tmp_path / ".work").exists()


def test_a_killed_process_is_continued_not_repeated(tiny_bert: Path, tmp_path: Path, plain: bytes) -> None:
    code = (
        "import os, signal, sys\n"
        "from jactus_core import CompressionConfig, compress\n"
        "from tests.tiny import reviews\n"
        "def stop(stage, done, note):\n"
        "    if stage == 'finetuning': os.kill(os.getpid(), signal.SIGKILL)\n"
        "config = CompressionConfig.model_validate_json(sys.argv[3])\n"
        "compress(sys.argv[1], reviews(), sys.argv[2], config, report=stop)\n"
    )
    command = [sys.executable, "-c", code, str(tiny_bert), str(tmp_path), SHORT.model_dump_json()]
    assert subprocess.run(command, env=os.environ, check=False).returncode == -signal.SIGKILL

    told: list[tuple[str, float, str]] = []
    again = compress(str(tiny_bert), reviews(), tmp_path, SHORT, report=lambda *event: told.append(event))

    assert weights(again) == [plain]
    assert not any(0 < done < 1 for stage, done, _ in told if stage in ("calibrating", "decomposing"))


def stop_at_finetuning(stage: str, done: float, note: str) -> None:
    if stage == "finetuning":
        raise Killed


def stages_until_finetuning(model: Path, output: Path, rows: Any = None, **changes: Any) -> set[str]:
    """The stages that had work to do in a call that is stopped before it trains."""
    told: list[tuple[str, float, str]] = []

    def note(*event: Any) -> None:
        told.append(event)
        stop_at_finetuning(*event)

    with pytest.raises(Killed):
        compress(str(model), rows or reviews(), output, SHORT, report=note, **changes)
    return {stage for stage, done, _ in told if 0 < done < 1}


def test_a_changed_setting_voids_only_what_depends_on_it(tiny_bert: Path, tmp_path: Path) -> None:
    assert "decomposing" in stages_until_finetuning(tiny_bert, tmp_path)
    assert "decomposing" not in stages_until_finetuning(tiny_bert, tmp_path, budgets=(0.7,), learning_rate=1e-4)
    assert "decomposing" in stages_until_finetuning(tiny_bert, tmp_path, shrinkage=0.5)


def test_directions_are_measured_once_for_all_budgets_even_if_that_is_cut_short(
    tiny_bert: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"allocation": "measured", "max_covariance_bytes": 40_000}
    whole = compress(str(tiny_bert), reviews(), tmp_path / "whole", SHORT, allocation="measured")
    output = tmp_path / "cut short"

    def stop(stage: str, done: float, note: str) -> None:
        if note.startswith("directions") and done > 0.5:
            raise Killed

    with pytest.raises(Killed):
        compress(str(tiny_bert), reviews(), output, SHORT, report=stop, **changes)
    assert stages_until_finetuning(tiny_bert, output, **changes) >= {"allocating"}
    assert "allocating" not in stages_until_finetuning(tiny_bert, output, budgets=(0.8, 0.5), **changes)
    assert weights(compress(str(tiny_bert), reviews(), output, SHORT, **changes)) == weights(whole)


@pytest.fixture(scope="module")
def tiny_language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return architectures["mistral"].write(tmp_path_factory.mktemp("mistral") / "model")


QUESTIONS = SHORT.model_copy(update={"task": "multiple-choice", "epochs": 4})


@pytest.fixture(params=["language model", "classifier", "classifier, adapters from zero"])
def tuned(
    request: pytest.FixtureRequest, tiny_language_model: Path, tiny_bert: Path
) -> tuple[Path, CompressionConfig, Any]:
    """A model that adapters tune, how, and rows for it."""
    if request.param == "language model":
        return tiny_language_model, QUESTIONS.model_copy(update={"adapter_share": 0.75}), rows_for("multiple-choice")
    start = "zero" if request.param.endswith("from zero") else "auto"
    changes = {"epochs": 4, "adapter_share": 0.75, "adapter_start": start, "dtype": "bfloat16"}
    return tiny_bert, SHORT.model_copy(update=changes), reviews()


def test_a_model_is_tuned_before_it_is_calibrated_when_that_is_asked_for_or_it_is_a_language_model(
    tuned: tuple[Path, CompressionConfig, Any], tmp_path: Path
) -> None:
    model, config, rows = tuned
    notes: list[str] = []
    found = {
        share: compress(
            str(model),
            rows,
            tmp_path / str(share),
            config,
            adapter_share=share,
            report=lambda stage, done, note: notes.append(note),
        )
        for share in (0.0, 0.5)
    }

    assert found[0.0].dense_metrics == found[0.5].dense_metrics, "that of the model as it came"
    assert weights(found[0.0]) != weights(found[0.5])
    assert notes.count("tuning adapters, 100%") == 1
    assert config.model_copy(update={"adapter_share": "auto"}).adapter_epochs == (
        0 if config.task == "text-classification" else pytest.approx(0.84 * config.epochs)
    )


def test_of_classifiers_those_of_images_are_tuned_before_by_default() -> None:
    assert CompressionConfig(task="image-classification", epochs=4).adapter_epochs == 3
    assert CompressionConfig(task="text-classification", epochs=4).adapter_epochs == 0


def test_the_less_is_taken_from_a_language_model_the_more_of_the_epochs_come_before_it() -> None:
    def before(*budgets: float) -> float:
        return CompressionConfig(task="text-generation", budgets=budgets, epochs=1).adapter_epochs

    assert [before(1.0), before(0.8), before(0.4)] == pytest.approx([1, 0.92, 0.76])
    assert before(0.8, 0.4) == before(0.4), "all budgets share what comes before"


def test_a_language_model_is_calibrated_by_its_own_answers(tiny_language_model: Path, tmp_path: Path) -> None:
    def calibrated(fisher: str) -> list[bytes]:
        output = tmp_path / fisher
        return weights(
            compress(str(tiny_language_model), rows_for("multiple-choice"), output, QUESTIONS, fisher=fisher)
        )

    assert calibrated("auto") == calibrated("sampled") != calibrated("empirical")
    assert not CompressionConfig(task="text-classification").draws_labels


@pytest.mark.parametrize("last", ["tuning adapters, 50%", "tuning adapters, 100%", "covariances", "budget 0.6"])
def test_the_tuning_of_a_model_is_kept(last: str, tuned: tuple[Path, CompressionConfig, Any], tmp_path: Path) -> None:
    model, config, rows = tuned
    told: list[str] = []

    def run(output: Path, stop_at: str | None = None) -> list[bytes]:
        def note(stage: str, done: float, note: str) -> None:
            told.append(note)
            if stop_at and note.startswith(stop_at) and stage != "evaluating":
                raise Killed

        return weights(compress(str(model), rows, output, config, report=note))

    with pytest.raises(Killed):
        run(tmp_path / "stopped", last)
    told.clear()
    again = run(tmp_path / "stopped")
    tuned_again = any(note.startswith("tuning adapters") for note in told)

    assert again == run(tmp_path / "whole")
    assert tuned_again == last.startswith("tuning adapters")


def test_a_language_model_s_calibration_depends_on_how_it_was_tuned(tiny_language_model: Path, tmp_path: Path) -> None:
    def stages(**changes: Any) -> set[str]:
        return stages_until_finetuning(
            tiny_language_model, tmp_path, rows_for("multiple-choice"), **QUESTIONS.model_dump() | changes
        )

    assert "decomposing" in stages()
    assert "decomposing" not in stages(budgets=(0.7, 0.6)), "as long before the smallest budget"
    assert "decomposing" in stages(budgets=(0.7,))
    assert "decomposing" in stages(adapter_share=0.5)
    assert "decomposing" not in stages(budgets=(0.7,), adapter_share=0.5)
    assert "decomposing" in stages(learning_rate=1e-4, adapter_share=0.5)


def test_other_weights_in_the_same_folder_void_everything(tiny_bert: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_bert, tmp_path / "model")
    stages_until_finetuning(model, tmp_path / "out")
    stored = load_file(model / "model.safetensors")
    save_file({k: v * 1.01 for k, v in stored.items()}, model / "model.safetensors", metadata={"format": "pt"})

    assert "decomposing" in stages_until_finetuning(model, tmp_path / "out")


def test_a_head_made_for_the_same_labels_is_kept_and_one_for_others_is_not(tiny_bert: Path, tmp_path: Path) -> None:
    config = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
    config.config.id2label, config.config.label2id = {0: "bad", 1: "good"}, {"bad": 0, "good": 1}
    config.save_pretrained(tmp_path)
    shutil.copy(tiny_bert / "tokenizer.json", tmp_path)
    shutil.copy(tiny_bert / "tokenizer_config.json", tmp_path)

    def is_new(*labels: str) -> bool:
        return load_model(find_model(str(tmp_path)), list(labels), CompressionConfig()).head_is_new

    assert not is_new("bad", "good")
    assert is_new("no", "yes")
    assert is_new("a", "b", "c")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budgets": (0.01,)}, r"rank one in every layer keeps 0\.\d+; ask for 0\.\d+ or more"),
        (
            {"budgets": (0.2,), "rank_multiple": 8},
            r"rank 8 in every layer keeps 0\.\d+.*, or for a lower rank_multiple",
        ),
        ({"budgets": (0.05,), "budget_scope": "model"}, r"keeps 0\.\d+"),
    ],
)
def test_an_infeasible_budget_is_refused_before_any_work(
    changes: dict[str, Any], said: str, tiny_bert: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    with pytest.raises(InfeasibleBudget, match=said) as caught:
        compress(str(tiny_bert), reviews(), tmp_path, QUICK, report=lambda stage, *_: told.append(stage), **changes)
    assert caught.value.param == "budgets"
    assert set(told) == {"loading"}
    assert not list(tmp_path.iterdir())


def test_a_union_too_small_names_the_layer_and_the_remedy(tiny_bert: Path, tmp_path: Path) -> None:
    low: dict[str, Any] = {"weight_energy": 0.05, "input_energy": 0.05, "gradient_energy": 0.05}
    with pytest.raises(UnionTooSmall, match=r"layer 'bert\..* carries rank \d+ at most.*let union be auto"):
        compress(str(tiny_bert), reviews(), tmp_path, SHORT, budgets=(0.7,), union="thresholds", **low)


def test_weights_that_do_not_fit_the_config_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "broken")
    save_file({"nothing.to.see": torch.zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"do not fit its config\.json"):
        compress(str(folder), reviews(), tmp_path / "out", QUICK)


def test_an_architecture_that_cannot_do_the_task_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "vit")
    (folder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(UnsupportedModel, match="no text-classification model of the type 'vit'"):
        compress(str(folder), reviews(), tmp_path / "out", QUICK)


def test_a_loss_that_explodes_names_the_step(tiny_bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert, tmp_path / "nan")
    stored = load_file(folder / "model.safetensors")
    save_file({k: v * float("nan") for k, v in stored.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(NonFiniteLoss, match="step 1"):
        compress(str(folder), reviews(), tmp_path / "out", QUICK)


def test_a_missing_file_is_named(tmp_path: Path, tiny_bert: Path) -> None:
    with pytest.raises(DatasetNotFound, match=r"no file '.*nothing\.csv'"):
        compress(str(tiny_bert), tmp_path / "nothing.csv", tmp_path / "out", QUICK)


def test_float16_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="float16 gradients underflow"):
        CompressionConfig.model_validate({"dtype": "float16"})


def test_importing_the_package_imports_no_torch_and_no_service_library() -> None:
    loaded = set(
        in_new_process(
            "import jactus_core, jactus_core.config, jactus_core.examples, jactus_core.models\n"
            "print(json.dumps(sorted(sys.modules)))"
        )
    )

    assert not loaded & {"torch", "transformers", "datasets", "fastapi", "celery", "sqlalchemy", "redis", "jobs"}
    assert jactus_core.__version__


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch's threads are libgomp's on Linux alone")
@pytest.mark.parametrize(
    ("given", "patience"),
    [({}, jactus_core.PATIENCE), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "0")],
)
def test_threads_wait_as_the_package_says_unless_the_environment_does(
    given: dict[str, str], patience: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    code = (
        "import os, tempfile\n"
        "said = tempfile.TemporaryFile()\n"
        "os.dup2(said.fileno(), 2)\n"
        "import jactus_core, torch\n"
        "said.seek(0)\n"
        "print(json.dumps(said.read().decode()))"
    )

    said = in_new_process(code, OMP_DISPLAY_ENV="verbose", **given)

    assert f"GOMP_SPINCOUNT = '{patience}'" in said
