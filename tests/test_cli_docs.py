"""docs/cli.md: its examples run in order, in one shell, and it leaves out no command."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import typer.main
from typer.core import TyperCommand, TyperGroup

from cli.main import app

PAGE = (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")
SNIPPET = re.compile(r"^```sh(?: (\w+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
"""After `sh`: `hub` for what needs the internet, `serve` for what goes on in the background."""
SERVE = """
jactus serve --port 0 > serve.log 2>&1 & SERVICE=$!
trap 'kill -INT $SERVICE; wait $SERVICE' EXIT
until [ -e .jactus/service.json ]; do kill -0 $SERVICE; sleep 0.1; done
URL=$(python3 -c 'import json; print(json.load(open(".jactus/service.json"))["url"])')
export JACTUS_API_KEY=$(python3 -c 'import json; print(json.load(open(".jactus/service.json"))["api_key"])')
"""


def test_every_example_runs_in_order(tiny_bert: Path, tmp_path: Path) -> None:
    work, tools = tmp_path / "work", tmp_path / "bin"
    tools.mkdir()
    shutil.copytree(tiny_bert, work / "tiny-bert")
    for name, command in {"jactus": "-m cli.main", "python3": ""}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec {sys.executable} {command} "$@"\n', encoding="utf-8")
        (tools / name).chmod(0o755)
    program = ["set -euxo pipefail"]
    for kind, snippet in SNIPPET.findall(PAGE):
        program += {"hub": [], "serve": [SERVE]}.get(kind, [snippet])
    given = {"MODEL": "tiny-bert", "FOLDER": "tiny-bert", "JACTUS_MODEL_ROOT": str(work), "HF_HUB_OFFLINE": "1"}
    homes = {"HOME": str(tmp_path / "home"), "XDG_CONFIG_HOME": str(tmp_path / "home" / "config")}
    path = {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parents[1])}

    ended = subprocess.run(
        ["/bin/bash", "-c", "\n".join(program)],
        cwd=work,
        env={**os.environ, **given, **homes, **path},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )

    assert ended.returncode == 0, f"{ended.stdout[-3000:]}\n{ended.stderr[-3000:]}"
    for made in ("small/budget-0.5", "small/budget-0.8", "checkpoints/budget-0.5", "checkpoints/budget-0.8"):
        assert (work / made / "model.safetensors").is_file()
    assert (work / "dense" / "model.safetensors").is_file()
    assert (work / "for-onnx" / "model.onnx").is_file()


def commands(group: TyperGroup, *names: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, *names, name)
        else:
            yield " ".join(("jactus", *names, name))


def test_the_page_names_every_command() -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    missing = [command for command in commands(root) if not re.search(rf"{command}\b", PAGE)]
    assert missing == []


def test_every_command_explains_itself() -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    silent = [
        f"{command.name} {parameter.name}"
        for command in leaves(root)
        for parameter in command.params
        if not getattr(parameter, "help", None)
    ]
    assert silent == []
    assert [command.name for command in leaves(root) if not command.help] == []


def leaves(group: TyperGroup) -> Iterator[TyperCommand]:
    for command in group.commands.values():
        if isinstance(command, TyperGroup):
            yield from leaves(command)
        else:
            assert isinstance(command, TyperCommand)
            yield command
