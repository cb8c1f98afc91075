"""A finished folder is a transformers checkpoint in every way, it is proven so, and it says how it was made."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, pipeline

from jactus_core import compression
from jactus_core.checkpoint import save_checkpoint, verify_checkpoints
from jactus_core.errors import UnfaithfulCheckpoint
from jactus_core.reporting import model_card
from tests.jactus_core.architectures import QUICK, Compressed, architectures, pictures, rows_for
from tests.jactus_core.processes import WITHOUT_PACKAGE, in_new_process

Compress = Callable[[str], Compressed]
TEXT = "a great film"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


def edit_config(folder: Path, **changes: Any) -> Path:
    described = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in described.items() if value}))
    return folder


@pytest.fixture
def bert_copy(compressed: Compress, tmp_path: Path) -> Path:
    return shutil.copytree(compressed("bert").folder, tmp_path / "copy")


def test_the_tokenizer_and_the_image_processor_load_from_the_folder(compressed: Compress) -> None:
    bert, vit = compressed("bert"), compressed("vit")
    image = pictures()[0]["image"]

    assert dict(AutoTokenizer.from_pretrained(bert.folder)(TEXT)) == dict(
        AutoTokenizer.from_pretrained(bert.base)(TEXT)
    )
    pixels = [AutoImageProcessor.from_pretrained(f)(image).pixel_values[0] for f in (vit.folder, vit.base)]
    assert pixels[0].shape == (3, 32, 32)
    assert (pixels[0] == pixels[1]).all()


def test_a_folder_is_a_pipeline_for_texts(compressed: Compress) -> None:
    answer = pipeline("text-classification", model=str(compressed("bert").folder))(TEXT)
    assert answer[0]["label"] in {"good", "bad"}


def test_a_folder_is_a_pipeline_for_images(compressed: Compress) -> None:
    answer = pipeline("image-classification", model=str(compressed("vit").folder))(pictures()[0]["image"])
    assert {found["label"] for found in answer} == {"dawn", "dusk"}


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_a_folder_made_for_another_image_size_interpolates_by_itself(name: str, tmp_path: Path) -> None:
    found = architectures[name].compressed(tmp_path, image_size=48)

    classify = pipeline("image-classification", model=str(found.folder))
    answer = classify(pictures()[0]["image"])

    assert found.inputs["pixel_values"].shape[-2:] == (48, 48)
    assert found.config["forward_defaults"] == {"interpolate_pos_encoding": True}
    torch.testing.assert_close(found.logits_of(classify.model), found.logits)
    assert sum(row["score"] for row in answer) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_folder_is_a_pipeline_that_writes(name: str, compressed: Compress) -> None:
    answer = pipeline("text-generation", model=str(compressed(name).folder))(TEXT, max_new_tokens=4, do_sample=False)
    assert answer[0]["generated_text"].startswith(TEXT)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_loaded_model_writes_what_it_wrote_before_it_was_saved(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generate(model: Any) -> list[list[int]]:
        prompts = torch.tensor([[2, 4, 5, 6], [2, 9, 8, 7]])
        tokens: torch.Tensor = model.generate(prompts, max_new_tokens=12, do_sample=False, pad_token_id=3)
        return tokens.tolist()

    before: list[Any] = []

    def save(model: Any, *rest: Any) -> None:
        before.append(generate(model))
        save_checkpoint(model, *rest)

    monkeypatch.setattr(compression, "save_checkpoint", save)
    found = architectures[name].compressed(tmp_path)
    loaded = found.load()

    assert generate(loaded) == before[0]
    assert loaded.config.use_cache


@pytest.mark.parametrize("name", ["bert", "vit", "llama"])
def test_saving_a_loaded_model_writes_the_same_form_back(name: str, compressed: Compress, tmp_path: Path) -> None:
    found = compressed(name)
    found.load().save_pretrained(tmp_path)

    for file in ("model.safetensors", "config.json", "modeling_jactus.py"):
        assert (tmp_path / file).read_bytes() == (found.folder / file).read_bytes()
    torch.testing.assert_close(found.logits_of(found.load(tmp_path)), found.logits)


def test_a_loaded_model_that_is_pushed_to_the_hub_takes_the_file_with_it_that_loads_it(
    compressed: Compress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[str] = []

    def commit(api: HfApi, *, operations: list[CommitOperationAdd], **options: Any) -> None:
        pushed.extend(operation.path_in_repo for operation in operations)

    monkeypatch.setattr(HfApi, "create_repo", lambda api, name, **options: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(HfApi, "create_commit", commit)
    model = compressed("bert").load()

    model.save_pretrained(tmp_path / "again", push_to_hub=True, repo_id="someone/again")

    assert {"config.json", "model.safetensors", "modeling_jactus.py"} <= {*pushed}


def test_without_the_package_a_folder_loads_only_when_its_code_is_trusted_and_saves_as_itself(
    compressed: Compress, tmp_path: Path
) -> None:
    found = compressed("vit")
    code = (
        "import transformers\n"
        "auto, folder, copy = getattr(transformers, arguments[0]), *arguments[1:]\n"
        "refusal = ''\n"
        "try:\n"
        "    auto.from_pretrained(folder)\n"
        "except ValueError as error:\n"
        "    refusal = str(error)\n"
        "auto.from_pretrained(folder, trust_remote_code=True).save_pretrained(copy)\n"
        "print()\n"
        "print(json.dumps(refusal))\n"
    )
    copy, modules = tmp_path / "copy", tmp_path / "modules"
    refusal = in_new_process(WITHOUT_PACKAGE + code, found.auto_class, found.folder, copy, HF_MODULES_CACHE=modules)

    assert "trust_remote_code" in refusal
    assert (copy / "modeling_jactus.py").read_bytes() == (found.folder / "modeling_jactus.py").read_bytes()
    assert weights(copy).keys() == weights(found.folder).keys()
    torch.testing.assert_close(found.logits_of(found.load(copy)), found.logits)


def test_several_files_give_the_same_logits_as_one(compressed: Compress, tmp_path: Path) -> None:
    found = compressed("bert")
    save_checkpoint(found.load(), AutoTokenizer.from_pretrained(found.folder), tmp_path, "20KB")

    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    torch.testing.assert_close(found.logits_of(found.load(tmp_path)), found.logits)


def test_a_compressed_model_compiles(compressed: Compress) -> None:
    found = compressed("llama")
    torch.testing.assert_close(found.logits_of(torch.compile(found.load(), backend="aot_eager")), found.logits)


@pytest.mark.parametrize("name", ["bert", "swin"])
def test_bfloat16_is_kept_on_disk(name: str, tmp_path: Path) -> None:
    found = architectures[name].compressed(tmp_path, dtype="bfloat16")
    loaded = found.load(dtype="auto")

    stored = weights(found.folder)
    orders = {name for name in stored if name.endswith(".order")}
    assert {stored[name].dtype for name in stored.keys() - orders} == {torch.bfloat16}
    assert {stored[name].dtype for name in orders} == {torch.int32}
    assert loaded.dtype == torch.bfloat16
    torch.testing.assert_close(found.logits_of(loaded), found.logits)


def test_every_budget_s_checkpoint_is_proven_in_a_clean_process(
    compressed: Compress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    differences: list[dict[str, float]] = []

    def verify(*given: Any) -> None:
        differences.append(verify_checkpoints(*given))

    monkeypatch.setattr(compression, "verify_checkpoints", verify)
    compression.compress(
        str(compressed("bert").base), rows_for("text-classification"), tmp_path, QUICK, budgets=(0.8, 0.5)
    )

    assert differences[0] == {"budget-0.8": pytest.approx(0, abs=1e-5), "budget-0.5": pytest.approx(0, abs=1e-5)}


def test_checkpoints_that_changed_or_do_not_load_are_named_with_the_reason(
    compressed: Compress, bert_copy: Path, tmp_path: Path
) -> None:
    found = compressed("bert")
    broken = shutil.copytree(found.folder, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    changed = {key: value * 1.5 if value.is_floating_point() else value for key, value in weights(bert_copy).items()}
    save_file(changed, bert_copy / "model.safetensors", {"format": "pt"})

    with pytest.raises(UnfaithfulCheckpoint) as caught:
        verify_checkpoints(dict.fromkeys((found.folder, bert_copy, broken), found.probe), found.auto_class)

    assert f"'{bert_copy}', loaded in a clean process, gives logits that differ by " in caught.value.message
    assert f"'{broken}' does not load in a clean process: OSError: " in caught.value.message
    assert "model.safetensors" in caught.value.message
    assert str(found.folder) not in caught.value.message


def test_the_report_has_the_hash_and_the_size_of_every_other_file(compressed: Compress) -> None:
    folder = compressed("bert").folder
    listed = json.loads((folder / "report.json").read_text())["files"]

    assert listed == {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in folder.iterdir()
        if file.name != "report.json"
    }
    assert {"config.json", "model.safetensors", "modeling_jactus.py", "tokenizer.json", "README.md"} <= listed.keys()


@pytest.mark.parametrize("name", ["bert", "mistral"])
def test_the_model_card_tells_where_the_model_is_from_what_it_is_worth_and_how_to_load_it(
    name: str, compressed: Compress
) -> None:
    found = compressed(name)
    card = ModelCard.load(found.folder / "README.md")
    dense, small = found.result.dense_size, found.point.size

    assert f"`{found.base}` compressed and tuned for {found.architecture.task}" in card.text
    assert card.data.get("pipeline_tag") == {"bert": "text-classification", "mistral": "text-generation"}[name]
    assert card.data.get("library_name") == "transformers"
    assert f"| parameters | {dense.parameters:,} | {small.parameters:,} |" in card.text
    for metric, value in found.point.metrics.items():
        assert f"| {metric.replace('_', ' ')} | {found.result.dense_metrics[metric]:.4g} | {value:.4g} |" in card.text
    assert f"{found.auto_class}.from_pretrained" in card.text
    assert "trust_remote_code=True" in card.text


def test_the_model_card_links_to_a_base_model_that_is_on_the_hub_and_to_no_folder(compressed: Compress) -> None:
    report = json.loads((compressed("bert").folder / "report.json").read_text())
    assert ModelCard(model_card(report)).data.get("base_model") is None

    report["model"] |= {"name": "someone/bert", "revision": "0123abc"}
    card = ModelCard(model_card(report))
    assert card.data.get("base_model") == "someone/bert"
    assert "`someone/bert` (revision `0123abc`)" in card.text


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"base_architecture": "NoSuchModel"}, "has no model class 'NoSuchModel'"),
        ({"base_architecture": "AutoConfig"}, "has no model class 'AutoConfig'"),
        ({"base_model_type": "nothing"}, "has no model type 'nothing'"),
        ({"base_architecture": None}, r"config\.json of a jactus checkpoint must have 'base_architecture'"),
    ],
)
def test_a_configuration_that_names_no_known_architecture_is_refused(
    changes: dict[str, Any], complaint: str, bert_copy: Path
) -> None:
    edit_config(bert_copy, **changes)
    with pytest.raises(ValueError, match=complaint):
        AutoConfig.from_pretrained(bert_copy)
