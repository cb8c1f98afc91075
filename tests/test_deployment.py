"""What an operator starts: the compose file, the images' recipe, and the settings that a fresh machine gets."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.settings import Settings

ROOT = Path(__file__).parents[1]
TOOLS = Path(sys.executable).parent
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
ONE_SHOT = {"migrations"}
PUBLISHED = {"api": "8000", "storage": "8333"}
NOT_READ_ONLY = {"postgres"}
BEGIN_AS_ROOT = {"postgres", "storage"}
"""To take over their folders."""


def compose(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOOLS / "docker-compose", "--project-directory", folder, "--file", ROOT / "docker-compose.yml", *words],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the .env that a new operator has."""
    folder = tmp_path_factory.mktemp("fresh")
    (folder / "docker").mkdir()
    shutil.copy(ROOT / "docker" / "make_env.py", folder / "docker")
    shutil.copy(ROOT / "docker-compose.yml", folder)
    made = subprocess.run(
        [sys.executable, folder / "docker" / "make_env.py"], capture_output=True, text=True, check=True
    )
    assert "docker compose up" in made.stdout
    return folder


@pytest.fixture(scope="module")
def services(fresh: Path) -> dict[str, Any]:
    said = compose(fresh, "--profile", "*", "config", "--format", "json")
    assert said.returncode == 0, said.stderr
    found: dict[str, Any] = json.loads(said.stdout)["services"]
    return found


def test_nothing_starts_without_secrets_and_there_are_no_defaults(tmp_path: Path) -> None:
    refused = compose(tmp_path, "config", "--quiet")
    assert refused.returncode != 0
    assert "docker/make_env.py" in refused.stderr
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    secret = re.findall(r"\$\{(\w*(?:PASSWORD|SECRET|API_KEY)\w*)(\W?\W?)", text)
    assert secret
    assert {end for name, end in secret} <= {":?", '}"', "}"}, "a secret has a default"


def test_secrets_are_random_private_and_never_made_twice(fresh: Path, tmp_path: Path) -> None:
    file = fresh / ".env"
    assert file.stat().st_mode & 0o777 == 0o600
    values = dict(line.split("=", 1) for line in file.read_text().splitlines() if line and not line.startswith("#"))
    made = [values[name] for name in values if re.search("PASSWORD|SECRET|API_KEY", name)]
    assert len(made) == len(set(made)) == 5
    assert min(map(len, made)) >= 48
    before = file.read_text()
    again = subprocess.run([sys.executable, fresh / "docker" / "make_env.py"], capture_output=True, check=False)
    assert again.returncode != 0
    assert file.read_text() == before


def test_every_variable_of_the_compose_file_is_explained(fresh: Path) -> None:
    explained = (fresh / ".env").read_text()
    read = set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))
    assert set(re.findall(r"\b([A-Z][A-Z_0-9]+)=", explained)) >= read, "one is not explained"
    named = set(re.findall(r"^(\w+)=", explained, re.MULTILINE))
    settings = {f"JACTUS_{name.upper()}" for name in Settings.model_fields} | {"WEB_CONCURRENCY", "HF_ENDPOINT"}
    assert named <= read | settings, "one that nothing reads"


def test_any_setting_of_ours_reaches_api_and_workers(fresh: Path, services: dict[str, Any]) -> None:
    for name in ("migrations", "api", "worker", "worker-gpu"):
        environment = services[name]["environment"]
        assert environment["JACTUS_LOG_LEVEL"] == "info", "a line of .env that the compose file does not name"
        assert environment["JACTUS_DATA_DIR"] == "/var/lib/jactus"
    assert services["api"]["environment"]["JACTUS_HOST"] == "0.0.0.0"  # noqa: S104 - inside the container


def test_arriving_files_are_put_together_on_a_disk(services: dict[str, Any]) -> None:
    api = services["api"]
    assert api["environment"]["TMPDIR"] in {volume["target"] for volume in api["volumes"]}


def test_every_service_is_watched_bounded_and_restarted(services: dict[str, Any]) -> None:
    assert set(services) == {"postgres", "valkey", "storage", "migrations", "api", "planner", "worker", "worker-gpu"}
    for name, service in services.items():
        assert service["restart"] == ("on-failure:5" if name in ONE_SHOT else "unless-stopped"), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["logging"]["options"]["max-size"], name
        assert service.get("read_only", False) is (name not in NOT_READ_ONLY), name
        assert bool(service.get("cap_add")) is (name in BEGIN_AS_ROOT), name
        assert service["image"].startswith("jactus-") or name in BEGIN_AS_ROOT or service["user"], name
        if name not in ONE_SHOT:
            assert int(service["deploy"]["resources"]["limits"]["memory"]) > 0, name


def test_only_the_api_and_the_downloads_are_reached_from_outside_and_that_on_this_machine(
    services: dict[str, Any],
) -> None:
    ports = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert {name: str(port["target"]) for name, [port] in ports.items()} == PUBLISHED
    assert {port["host_ip"] for [port] in ports.values()} == {"127.0.0.1"}


def test_whoever_looks_at_strangers_configurations_has_no_secret_and_no_way_out(services: dict[str, Any]) -> None:
    planner = services["planner"]
    assert not planner.get("environment")
    assert set(planner["networks"]) == {"planning"}
    assert {name for name, service in services.items() if "planning" in service["networks"]} == {"planner", "api"}


def test_only_the_api_knows_the_admin_s_key(services: dict[str, Any]) -> None:
    knowing = {name for name, service in services.items() if (service.get("environment") or {}).get("JACTUS_API_KEY")}
    assert knowing == {"api"}


def test_gpu_workers_come_when_asked_for(fresh: Path, services: dict[str, Any]) -> None:
    plain = json.loads(compose(fresh, "config", "--format", "json").stdout)["services"]
    assert set(services) - set(plain) == {"worker-gpu"}
    [device] = services["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert services["worker-gpu"]["environment"]["JACTUS_WORKER_CLASSES"] == '["gpu","gpu-large"]'


def overridden(fresh: Path, part: str) -> dict[str, Any]:
    """The services, by name, with the override that the page shows under a heading."""
    file = fresh / "override.yml"
    section = PAGE.split(f"## {part}\n")[1].split("\n## ")[0]
    file.write_text(section.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    said = compose(fresh, "--file", str(file), "--profile", "gpu", "config", "--format", "json")
    assert said.returncode == 0, said.stderr
    found: dict[str, Any] = json.loads(said.stdout)["services"]
    return found


def test_gpus_of_two_sizes_get_workers_of_their_own(fresh: Path) -> None:
    found = overridden(fresh, "GPUs")
    devices = {
        name: [device["device_ids"] for device in service["deploy"]["resources"]["reservations"]["devices"]]
        for name, service in found.items()
        if name.startswith("worker-gpu")
    }
    assert devices == {"worker-gpu": [["0"]], "worker-gpu-large": [["1"]]}
    assert found["worker-gpu-large"]["environment"]["JACTUS_WORKER_CLASSES"] == '["gpu-large"]'
    assert found["worker-gpu-large"]["read_only"]


def test_servers_may_be_elsewhere(fresh: Path) -> None:
    lines = ("JACTUS_DATABASE_URL=postgresql://me@db/jactus", "JACTUS_STORAGE_URL=s3://b/p", "JACTUS_S3_ENDPOINT=")
    before = (fresh / ".env").read_text()
    (fresh / ".env").write_text(before + "\n".join(lines))
    try:
        found = overridden(fresh, "Servers that run elsewhere")
    finally:
        (fresh / ".env").write_text(before)
    assert not {"postgres", "storage"} & set(found)
    for name in ("migrations", "api", "worker"):
        environment = found[name]["environment"]
        assert {f"{key}={environment[key]}" for key in (line.split("=")[0] for line in lines)} == set(lines)


def test_the_recipe_of_the_images_is_clean_and_they_are_no_root() -> None:
    file = ROOT / "docker" / "Dockerfile"
    others = [ROOT / "scripts" / "stand_ins" / "Dockerfile"]
    said = subprocess.run([TOOLS / "hadolint", file, *others], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout
    stages = re.split(r"^FROM ", file.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    final = {stage.split()[3 - 1]: stage for stage in stages if "CMD [" in stage}
    assert set(final) == {"api", "worker", "worker-gpu"}
    assert all("HEALTHCHECK" in stage for stage in final.values())
    assert all("USER 10001" in stage for stage in stages if "ENTRYPOINT" in stage)
    assert not any("/uv" in stage or "pip" in stage for stage in final.values()), "build tools are left"
