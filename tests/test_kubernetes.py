"""deploy/kubernetes: what Kubernetes' own schemas accept, without a privilege, with settings and probes that exist."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from schemas.settings import load
from workers.supervision.healthz import PORTS
from workers.supervision.stack import ROLES

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.name != "kustomization.yaml")
DOCUMENTS: list[dict[str, Any]] = [one for path in FILES for one in yaml.safe_load_all(path.read_text())]
# The oldest and the newest release that the manifests promise to work with.
VERSIONS = ("1.30", "1.37")
HOME = "/var/lib/freshet"
SETTINGS = dict(
    line.split("=", 1) for line in (FOLDER / "freshet.env").read_text().splitlines() if line and line[0] != "#")


def named(document: dict[str, Any]) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


def of(*kinds: str) -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in DOCUMENTS if one["kind"] in kinds}


WORKLOADS = of("StatefulSet", "Deployment", "Job")


def spec(name: str) -> dict[str, Any]:
    return WORKLOADS[name]["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_a_schema_of_kubernetes_accepts_it(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


def test_a_wrong_field_is_found() -> None:
    wrong = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x", "nothing": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_the_kustomization_has_every_file_but_the_job() -> None:
    assert set(KUSTOMIZATION["resources"]) == {path.name for path in FILES} - {"fit.yaml"}
    assert {one["metadata"].get("namespace", "freshet") for one in DOCUMENTS} == {KUSTOMIZATION["namespace"]}


def test_every_role_runs_once_and_the_settings_load() -> None:
    assert {name for name in WORKLOADS if name != "fit"} == set(ROLES)
    for name in ROLES:
        assert spec(name)["containers"][0]["command"] == ["freshet", "up", "--roles", name]
    settings = load(SETTINGS)
    assert str(settings.home) == HOME
    assert settings.kafka.bootstrap
    assert settings.qdrant.url
    assert WORKLOADS["streams"]["kind"] == "StatefulSet"
    assert WORKLOADS["streams"]["spec"]["replicas"] <= settings.kafka.partitions
    for name in ("guard", "alignment"):
        assert WORKLOADS[name]["spec"]["replicas"] == 1
        assert WORKLOADS[name]["spec"]["strategy"] == {"type": "Recreate"}


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_a_pod_has_no_privilege_and_no_secret_in_its_environment(name: str) -> None:
    pod, (container,) = spec(name), spec(name)["containers"]
    user = pod["securityContext"]
    assert (user["runAsNonRoot"], user["runAsUser"], user["fsGroup"]) == (True, 10001, 10001)
    assert user["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    # Kubernetes would add FRESHET_SERVICE_HOST for the service `freshet`, and an unknown setting is an error.
    assert pod["enableServiceLinks"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    given = {one["name"]: one["value"] for one in container["env"]}
    more = {"FRESHET_CONSOLE_HOST", "FRESHET_CONSOLE_API_KEYS_FILE"} if name == "console" else set()
    assert set(given) == {"OMP_NUM_THREADS"} | more
    assert all(Path(value).parent == Path("/run/secrets/freshet") for key, value in given.items() if "KEY" in key)
    assert "memory" in container["resources"]["limits"]
    (secret,) = [one for one in pod["volumes"] if "secret" in one]
    assert secret["secret"]["defaultMode"] == 0o440
    assert not any("PASSWORD" in variable or "KEY" in variable for variable in SETTINGS)


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_a_pod_writes_where_the_image_does(name: str) -> None:
    pod, (container,) = spec(name), spec(name)["containers"]
    claims = WORKLOADS[name]["spec"].get("volumeClaimTemplates", [])
    there = {one["name"] for one in (*pod["volumes"], *(claim["metadata"] for claim in claims))}
    mounts = {one["mountPath"]: one for one in container["volumeMounts"]}
    assert {one["name"] for one in mounts.values()} == there
    writable = {path for path, one in mounts.items() if not one.get("readOnly")}
    own = {f"{HOME}/{name}"} if name in ("streams", "console") else set()
    assert writable == {HOME, f"{HOME}/run", "/tmp"} | own  # noqa: S108


@pytest.mark.parametrize("name", sorted(set(WORKLOADS) - {"fit"}))
def test_probes_ask_the_supervisor(name: str) -> None:
    (container,) = spec(name)["containers"]
    port, *_ = container["ports"]
    assert port["containerPort"] == load(SETTINGS).metrics.port
    for probe, path in (("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")):
        assert container[probe]["httpGet"] == {"path": path, "port": port["name"]}


def test_several_pods_of_a_role_are_not_evicted_at_once() -> None:
    several = {name for name in WORKLOADS if WORKLOADS[name]["spec"].get("replicas", 1) > 1}
    budgets = of("PodDisruptionBudget")
    assert set(budgets) == several
    for name, budget in budgets.items():
        assert budget["spec"]["maxUnavailable"] == 1
        assert budget["spec"]["selector"] == WORKLOADS[name]["spec"]["selector"]


def test_prometheus_finds_every_process() -> None:
    ports = {one["name"]: one["port"] for one in of("Service")["freshet"]["spec"]["ports"]}
    base = load(SETTINGS).metrics.port
    assert ports == {name: base + more for name, more in PORTS.items() if name != "store"}
    watching, asking = of("NetworkPolicy")["freshet"]["spec"]["ingress"]
    assert [(one["port"], one["endPort"]) for one in watching["ports"]] == [(base, max(ports.values()))]
    assert "from" in watching
    (console,) = of("Service")["console"]["spec"]["ports"]
    assert [one["port"] for one in asking["ports"]] == [console["port"]] == [load(SETTINGS).console.port]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
def test_kubectl_makes_the_same_of_it() -> None:
    done = subprocess.run(["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True, check=True)
    made = list(yaml.safe_load_all(done.stdout))
    for document in made:
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
    assert {named(one) for one in made} == {named(one) for one in DOCUMENTS} - {"Job-fit"} | {"ConfigMap-freshet"}
    (settings,) = [one for one in made if one["kind"] == "ConfigMap"]
    assert settings["data"] == SETTINGS
