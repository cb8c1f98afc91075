"""A real text classification task that every Python carries: which standard package does a docstring belong to?"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

PACKAGES = 10
LARGEST_PACKAGE = 400
SHORTEST_DOCSTRING = 20  # characters
DOCUMENTED = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def build_dataset(path: Path) -> int:
    """Write `text`, `label` JSON lines of the packages with most docstrings; returns the number of rows."""
    by_package: dict[str, set[str]] = {}
    for package, files in _packages():
        found = {text for file in files for text in _docstrings(file)}
        by_package[package] = found
    largest = sorted(by_package, key=lambda package: (-len(by_package[package]), package))[:PACKAGES]
    texts = {package: by_package[package] for package in largest}
    rows = [
        {"text": text, "label": package}
        for package in largest
        for text in sorted(texts[package])[:LARGEST_PACKAGE]
        if sum(text in others for others in texts.values()) == 1
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return len(rows)


def _packages() -> Iterator[tuple[str, list[Path]]]:
    """Public packages and modules of the standard library with their source files, tests left out."""
    root = Path(sysconfig.get_path("stdlib"))
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in {"test", "idlelib", "lib2to3"}:
            continue
        files = [root / f"{name}.py", *sorted((root / name).rglob("*.py"))]
        yield name, [file for file in files if file.is_file() and "test" not in file.relative_to(root).parts]


def _docstrings(file: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in the library's own sources
        tree = ast.parse(file.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            text = inspect.cleandoc(text)
            if len(text) >= SHORTEST_DOCSTRING:
                yield text
