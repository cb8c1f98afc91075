"""Write the table of settings into docs/operations.md, between its markers; a test compares it with the code."""

from __future__ import annotations

import re
from pathlib import Path

from jobs.settings import Settings, as_variable

TARGET = Path(__file__).resolve().parent.parent / "docs" / "operations.md"
MARKED = re.compile(r"(?<=<!-- settings -->\n).*?(?=<!-- /settings -->)", re.DOTALL)


def table() -> str:
    rows = ["| variable | default | meaning |", "| --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default == Path() else as_variable(field.default)
        rows.append(f"| `JACTUS_{name.upper()}` | {f'`{default}`' if default else ''} | {field.description} |")
    return "\n".join(rows) + "\n"


def with_table(page: str) -> str:
    return MARKED.sub(lambda _: table(), page)


if __name__ == "__main__":
    TARGET.write_text(with_table(TARGET.read_text(encoding="utf-8")), encoding="utf-8")
