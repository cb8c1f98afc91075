"""The pages say what the code does: their snippets run, their links lead somewhere, their tables are complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from jactus_core import CompressionConfig, errors

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CHOICE = re.compile(r"^\| `([\w.]+)` \|.*\| `([^`]+)` \| [^|]+ \|$", re.MULTILINE)
"""A row of the table of choices: the setting or constant, its options, its default, the reason."""


def program(page: Path) -> str:
    """All snippets of a page as one program whose line numbers are those of the page."""
    text, lines = page.read_text(encoding="utf-8"), list[str]()
    for snippet in SNIPPET.finditer(text):
        lines += [""] * (text.count("\n", 0, snippet.start(1)) - len(lines))
        lines += snippet[1].splitlines()
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", ["method", "library"])
def test_the_snippets_of_a_page_run_in_order_and_offline(name: str, tmp_path: Path) -> None:
    script = tmp_path / f"{name}.py"
    script.write_text(program(ROOT / "docs" / f"{name}.md"), encoding="utf-8")
    folder = tmp_path / "work"
    folder.mkdir()
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
    environment = os.environ | settings | {"PYTHONPATH": str(ROOT)}

    answer = subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )

    assert answer.returncode == 0, answer.stderr[-4000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    links = LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8")))
    paths = [link.partition("#")[0] for link in links if "://" not in link and not link.startswith("#")]
    assert [path for path in paths if not (page.parent / path).exists()] == []


def test_the_table_of_choices_has_the_defaults_of_the_code() -> None:
    choices = dict(CHOICE.findall((ROOT / "docs" / "method.md").read_text(encoding="utf-8")))
    defaults = {name: default(name) for name in choices}

    assert choices == {name: str(value) for name, value in defaults.items()}
    assert len(choices) > 10


def default(name: str) -> object:
    """Of a setting, or of a constant written as `module.CONSTANT`."""
    module, _, constant = name.rpartition(".")
    return getattr(import_module(f"jactus_core.{module}"), constant) if module else getattr(CompressionConfig(), name)


def test_every_setting_and_every_error_code_is_explained() -> None:
    text = "".join((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("method", "library"))
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.JactusError)]
    names = {kind.code for kind in kinds if kind is not errors.JactusError} | CompressionConfig.model_fields.keys()

    assert [name for name in sorted(names) if f"`{name}`" not in text] == []
