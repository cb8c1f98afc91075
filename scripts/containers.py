"""Build the images, start them beside real servers, and run the main job through them: `python -m scripts.containers`.

For a machine without a container engine: buildah builds, podman runs; PostgreSQL, Valkey and SeaweedFS come from
wheels. Where the base image cannot be pulled, tag one of that name before, such as one that debootstrap made.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cli.client import Client
from jobs import schemas
from jobs.states import Status
from scripts.bootstrap import link_folders
from scripts.steps import report, require, run
from tests.helpers import QUICK, wait_for
from tests.servers import free_ports, postgres, seaweedfs_s3, valkey
from tests.tiny import write_reviews, write_tiny_bert

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("api", "worker")
CERTIFICATES = Path("/etc/ssl/certs")
RUN = (
    "--network=host",
    "--read-only",
    "--tmpfs=/tmp",
    "--volume=/var/lib/jactus",  # a new one, as in compose
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--no-healthcheck",  # its timer wants systemd; the checks are run below
    "--ulimit=nofile=5000:5000",
    "--ulimit=nproc=5000:5000",
)


def main() -> None:
    for target in TARGETS:
        began = time.monotonic()
        build(target)
        said = run("podman", "image", "inspect", "--format", "{{.Size}}", f"jactus-{target}")
        report(f"jactus-{target}: {int(said) / 1e6:,.0f} MB, built in {time.monotonic() - began:.0f} s")
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        folder.chmod(0o755)
        for file in write_tiny_bert(folder / "models" / "tiny-bert").iterdir():
            file.chmod(0o644)  # for the images' user
        settings = servers(stack, folder / "models")
        run_to_the_end("migrations", settings)
        report("the tables are there")
        api, planner = free_ports(2)
        stack.enter_context(container("planner", "worker", {}, "python", "-m", "jobs.planners", f"127.0.0.1:{planner}"))
        own = {"JACTUS_HOST": "127.0.0.1", "JACTUS_PORT": str(api), "JACTUS_PLANNER_ADDRESS": f"127.0.0.1:{planner}"}
        models = f"--volume={folder / 'models'}:/models:ro"
        stack.enter_context(container("api", "api", {**settings, **own}, options=(models,)))
        stack.enter_context(container("worker", "worker", settings, options=(models,)))
        wait_for(
            lambda: is_healthy("api", "api.alive") and is_healthy("worker", "jobs.health"), 90, "a healthy service"
        )
        report("API and worker are healthy")
        main_job(f"http://127.0.0.1:{api}", settings["JACTUS_API_KEY"], folder)
    left = [
        name for name in run("podman", "ps", "--all", "--format", "{{.Names}}").split() if name.startswith("jactus-")
    ]
    require(not left, f"containers are left: {left}")
    report("nothing is left running")


def build(target: str) -> None:
    """With what the machine's own pip is told: folders of wheels, certificates."""
    options = ["--format=docker", "--isolation=chroot", "--network=host", f"--target={target}"]
    if links := link_folders():
        options += [f"--volume={folder}:{folder}:ro" for folder in links] + ["--build-arg=TORCH_BACKEND="]
        options += [f"--build-arg=UV_FIND_LINKS={','.join(map(str, links))}"]
    if CERTIFICATES.is_dir():
        options += [f"--volume={CERTIFICATES}:{CERTIFICATES}:ro"]
        options += [f"--build-arg=SSL_CERT_FILE={CERTIFICATES / 'ca-certificates.crt'}"]
    run("buildah", "build", *options, f"--tag=jactus-{target}", f"--file={ROOT / 'docker' / 'Dockerfile'}", str(ROOT))


def servers(stack: ExitStack, models: Path) -> dict[str, str]:
    """The settings that lead to them."""
    storage = stack.enter_context(seaweedfs_s3())
    return {
        "JACTUS_DATABASE_URL": stack.enter_context(postgres()).new_database(),
        "JACTUS_BROKER_URL": stack.enter_context(valkey()),
        "JACTUS_STORAGE_URL": f"s3://{storage.bucket}/containers",
        "JACTUS_S3_ENDPOINT": storage.endpoint,
        "JACTUS_S3_ACCESS_KEY_ID": storage.access_key_id,
        "JACTUS_S3_SECRET_ACCESS_KEY": storage.secret_access_key,
        "JACTUS_SECRET_KEY": secrets.token_hex(32),
        "JACTUS_API_KEY": f"jactus_{secrets.token_hex(24)}",
        "JACTUS_MODEL_ROOT": "/models",
        "HF_HUB_OFFLINE": "1",
    }


def main_job(url: str, api_key: str, folder: Path) -> None:
    """As a user does it, over HTTP."""
    with Client(url, api_key) as client:
        dataset = client.upload_dataset(write_reviews(folder / "reviews.jsonl"))
        request = schemas.JobCreate(
            model="tiny-bert",
            dataset=dataset.id,
            budgets=(0.8, 0.5),
            hyperparameters=QUICK,
            outputs=("checkpoint", "onnx"),
        )
        job = client.create_job(request).wait(timeout=300)
        require(job.status == Status.SUCCEEDED, f"the job is {job.status}: {job.error}")
        files = job.download(folder / "checkpoints")
    assert job.result is not None
    scores = ", ".join(f"{point.budget:g}: {point.metrics[job.result.metric]:.0%}" for point in job.result.budgets)
    report(f"job {job.id} succeeded ({scores}), {len(files)} files downloaded and checked")


@contextmanager
def container(
    name: str, image: str, settings: Mapping[str, str], *command: str, options: tuple[str, ...] = ()
) -> Iterator[None]:
    """Runs inside the block; asked to end after it, and it must end well."""
    full = f"jactus-{name}"
    variables = [f"--env={key}={value}" for key, value in settings.items()]
    run("podman", "run", "--detach", f"--name={full}", *RUN, *options, *variables, f"jactus-{image}", *command)
    try:
        yield
        began = time.monotonic()
        run("podman", "stop", "--time=60", full)
        status = run("podman", "inspect", "--format={{.State.ExitCode}}", full).strip()
        require(status in ("0", "143"), f"{full} ended with {status}\n{logs(full)}")
        report(f"{full} stopped in {time.monotonic() - began:.0f} s")
    finally:
        if sys.exc_info()[0] is not None:
            report(logs(full))
        run("podman", "rm", "--force", "--volumes", full)


def logs(name: str) -> str:
    """The last of what it has said."""
    command = ("podman", "logs", "--tail=40", name)
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout


def run_to_the_end(module: str, settings: Mapping[str, str]) -> None:
    variables = [f"--env={key}={value}" for key, value in settings.items()]
    run("podman", "run", "--rm", *RUN, *variables, "jactus-api", "python", "-m", module)


def is_healthy(name: str, module: str) -> bool:
    """What the image's own health check says."""
    check = ("podman", "exec", f"jactus-{name}", "python", "-m", module)
    return subprocess.run(check, capture_output=True, check=False).returncode == 0


if __name__ == "__main__":
    main()
