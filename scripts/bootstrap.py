"""Make `.venv` ready, with the standard library alone: `python3 scripts/bootstrap.py EXTRA …`.

A second call with nothing changed does nothing. torch comes first: a local CPU wheel if PIP_FIND_LINKS has one for this
Python, else the build that fits this machine, else whatever the package index has.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
CONSTRAINTS = ROOT / "constraints.txt"
OLDEST = (3, 11)


def main(extras: list[str]) -> None:
    if sys.version_info < OLDEST:
        sys.exit(f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed; this is {sys.version.split()[0]}.")
    stamp = ENVIRONMENT / f".ready-{'-'.join(extras)}"
    wanted = _fingerprint()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    if not PYTHON.exists():
        print("Creating .venv", file=sys.stderr, flush=True)
        venv.create(ENVIRONMENT, with_pip=True)
    print(f"Installing jactus-core[{','.join(extras)}] into .venv", file=sys.stderr, flush=True)
    _run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv")
    _install_torch()
    _uv("--editable", f"{ROOT}[{','.join(extras)}]")
    stamp.write_text(wanted)


def _install_torch() -> None:
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    local = any(wheel for folder in link_folders() for wheel in folder.glob(f"torch-*-{tag}-*.whl"))
    attempts = [[], ["--torch-backend", "auto"]] if local else [["--torch-backend", "auto"], []]
    for options in attempts:
        if _uv("torch", *options, check=False) == 0:
            return
    sys.exit("torch could not be installed; see the messages above.")


def _uv(*arguments: str, check: bool = True) -> int:
    links = [option for folder in link_folders() for option in ("--find-links", str(folder))]
    command = ["-m", "uv", "pip", "install", "--quiet", "--compile-bytecode", "--constraint", str(CONSTRAINTS), *links]
    return _run(*command, *arguments, check=check)


def _run(*arguments: str, check: bool = True) -> int:
    environment = {**os.environ, "VIRTUAL_ENV": str(ENVIRONMENT), "UV_PYTHON_DOWNLOADS": "never"}
    return subprocess.run([PYTHON, *arguments], cwd=ROOT, env=environment, check=check).returncode


def link_folders() -> list[Path]:
    """Local folders of wheels that pip has been told about."""
    return [Path(entry) for entry in os.environ.get("PIP_FIND_LINKS", "").split() if Path(entry).is_dir()]


def _fingerprint() -> str:
    files = (ROOT / "pyproject.toml", CONSTRAINTS, Path(__file__))
    return hashlib.sha256(b"".join([sys.version.encode(), *(file.read_bytes() for file in files)])).hexdigest()


if __name__ == "__main__":
    main(sys.argv[1:])
