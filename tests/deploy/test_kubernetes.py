"""The Kubernetes example: its parts find each other, and it fits the server's settings and routes."""

from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.routes import operations
from service.server import PARTING_SECONDS
from service.settings import PREFIX, Settings, read_settings

from .files import DEPLOY, ROOT

DOCUMENTS: list[dict[str, Any]] = list(
    yaml.safe_load_all((DEPLOY / "kubernetes" / "fewstep.yaml").read_text())
)
KINDS = {document["kind"]: document for document in DOCUMENTS}
POD: dict[str, Any] = KINDS["Deployment"]["spec"]["template"]["spec"]
CONTAINER: dict[str, Any] = POD["containers"][0]
LABELS = KINDS["Deployment"]["spec"]["template"]["metadata"]["labels"]
ROUTES = {route.path for route in operations.router.routes}
SCHEMAS = "1.32"
"""The oldest Kubernetes that the manifests are meant for."""
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")

VERSIONS = {
    "Namespace": "v1",
    "ConfigMap": "v1",
    "Service": "v1",
    "Deployment": "apps/v1",
    "PodDisruptionBudget": "policy/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
}


def test_every_document_is_of_a_known_kind_and_version() -> None:
    assert {document["kind"]: document["apiVersion"] for document in DOCUMENTS} == VERSIONS
    assert len(DOCUMENTS) == len(VERSIONS)


@pytest.mark.parametrize("kind", sorted(VERSIONS))
def test_kubernetes_own_schema_has_all_that_is_in_a_document(kind: str) -> None:
    kubernetes_validate.validate(KINDS[kind], SCHEMAS, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    document = deepcopy(KINDS["Deployment"])
    document["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        kubernetes_validate.validate(document, SCHEMAS, strict=True)


@pytest.mark.parametrize("kind", sorted(set(VERSIONS) - {"Namespace"}))
def test_everything_is_in_the_namespace(kind: str) -> None:
    assert KINDS[kind]["metadata"]["namespace"] == KINDS["Namespace"]["metadata"]["name"]


def test_selectors_select_the_pods() -> None:
    assert KINDS["Deployment"]["spec"]["selector"]["matchLabels"] == LABELS
    assert KINDS["Service"]["spec"]["selector"] == LABELS
    assert KINDS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == LABELS
    assert KINDS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == LABELS
    (spread,) = POD["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"] == LABELS


@pytest.mark.parametrize("probe", PROBES)
def test_probes_ask_routes_that_exist(probe: str) -> None:
    ask = CONTAINER[probe]["httpGet"]
    assert ask["path"] in ROUTES
    assert ask["port"] in [port["name"] for port in CONTAINER["ports"]]


def test_a_stalled_engine_is_taken_out_and_not_killed() -> None:
    assert CONTAINER["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    assert CONTAINER["livenessProbe"]["httpGet"]["path"] == "/health/live"


def test_loading_may_take_minutes() -> None:
    start = CONTAINER["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= 300


def test_there_is_time_to_drain() -> None:
    slept = re.search(r"sleep\((\d+)\)", CONTAINER["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert slept
    drain = float(KINDS["ConfigMap"]["data"]["FEWSTEP_DRAIN_SECONDS"])
    assert int(slept[1]) + drain + PARTING_SECONDS < POD["terminationGracePeriodSeconds"]
    # Long enough for the endpoints to be updated: two failed probes are the slower way to hear of it.
    ready = CONTAINER["readinessProbe"]
    assert int(slept[1]) >= ready["periodSeconds"] * ready["failureThreshold"]


def test_a_disruption_leaves_a_server() -> None:
    assert KINDS["PodDisruptionBudget"]["spec"]["minAvailable"] < KINDS["Deployment"]["spec"]["replicas"]
    assert KINDS["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_settings_of_the_example_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KINDS["ConfigMap"]["data"].items():
        assert isinstance(value, str), "Kubernetes takes strings only"
        monkeypatch.setenv(name, value)
    settings = read_settings()
    assert settings.log_format == "json"
    for name in KINDS["ConfigMap"]["data"]:
        assert name.removeprefix(PREFIX).lower() in Settings.model_fields


def test_what_a_service_would_put_into_the_environment_is_kept_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes would set FEWSTEP_PORT for a Service named fewstep, and the server would refuse it."""
    from service.errors import ServiceError

    prefix = KINDS["Service"]["metadata"]["name"].upper() + "_"
    assert prefix == PREFIX
    assert POD["enableServiceLinks"] is False
    monkeypatch.setenv("FEWSTEP_PORT", "tcp://10.0.0.1:80")
    with pytest.raises(ServiceError, match="FEWSTEP_PORT"):
        read_settings()


def test_the_pod_can_do_little() -> None:
    assert POD["securityContext"]["runAsNonRoot"] is True
    user = re.findall(r"^USER (\d+):", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert {str(POD["securityContext"]["runAsUser"])} == set(user)
    assert POD["automountServiceAccountToken"] is False
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in CONTAINER["resources"]["limits"]


def test_what_is_mounted_is_there_and_what_is_written_to_is_mounted() -> None:
    volumes = {volume["name"] for volume in POD["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    assert set(mounts.values()) == volumes
    assert {"/data", "/tmp"} <= set(mounts)
    assert KINDS["ConfigMap"]["data"]["FEWSTEP_API_KEYS"].startswith(
        next(path for path, name in mounts.items() if name == "keys")
    )


def test_the_image_is_a_target_with_a_version() -> None:
    name, _, tag = CONTAINER["image"].partition(":")
    assert tag
    assert tag != "latest"
    assert re.search(
        rf"^FROM \S+ AS {name.removeprefix('fewstep/')}$", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )


def test_traffic_comes_in_on_the_servers_port_alone() -> None:
    (rule,) = KINDS["NetworkPolicy"]["spec"]["ingress"]
    assert rule["ports"] == [{"port": "http"}]
    assert KINDS["Service"]["spec"]["ports"][0]["targetPort"] == "http"
