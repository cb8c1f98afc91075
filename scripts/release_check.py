"""Build what is published and use it as a stranger would: `python -m scripts.release_check`.

Wheel and sdist are built, the wheel is installed with each extra into an environment of its own, and each does there
what it is for. The licences of everything that any extra brings are compared with those that go with ours, and written
into docs/licences.md.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jactus_core import __version__
from scripts.bootstrap import link_folders
from scripts.steps import report, require, run

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licences.md"
PACKAGES = {"jactus_core", "jobs", "api", "worker", "cli", "migrations"}
UV = (sys.executable, "-m", "uv")
LISTER = "pip-licenses>=5.5,<6"

TINY = """
from pathlib import Path
from transformers import BertConfig, BertModel, BertTokenizer, set_seed
set_seed(0)
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "book"]
Path("vocab.txt").write_text("\\n".join(words))
BertTokenizer("vocab.txt").save_pretrained("small-bert")
shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BertModel(BertConfig(vocab_size=len(words), **shape)).save_pretrained("small-bert")
rows = [f'{{"text": "{word} film", "label": "{word}"}}' for word in ("good", "bad")] * 30
Path("reviews.jsonl").write_text("\\n".join(rows))
"""
WITHOUT_TORCH = "from importlib.util import find_spec\nassert find_spec('torch') is None, 'torch came along'\n"
COMPRESS = "jactus compress small-bert reviews.jsonl --budget 0.5 --set epochs=1 --set warmup_epochs=1 --json"
USES: dict[str, tuple[str, ...]] = {
    "": (
        WITHOUT_TORCH + "import cli.client",
        "jactus --version",
        "jactus jobs --help",
        "jactus doctor --json",
    ),
    "method": (
        TINY,
        COMPRESS,
        "jactus inspect compressed/budget-0.5",
        "import jactus_core; jactus_core.CompressionConfig",
    ),
    "api": (
        WITHOUT_TORCH + "from api.app import create_app\n"
        "from jobs.settings import Settings\ncreate_app(Settings(secret_key='x' * 32))",
    ),
    "service": ("import worker.supervisor, api.app, cli.embedded", "jactus keys create --tenant films"),
    "method,onnx": (TINY, COMPRESS, "jactus export compressed/budget-0.5 out --form onnx"),
}
"""By extras: programs in Python, or calls of the command, in an empty folder."""

COMPATIBLE = re.compile(
    r"apache|bsd|mit\b|mit-cmu|isc|psf|python software foundation|hpnd|zlib|unlicense|cc0|0bsd|mpl|mozilla",
    re.IGNORECASE,
)
"""Permissive ones, and the Mozilla licence, which asks for nothing where its files are used unchanged."""
LOOKED_AT = {
    "psycopg": "LGPL: used as a library, unchanged",
    "psycopg-binary": "LGPL: used as a library, unchanged",
}
"""Those that want a reason, by package."""


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        wheel = build(Path(scratch) / "dist")
        for extras, programs in USES.items():
            python = installed(wheel, extras, Path(scratch) / f"with-{extras or 'nothing'}")
            use(python, programs, Path(scratch) / f"in-{extras or 'nothing'}")
            report(f"works with {'[' + extras + ']' if extras else 'no extra'}")
        everything = installed(wheel, "service,onnx,demo", Path(scratch) / "everything")
        PAGE.write_text(page(licences(everything)), encoding="utf-8")
    report(f"licences are in {PAGE.relative_to(ROOT)}")


def build(folder: Path) -> Path:
    """The wheel, beside an sdist that holds what a release needs."""
    run(*UV, "build", "--quiet", "--out-dir", str(folder), str(ROOT))
    [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.split("/")[0] for name in names if ".dist-info" not in name}
    require(packages == PACKAGES, f"the wheel holds {sorted(packages)}")
    require({f"{package}/py.typed" for package in PACKAGES} <= {*names}, "a package says nothing about types")
    require(any(name.endswith("/licenses/LICENSE") for name in names), "the wheel lacks the licence")
    require(f"-{__version__}-" in wheel.name, f"{wheel.name} is not of version {__version__}")
    with tarfile.open(sdist) as archive:
        members = {member.partition("/")[2] for member in archive.getnames()}
    require({"pyproject.toml", "LICENSE", "README.md", "tests/conftest.py"} <= members, "the sdist is not whole")
    report(f"{wheel.name}: {wheel.stat().st_size / 1e6:.2f} MB, {sdist.name}: {sdist.stat().st_size / 1e6:.2f} MB")
    return wheel


def installed(wheel: Path, extras: str, folder: Path) -> Path:
    """The Python of a new environment."""
    run(*UV, "venv", "--quiet", "--python", sys.executable, str(folder))
    python = folder / "bin" / "python"
    links = [option for found in link_folders() for option in ("--find-links", str(found))]
    constraints = ("--constraint", str(ROOT / "constraints.txt"))
    wanted = f"{wheel}[{extras}]" if extras else str(wheel)
    run(*UV, "pip", "install", "--quiet", "--python", str(python), *constraints, *links, wanted)
    return python


def use(python: Path, programs: tuple[str, ...], folder: Path) -> None:
    """Run them; none may find the checkout."""
    folder.mkdir()
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("JACTUS_", "PYTHON"))}
    environment = outside | {
        "HF_HUB_OFFLINE": "1",
        "HOME": str(folder),
        "PATH": f"{python.parent}:{os.environ['PATH']}",
    }
    for program in programs:
        command = program.split() if program.startswith("jactus ") else [str(python), "-c", program]
        run(*command, cwd=folder, env=environment)


def licences(python: Path) -> Iterator[tuple[str, str, str]]:
    """Name, licence and page of everything that is installed there; one that does not go with ours ends it."""
    options = ("--python", str(python), "--from=mixed", "--format=json", "--with-urls")
    lister = run(*UV, "tool", "run", "--quiet", "--from", LISTER, "pip-licenses", *options)
    found: list[dict[str, Any]] = json.loads(lister)
    for package in sorted(found, key=lambda package: package["Name"].lower()):
        name, licence = package["Name"], package["License"].replace("\n", " ")
        if name.startswith("jactus"):
            continue
        known = COMPATIBLE.search(licence) or name in LOOKED_AT
        require(bool(known), f"{name} is under '{licence}': look at it, and note it in {Path(__file__).name}")
        yield name, LOOKED_AT.get(name, licence), package["URL"]


def page(found: Iterator[tuple[str, str, str]]) -> str:
    rows = "\n".join(
        f"| {f'[{name}]({url})' if url.startswith('http') else name} | {licence[:80]} |" for name, licence, url in found
    )
    return f"""# Licences of what is installed

Ours is Apache-2.0. What `jactus-core[service,onnx,demo]` brings along goes with it; `make release-check` looks each one
up, fails on one that it does not know, and writes this page.

| package | licence |
| --- | --- |
{rows}
"""


if __name__ == "__main__":
    main()
