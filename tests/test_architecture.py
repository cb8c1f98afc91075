"""What holds the house together: import directions, and documents that say what the code does."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from scripts.write_openapi import TARGET, contract

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "jactus_core": set(),
    "jobs": {"jactus_core"},
    "migrations": {"jobs"},
    "api": {"jobs", "jactus_core"},
    "worker": {"jobs", "jactus_core"},
    "cli": {"jobs", "jactus_core", "api", "migrations"},
    "benchmarks": {"jobs", "jactus_core", "api", "worker", "cli", "migrations"},
}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    strangers = {
        f"{file.relative_to(ROOT)} imports {imported}"
        for file in (ROOT / package).rglob("*.py")
        for imported in imports(file)
        if imported in MAY_IMPORT and imported not in MAY_IMPORT[package] | {package}
    }
    assert not strangers


def imports(file: Path) -> set[str]:
    """Top-level packages that a file imports, wherever the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_the_committed_contract_is_the_code_s() -> None:
    assert TARGET.read_text() == contract(), "run `make openapi`"
