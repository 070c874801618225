"""Ray: the profile of compose and the manifests for KubeRay."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.settings import PREFIX, Settings

from .files import DEPLOY, ROOT, read_yaml
from .test_kubernetes import CONTAINER, SCHEMAS
from .test_kubernetes import KINDS as PLAIN

SERVICES: dict[str, dict[str, Any]] = read_yaml(DEPLOY / "compose.yaml")["services"]
SERVE = read_yaml(DEPLOY / "ray" / "serve.yaml")
FILES = sorted((DEPLOY / "ray").glob("kuberay-*.yaml"))
DOCUMENTS = [document for file in FILES for document in yaml.safe_load_all(file.read_text())]
KINDS = {document["kind"]: document for document in DOCUMENTS if document["kind"].startswith("Ray")}
SERVING, JOBS = KINDS["RayService"]["spec"]["rayClusterConfig"], KINDS["RayCluster"]["spec"]
WORKER = next(document for document in DOCUMENTS if document["kind"] == "Deployment")
HEAD = DEPLOY / "image" / "ray_head.py"
SETTINGS = {PREFIX + name.upper() for name in Settings.model_fields}

VERSIONS = {
    "ConfigMap": "v1",
    "PersistentVolumeClaim": "v1",
    "RayService": "ray.io/v1",
    "RayCluster": "ray.io/v1",
    "RayJob": "ray.io/v1",
    "Deployment": "apps/v1",
    "PodDisruptionBudget": "policy/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
}


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods() -> dict[str, dict[str, Any]]:
    """Name -> pod, of every pod in the manifests."""
    found = {
        f"{name}/{group.get('groupName', 'head')}": group["template"]["spec"]
        for name, cluster in (("serving", SERVING), ("jobs", JOBS))
        for group in groups(cluster)
    }
    return found | {"worker": WORKER["spec"]["template"]["spec"]}


PODS = pods()
each_pod = pytest.mark.parametrize("name", sorted(PODS))


# ---- compose


def test_the_nodes_of_compose_are_one_image_with_one_token() -> None:
    head, worker = SERVICES["ray-head"], SERVICES["ray-worker"]
    for name in ("image", "build", "environment", "secrets", "networks", "tmpfs", "shm_size"):
        assert head[name] == worker[name]
    assert head["environment"]["RAY_AUTH_MODE"] == "token"
    assert head["environment"]["RAY_AUTH_TOKEN_PATH"].removeprefix("/run/secrets/") in head["secrets"]


def test_only_the_port_of_pictures_is_published() -> None:
    (port,) = SERVICES["ray-head"]["ports"]
    assert port.endswith(f":{SERVE['http_options']['port']}")
    assert SERVICES["ray-head"]["environment"]["FEWSTEP_PORT"] == str(SERVE["http_options"]["port"])
    assert SERVICES["ray-worker"]["ports"] == []


def test_a_worker_joins_the_port_of_the_head() -> None:
    (port,) = [word for word in SERVICES["ray-head"]["command"] if word.startswith("--port=")]
    assert f"--address=ray-head:{port.removeprefix('--port=')}" in SERVICES["ray-worker"]["entrypoint"]


def test_the_head_runs_the_file_that_is_mounted() -> None:
    program, file = SERVICES["ray-head"]["entrypoint"]
    assert f"./ray/serve.yaml:{file}:ro" in SERVICES["ray-head"]["volumes"]
    assert f"{HEAD.relative_to(ROOT)} /usr/local/bin/{program}" in (ROOT / "Dockerfile").read_text()


def test_words_for_ray_start_are_known_to_it() -> None:
    pytest.importorskip("ray", reason="needs the extra `ray`")
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    for name in ("ray-head", "ray-worker"):
        for word in SERVICES[name]["command"]:
            assert word.split("=")[0] in known
    for group in groups(SERVING) + groups(JOBS):
        assert {f"--{word}" for word in group["rayStartParams"]} <= known


# ---- KubeRay


def test_every_document_is_of_a_known_kind_and_version() -> None:
    assert {document["kind"]: document["apiVersion"] for document in DOCUMENTS} == VERSIONS
    assert {document["metadata"]["namespace"] for document in DOCUMENTS} == {"fewstep"}


def test_the_application_is_that_of_serve_yaml() -> None:
    assert yaml.safe_load(KINDS["RayService"]["spec"]["serveConfigV2"]) == SERVE


def test_the_version_of_ray_is_the_one_in_the_images() -> None:
    pinned = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert [SERVING["rayVersion"], JOBS["rayVersion"]] == pinned * 2


@each_pod
def test_images_are_targets_of_the_dockerfile_and_those_of_compose(name: str) -> None:
    image, _, tag = PODS[name]["containers"][0]["image"].partition(":")
    target = image.removeprefix("fewstep/")
    assert tag == "0.1.0"
    assert re.search(rf"^FROM \S+ AS {target}$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert any(f":-{image}}}" in service["image"] for service in SERVICES.values())
    assert "ray" in re.findall(
        rf"AS {target}-environment\n.*?\.\[([\w,]+)\]", (ROOT / "Dockerfile").read_text(), re.DOTALL
    )[0].split(",")


@pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda one: f"{one['kind']}/{one['metadata'].get('name')}"
)
def test_kubernetes_own_schema_has_all_that_is_in_a_document(document: dict[str, Any]) -> None:
    """Those of KubeRay's kinds are not to be had as a package; the pods in them are Kubernetes' own."""
    if not document["kind"].startswith("Ray"):
        kubernetes_validate.validate(document, SCHEMAS, strict=True)


@each_pod
def test_kubernetes_own_schema_has_all_that_is_in_a_pod(name: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": PODS[name]}
    kubernetes_validate.validate(pod, SCHEMAS, strict=True)


@each_pod
def test_a_pod_can_do_little(name: str) -> None:
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    # The head that scales its cluster has to ask Kubernetes for pods.
    assert pod.get("automountServiceAccountToken", True) == (name == "jobs/head")


@each_pod
def test_no_service_gets_into_the_environment(name: str) -> None:
    """Services named fewstep-... would set FEWSTEP_..., which the server refuses as misspelt settings."""
    assert PODS[name]["enableServiceLinks"] is False


@each_pod
def test_what_is_mounted_is_there_and_what_is_written_to_is_mounted(name: str) -> None:
    volumes = {volume["name"]: volume for volume in PODS[name]["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in PODS[name]["containers"][0]["volumeMounts"]}
    assert set(mounts) == {"/data", "/tmp"}
    claims = [document["metadata"]["name"] for document in DOCUMENTS if document["kind"].endswith("Claim")]
    assert volumes[mounts["/data"]]["persistentVolumeClaim"]["claimName"] in claims
    assert "emptyDir" in volumes[mounts["/tmp"]]


@each_pod
def test_settings_are_settings(name: str) -> None:
    container = PODS[name]["containers"][0]
    named = {entry["name"] for entry in container.get("env", [])}
    for source in container.get("envFrom", []):
        (found,) = [d for d in DOCUMENTS if d["metadata"].get("name") == source["configMapRef"]["name"]
                    and d["kind"] == "ConfigMap"]  # fmt: skip
        named |= set(found["data"])
    assert {variable for variable in named if variable.startswith(PREFIX)} <= SETTINGS


@pytest.mark.parametrize("name", sorted(set(PODS) - {"worker"}))
def test_probes_need_no_program_of_the_image(name: str) -> None:
    """Those that KubeRay puts in call wget."""
    container = PODS[name]["containers"][0]
    ports = {port["name"] for port in container["ports"]}
    for probe in ("readinessProbe", "livenessProbe"):
        ask = container[probe]["httpGet"]
        assert (ask["path"], ask["port"]) in {("/api/local_raylet_healthz", 52365), ("/-/healthz", "serve")}
        assert isinstance(ask["port"], int) or ask["port"] in ports


def test_a_node_gets_requests_while_its_proxy_answers() -> None:
    (engines,) = SERVING["workerGroupSpecs"]
    container = engines["template"]["spec"]["containers"][0]
    assert container["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": "serve"}
    (port,) = [port for port in container["ports"] if port["name"] == "serve"]
    assert port["containerPort"] == SERVE["http_options"]["port"]


def test_a_node_has_room_for_a_replica_and_an_ingress() -> None:
    (engines,) = SERVING["workerGroupSpecs"]
    per_node = float(engines["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    deployments = {d["name"]: d for d in SERVE["applications"][0]["deployments"]}
    least = sum(
        d["ray_actor_options"]["num_cpus"]
        * d.get("num_replicas", d.get("autoscaling_config", {}).get("min_replicas"))
        for d in deployments.values()
    )
    assert least <= per_node * engines["minReplicas"]
    assert least <= float(re.findall(r"RAY_CPUS:-(\d+)", (DEPLOY / "compose.yaml").read_text())[0])
    assert engines["maxReplicas"] >= deployments["Engine"]["autoscaling_config"]["max_replicas"] / per_node


def test_both_clusters_and_the_worker_know_the_token() -> None:
    assert SERVING["authOptions"] == JOBS["authOptions"] == {"mode": "token", "secretName": "fewstep-ray"}
    worker = {entry["name"]: entry for entry in PODS["worker"]["containers"][0]["env"]}
    assert worker["RAY_AUTH_MODE"]["value"] == "token"
    assert worker["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {
        "name": "fewstep-ray",
        "key": "auth_token",
    }


def test_the_worker_asks_the_cluster_of_jobs() -> None:
    worker = {entry["name"]: entry.get("value") for entry in PODS["worker"]["containers"][0]["env"]}
    assert worker["FEWSTEP_JOBS_BACKEND"] == "ray"
    name = KINDS["RayCluster"]["metadata"]["name"]
    assert worker["FEWSTEP_JOBS_RAY_ADDRESS"] == f"http://{name}-head-svc:8265"
    assert KINDS["RayJob"]["spec"]["clusterSelector"] == {"ray.io/cluster": name}
    assert WORKER["spec"]["template"]["metadata"]["labels"] == WORKER["spec"]["selector"]["matchLabels"]


def test_the_worker_publishes_on_the_server_whose_jobs_it_runs() -> None:
    """That of deploy/kubernetes: the same database, no runner of its own, a Service of that name, and keys."""
    worker = {entry["name"]: entry for entry in PODS["worker"]["containers"][0]["env"]}
    (port,) = PLAIN["Service"]["spec"]["ports"]
    assert worker["FEWSTEP_JOBS_SERVER"]["value"] == f"http://{PLAIN['Service']['metadata']['name']}"
    assert port["port"] == 80, "as http:// without a port"
    server = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in CONTAINER["env"]}
    shared = worker["FEWSTEP_DATABASE_URL"]["valueFrom"]["secretKeyRef"]
    assert server == {"FEWSTEP_DATABASE_URL": shared | {"optional": True}}
    settings = PLAIN["ConfigMap"]["data"]
    assert settings["FEWSTEP_JOBS_WORKERS"] == "false"
    assert "FEWSTEP_API_KEYS" in settings
    assert "secretKeyRef" in worker["FEWSTEP_JOBS_SERVER_KEY"]["valueFrom"]


def test_secrets_that_are_wanted_are_made_by_a_command_that_is_written_down() -> None:
    text = "".join(file.read_text() for file in [*FILES, DEPLOY / "kubernetes" / "fewstep.yaml"])
    made = set(re.findall(r"create secret generic ([\w-]+) --from-(?:literal|file)=(\w+)=", text))
    wanted = {("fewstep-ray", "auth_token"), ("fewstep-keys", "api_keys")} | {
        (found["name"], found["key"]) for found in _secret_keys([PODS, CONTAINER])
    }
    assert wanted == made


def _secret_keys(node: Any) -> Iterator[dict[str, Any]]:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key == "secretKeyRef":
            yield value
        elif isinstance(value, (dict, list)):
            yield from _secret_keys(value)


def test_the_container_that_scales_the_cluster_may_run_where_the_others_may() -> None:
    """KubeRay adds it to the head; it takes what `restricted` wants of a container from here."""
    assert PLAIN["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert JOBS["enableInTreeAutoscaling"] is True
    assert JOBS["autoscalerOptions"]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }


def test_files_that_comments_name_are_there() -> None:
    for file in (*FILES, DEPLOY / "ray" / "serve.yaml", DEPLOY / "kubernetes" / "fewstep.yaml"):
        for name in re.findall(r"[\w/-]+\.yaml", file.read_text()):
            assert [path for path in DEPLOY.rglob(Path(name).name) if str(path).endswith(name)], (
                f"{file.name}: {name}"
            )


def test_who_trains_has_time_to_save_its_state() -> None:
    stop = Settings.model_fields["jobs_stop_seconds"].default
    for name in ("jobs/head", "jobs/gpus", "worker"):
        assert PODS[name]["terminationGracePeriodSeconds"] > stop


def test_the_job_of_its_own_is_a_command_that_there_is() -> None:
    from fewstep.cli import parser

    words = KINDS["RayJob"]["spec"]["entrypoint"].split()
    assert words[0] == "fewstep"
    chosen = parser().parse_args(words[1:])
    assert (ROOT / "distill" / "recipes" / f"{words[2]}.yaml").exists()
    assert (chosen.ray, chosen.resume) == ("auto", True)


def test_ray_itself_cannot_be_reached_from_elsewhere() -> None:
    (policy,) = [document for document in DOCUMENTS if document["kind"] == "NetworkPolicy"]
    open_to_all = [rule for rule in policy["spec"]["ingress"] if "from" not in rule]
    assert [rule["ports"] for rule in open_to_all] == [[{"port": 8000}, {"port": 8080}]]
    labels = [group["template"]["metadata"]["labels"] for group in groups(SERVING)]
    (budget,) = [document for document in DOCUMENTS if document["kind"] == "PodDisruptionBudget"]
    assert labels == [budget["spec"]["selector"]["matchLabels"]] * 2
