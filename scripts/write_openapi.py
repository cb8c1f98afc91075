"""Write the API's contract to docs/openapi.json; a test compares it with the code."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import SecretStr

from api.app import create_app
from jobs.settings import Settings

TARGET = Path(__file__).resolve().parent.parent / "docs" / "openapi.json"


def contract() -> str:
    app = create_app(Settings(secret_key=SecretStr("only to build the schema")))
    return json.dumps(app.openapi(), indent=2) + "\n"


if __name__ == "__main__":
    TARGET.write_text(contract(), encoding="utf-8")
