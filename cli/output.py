"""What commands print: tables for people, JSON for programs, and errors apart from both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

FOR_PIPES = 1000
"""Columns where there is no terminal: nothing is cut."""
Told = BaseModel | Sequence[BaseModel] | dict[str, Any] | list[Any]


class Output:
    """Standard output for results and standard error for the rest; `as_json` decides for whom."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.people = Console(stderr=as_json, highlight=False, markup=False)
        """Where remarks and progress go: beside the results, or out of their way."""
        if not self.people.is_terminal:
            self.people.width = FOR_PIPES

    def tell(self, found: Told, draw: Callable[[], RenderableType | Iterable[RenderableType]]) -> None:
        """A result: all of it as one JSON document, or as `draw` shows it."""
        if self.as_json:
            print(json.dumps(plain(found), indent=2, ensure_ascii=False))  # noqa: T201
            return
        drawn = draw()
        parts = [drawn] if isinstance(drawn, str) or not isinstance(drawn, Iterable) else list(drawn)
        self.people.print(*parts, sep="\n", soft_wrap=True)

    def remark(self, text: str) -> None:
        """For people alone."""
        self.people.print(text, soft_wrap=True)


def plain(found: Any) -> Any:
    """As JSON has it."""
    if isinstance(found, BaseModel):
        return found.model_dump(mode="json")
    return [plain(item) for item in found] if isinstance(found, list | tuple) else found


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[str] = ()) -> Table:
    """Rows under a thin line; columns named in `right` are numbers."""
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        drawn.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    return drawn


def facts(pairs: Iterable[tuple[str, Any]]) -> Table:
    """A name and what is known of it, line by line; what is None is left out."""
    drawn = Table.grid(padding=(0, 2))
    for name, value in pairs:
        if value is not None:
            drawn.add_row(Text(name, "bold"), Text(str(value)))
    return drawn


def wrong(text: str) -> Text:
    """What went wrong, so that it stands out."""
    return Text(text, "red")


def size(count: float) -> str:
    """Bytes, as files are measured: 1 MB is a million."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def ago(moment: datetime | None) -> str:
    return "–" if moment is None else f"{duration(max((datetime.now(UTC) - moment).total_seconds(), 0))} ago"
