"""What holds the house together: import directions, and documents that say what the code does."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from scripts import write_openapi, write_settings

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


def test_benchmarks_take_nothing_of_the_tests_but_their_servers() -> None:
    text = "".join(file.read_text() for file in (ROOT / "benchmarks").rglob("*.py"))
    assert set(re.findall(r"(?:from|import) (tests[.\w]*)", text)) <= {"tests.servers"}


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
    assert write_openapi.TARGET.read_text() == write_openapi.contract(), "run `make openapi`"


def test_the_table_of_settings_is_the_code_s() -> None:
    page = write_settings.TARGET.read_text()
    assert write_settings.table() in page, "run `make settings`"
    assert write_settings.with_table(page) == page
