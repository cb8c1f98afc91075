from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from jactus_core.errors import ModelNotFound, UnsupportedModel
from jactus_core.models import bytes_needed, find_model


def test_a_folder_is_found_by_path_and_by_name_under_a_root(tiny_bert: Path) -> None:
    by_path = find_model(str(tiny_bert))
    by_name = find_model(tiny_bert.name, root=tiny_bert.parent)

    assert by_path.location == by_name.location == str(tiny_bert)
    assert by_path.model_type == "bert"
    assert by_path.revision is None


@pytest.mark.parametrize("name", ["../secret", "/etc", "nothing here", "a/b/c", "no-such-model"])
def test_with_a_root_nothing_outside_it_can_be_named(tmp_path: Path, tiny_bert: Path, name: str) -> None:
    shutil.copytree(tiny_bert, tmp_path / "secret")
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(ModelNotFound, match="There is no model"):
        find_model(name, root=root)


def test_a_link_that_leaves_the_root_is_not_followed(tmp_path: Path, tiny_bert: Path) -> None:
    (tmp_path / "link").symlink_to(tiny_bert)
    with pytest.raises(ModelNotFound):
        find_model("link", root=tmp_path)


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside.txt", "vocab.txt", "gone"])
def test_under_a_root_every_file_must_lie_inside(tmp_path: Path, tiny_bert: Path, target: str) -> None:
    folder = tmp_path / "root" / "model"
    shutil.copytree(tiny_bert, folder)
    (tmp_path / "outside.txt").touch()
    find_model("model", root=folder.parent)
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").symlink_to(target if target != "../outside.txt" else "../../outside.txt")
    with pytest.raises(UnsupportedModel, match=r"'vocab\.txt' of 'model' is missing or leads out"):
        find_model("model", root=folder.parent)


def test_under_a_root_an_index_of_shards_names_files_inside(tmp_path: Path, tiny_bert: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model.safetensors"}}')
    find_model("model", root=tmp_path)
    index.write_text('{"weight_map": {"a": "model.safetensors", "b": "../../etc/passwd"}}')
    with pytest.raises(UnsupportedModel, match="leads out"):
        find_model("model", root=tmp_path)


def test_only_files_that_loading_reads_are_counted() -> None:
    files = {"model.safetensors": 100, "model.fp16.safetensors": 50, "pytorch_model.bin": 100, "config.json": 1}
    assert bytes_needed(files | {"onnx/model.onnx": 100, "README.md": 1, "vocab.txt": 2}) == 103
    shards = {f"model-0000{number}-of-00002.safetensors": 10 for number in (1, 2)}
    assert bytes_needed(shards | {"consolidated.safetensors": 20, "tokenizer.model": 3}) == 23


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "unsafe_weights",
            "no safetensors weights",
        ),
        (lambda folder: (folder / "config.json").unlink(), "unsupported_model", "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "unsupported_model", "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{}"), "unsupported_model", "names no model_type"),
        (lambda folder: _with_remote_code(folder / "config.json"), "remote_code", "needs its own Python code"),
    ],
)
def test_a_folder_that_cannot_be_loaded_safely_is_refused(
    tmp_path: Path, tiny_bert: Path, change: object, code: str, message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_bert, folder)
    assert callable(change)
    change(folder)
    with pytest.raises(UnsupportedModel, match=message) as caught:
        find_model(str(folder))
    assert caught.value.code == code


def _with_remote_code(config: Path) -> None:
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auto_map": {"AutoConfig": "evil.Config"}}))
