"""Build the images and run the commands of docs/deploy.md with them, first to last: `python -m scripts.containers`.

For a machine without a container engine, as root, with ports 8000 and 8333 free: buildah builds, podman runs, and the
real Compose talks to podman. Where public images cannot be pulled, stand-ins are made of the same servers' wheels;
where the base image cannot be pulled, tag one of that name before, such as one that debootstrap made.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.bootstrap import link_folders
from scripts.steps import report, require, run, succeeds
from tests.helpers import wait_for
from tests.tiny import reviews, write_tiny_bert

ROOT = Path(__file__).resolve().parent.parent
TOOLS = Path(sys.executable).parent
COMPOSE_FILE = ROOT / "docker-compose.yml"
STAND_INS = ROOT / "scripts" / "stand_ins"
CERTIFICATES = Path("/etc/ssl/certs")
HEALTH_SECONDS = 2

PAGE = ROOT / "docs" / "deploy.md"
SNIPPET = re.compile(r"^```sh(?: (\w+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
"""After `sh`: `gpu`, `elsewhere` and `cluster` for what takes other machines, `restore` for what follows a loss."""
LOSS = "docker compose down --volumes\n"
HUB_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
UPLOADED_MODEL = (
    "$(jactus models upload ../tiny-bert --json | python3 -c 'import json, sys; print(json.load(sys.stdin)[\"id\"])')"
)
PROOF = f"""\
JOB=$(jactus jobs list --status succeeded --json | python3 -c 'import json, sys; print(json.load(sys.stdin)[0]["id"])')
jactus download $JOB checkpoints
jactus jobs create {HUB_MODEL} reviews.csv --budget 0.5 --output checkpoint --output onnx --watch
"""
"""That what was restored is whole, and that the service works again; the API's image knows nothing of ONNX."""
WRAPPERS = {
    "jactus": f'exec {sys.executable} -m cli.main "$@"',
    "python3": f'exec {sys.executable} "$@"',
    "aws": f'exec {TOOLS / "uv"} tool run --quiet --from awscli aws "$@"',
    "docker": f"""\
case "$1 $2" in
"compose build") exec {sys.executable} -m scripts.containers build ;;
"compose "*) shift; exec {TOOLS / "docker-compose"} "$@" ;;
esac
exec podman "$@"
""",
}


def main() -> None:
    build_images()
    make_stand_ins()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkout = prepare(folder)
        with engine(folder) as address, health_checks():
            environment = {
                **os.environ,
                "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "DOCKER_HOST": address,
                "XDG_CONFIG_HOME": str(folder / "config"),
            }
            try:
                tell(folder / "story.sh", checkout, environment)
            finally:
                down = ("docker", "compose", "--profile", "*", "down", "--volumes")
                ended = succeeds(*down, cwd=checkout, env=environment)
            require(ended, "the stack does not end")
    left = [
        *run("podman", "ps", "--all", "--format", "{{.Names}}").split(),
        *run("podman", "volume", "ls", "-q").split(),
    ]
    require(not [name for name in left if name.startswith("jactus")], f"something is left: {left}")
    report("every command of docs/deploy.md has run; nothing is left")


def build_images() -> None:
    for target in ("api", "worker"):
        began = time.monotonic()
        build(f"jactus-{target}", target, ROOT / "docker" / "Dockerfile", ROOT)
        said = run("podman", "image", "inspect", "--format", "{{.Size}}", f"jactus-{target}")
        report(f"jactus-{target}: {int(said) / 1e6:,.0f} MB, built in {time.monotonic() - began:.0f} s")


def make_stand_ins() -> None:
    """For the public images that are not here and cannot be pulled."""
    for image in re.findall(r"image: (docker\.io/\S+)", COMPOSE_FILE.read_text(encoding="utf-8")):
        if not succeeds("podman", "image", "exists", image) and not succeeds("podman", "pull", "--quiet", image):
            build(image, image.split("/")[-1].split(":")[0], STAND_INS / "Dockerfile", STAND_INS)
            report(f"{image} cannot be pulled; a stand-in is made of the same server's wheel")


def build(image: str, target: str, file: Path, context: Path) -> None:
    """With what the machine's own pip is told: folders of wheels, certificates."""
    options = ["--format=docker", "--isolation=chroot", "--network=host", "--layers", f"--target={target}"]
    if links := link_folders():
        names = ",".join(map(str, links))
        options += [f"--volume={folder}:{folder}:ro" for folder in links] + ["--build-arg=TORCH_BACKEND="]
        options += [f"--build-arg=UV_FIND_LINKS={names}", f"--build-arg=PIP_FIND_LINKS={names.replace(',', ' ')}"]
    if CERTIFICATES.is_dir():
        options += [f"--volume={CERTIFICATES}:{CERTIFICATES}:ro"]
        options += [f"--build-arg=SSL_CERT_FILE={CERTIFICATES / 'ca-certificates.crt'}"]
    run("buildah", "build", *options, f"--tag={image}", f"--file={file}", str(context))


def prepare(folder: Path) -> Path:
    """What a newcomer has before the first command: a checkout, tools, a dataset; and a model, for want of a hub."""
    checkout, tools = folder / "checkout", folder / "bin"
    (checkout / "docker").mkdir(parents=True)
    shutil.copy(COMPOSE_FILE, checkout)
    shutil.copy(ROOT / "docker" / "make_env.py", checkout / "docker")
    tools.mkdir()
    for name, command in WRAPPERS.items():
        (tools / name).write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    with (checkout / "reviews.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ("text", "label"))
        writer.writeheader()
        writer.writerows(reviews(200))
    write_tiny_bert(folder / "tiny-bert")
    return checkout


@contextmanager
def engine(folder: Path) -> Iterator[str]:
    """Podman under the address of a Docker daemon."""
    socket = folder / "podman.sock"
    command = ("podman", "system", "service", "--time=0", f"unix://{socket}")
    with subprocess.Popen(command) as service:
        try:
            wait_for(socket.exists, 30, "podman's service")
            yield f"unix://{socket}"
        finally:
            service.terminate()


@contextmanager
def health_checks() -> Iterator[None]:
    """Podman leaves them to timers of systemd."""
    over = threading.Event()

    def check() -> None:
        while not over.wait(HEALTH_SECONDS):
            for name in run("podman", "ps", "--filter=name=jactus-", "--format={{.Names}}").split():
                succeeds("podman", "healthcheck", "run", name, capture_output=True)

    thread = threading.Thread(target=check)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def tell(file: Path, checkout: Path, environment: Mapping[str, str]) -> None:
    """Run the page's commands in one shell, which shows each and what it says."""
    parts = []
    for kind, snippet in SNIPPET.findall(PAGE.read_text(encoding="utf-8")):
        parts += {"": [snippet], "restore": [LOSS, snippet, PROOF]}.get(kind, [])
    story = "\n".join(["set -euo pipefail", *parts]).replace(HUB_MODEL, UPLOADED_MODEL)
    file.write_text(story, encoding="utf-8")
    began = time.monotonic()
    where: dict[str, Any] = {"cwd": checkout, "env": environment}
    ended = succeeds("/bin/bash", "-v", file, stderr=subprocess.STDOUT, **where)
    if not ended:
        succeeds("docker", "compose", "logs", "--tail", "30", **where)
    require(ended, f"a command of {PAGE.name} fails")
    report(f"they took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    build_images() if sys.argv[1:] == ["build"] else main()
