"""compose.yaml: what it promises about safety, order and limits, and that it fits the other files."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service.server import PARTING_SECONDS
from service.settings import Settings

from .files import DEPLOY, PROMETHEUS, ROOT, load_script, read_yaml, run

TEXT = (DEPLOY / "compose.yaml").read_text()
COMPOSE = read_yaml(DEPLOY / "compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROFILES = sorted({profile for service in SERVICES.values() for profile in service.get("profiles", [])})
OWN = sorted(name for name, service in SERVICES.items() if "build" in service)
SCRIPT = load_script(DEPLOY / "env_example.py")
EXAMPLE = (DEPLOY / ".env.example").read_text()

each_service = pytest.mark.parametrize("name", sorted(SERVICES))


def service_profiles(name: str) -> set[str]:
    return set(SERVICES[name].get("profiles", []))


def has_compose() -> bool:
    docker = shutil.which("docker")
    return (
        docker is not None
        and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0
    )


@pytest.mark.skipif(not has_compose(), reason="docker compose is not installed")
@pytest.mark.parametrize("profiles", [(), *((name,) for name in PROFILES), tuple(PROFILES)])
def test_compose_accepts_the_file(profiles: tuple[str, ...]) -> None:
    chosen = [word for name in profiles for word in ("--profile", name)]
    done = run("docker", "compose", "-f", DEPLOY / "compose.yaml", *chosen, "config", "--quiet")
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "no warning either"


@pytest.mark.skipif(not has_compose(), reason="docker compose is not installed")
@pytest.mark.parametrize("profile", ["", *PROFILES])
def test_the_file_that_the_smoke_run_writes_can_be_used(profile: str, tmp_path: Path) -> None:
    """Printed without its other profiles, it would lack services that are waited for."""
    (command,) = re.findall(
        r"^    docker compose (-f deploy/compose.yaml .*) >", (DEPLOY / "smoke.sh").read_text(), re.MULTILINE
    )
    printed = run("docker", "compose", *command.replace("'", "").split(), cwd=ROOT)
    (tmp_path / "compose.json").write_text(printed.stdout)
    chosen = ["--profile", profile] if profile else []
    done = run("docker", "compose", "-f", tmp_path / "compose.json", *chosen, "config", "--services")
    assert done.returncode == 0, done.stderr
    expected = {name for name in SERVICES if not service_profiles(name) or profile in service_profiles(name)}
    assert set(done.stdout.split()) == expected


def test_there_is_a_profile_for_each_purpose() -> None:
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == {
        "api",
        "prometheus",
        "grafana",
    }
    assert PROFILES == ["gpu", "jobs", "jobs-cpu", "ray"]


def test_both_workers_are_the_same_but_for_the_gpu() -> None:
    differ = {key for key in SERVICES["worker"] if SERVICES["worker"][key] != SERVICES["worker-cpu"].get(key)}
    assert differ == {"profiles", "deploy"}
    assert "reservations" not in SERVICES["worker-cpu"]["deploy"]["resources"]


def test_postgresql_is_on_the_inner_network_alone() -> None:
    assert SERVICES["postgres"]["networks"] == ["back"]
    assert COMPOSE["networks"]["back"] == {"internal": True}
    assert not SERVICES["postgres"].get("ports")


def test_server_and_worker_use_one_database_and_one_folder() -> None:
    for name in ("api", "worker", "worker-cpu"):
        service = SERVICES[name]
        assert service["environment"]["FEWSTEP_DATABASE_URL_FILE"] == "${DATABASE_URL_FILE:-}"
        assert "data:/data" in service["volumes"]
        assert "database_url" in service["secrets"]
        assert service["networks"] == ["front", "back"]


def test_a_worker_has_time_to_save_its_job() -> None:
    grace = re.search(r"WORKER_STOP_GRACE_PERIOD:-(\d+)s", TEXT)
    assert grace
    assert int(grace[1]) > Settings.model_fields["jobs_stop_seconds"].default


@each_service
def test_a_container_can_do_little(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service or name == "postgres"
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    assert "/var/run/docker.sock" not in str(service)


@each_service
def test_a_container_has_limits(name: str) -> None:
    limits = SERVICES[name]["deploy"]["resources"]["limits"]
    assert {"cpus", "memory", "pids"} <= set(limits)
    assert SERVICES[name]["logging"]["options"].keys() == {"max-size", "max-file"}


@each_service
def test_a_container_comes_back(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"


@each_service
def test_ports_are_published_on_the_loopback_unless_told_otherwise(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("${BIND:-127.0.0.1}:")


@each_service
def test_whoever_waits_waits_for_health(name: str) -> None:
    for other, condition in SERVICES[name].get("depends_on", {}).items():
        assert condition["condition"] == "service_healthy"
        # Who is always started cannot insist on who is not.
        assert condition.get("required", True) != (
            not service_profiles(name) and bool(service_profiles(other))
        )
        assert "healthcheck" in SERVICES[other] or "build" in SERVICES[other], "the image brings its own"


@each_service
def test_what_is_kept_is_kept_in_named_volumes(name: str) -> None:
    for mount in SERVICES[name].get("volumes", []):
        source, target, *mode = mount.split(":")
        if source.startswith("."):
            assert mode == ["ro"], "files of the checkout are read only"
            assert (DEPLOY / source).exists()
        else:
            assert source in COMPOSE["volumes"]
        assert target.startswith("/")


@each_service
def test_images_have_a_tag_or_are_built_here(name: str) -> None:
    image = re.fullmatch(r"\$\{\w+:-(.+)\}", SERVICES[name]["image"])
    assert image, "can be replaced by a variable"
    assert "build" in SERVICES[name] or ":" in image[1]
    assert not image[1].endswith(":latest")


@pytest.mark.parametrize("content", [None, "", "secret"])
def test_grafana_does_not_start_without_its_password(content: str | None, tmp_path: Path) -> None:
    """It would take its default one."""
    shell, option, script = SERVICES["grafana"]["entrypoint"]
    variable = "GF_SECURITY_ADMIN_PASSWORD__FILE"
    assert SERVICES["grafana"]["environment"][variable].startswith("/run/secrets/")
    (tmp_path / "run.sh").write_text("#!/bin/sh\necho started\n")
    (tmp_path / "run.sh").chmod(0o755)
    password = tmp_path / "password"
    if content is not None:
        password.write_text(content)
    assert script.count("/run.sh") == 1
    words = (shell, option, script.replace("$$", "$").replace("/run.sh", str(tmp_path / "run.sh")))
    done = run(*words, env={variable: str(password), "PATH": os.environ["PATH"]})
    if content:
        assert (done.returncode, done.stdout) == (0, "started\n")
    else:
        assert (done.returncode, done.stdout) == (2, "")
        assert f"{variable}: {password} is missing or empty; deploy/secrets.sh makes it" in done.stderr


def test_no_password_is_in_the_file() -> None:
    for name, service in SERVICES.items():
        for variable, value in (service.get("environment") or {}).items():
            secret = re.search("PASSWORD|SECRET|TOKEN|DATABASE_URL", variable)
            assert not secret or str(value).startswith(("/run/secrets/", "${")), f"{name}: {variable}"
    for secret in COMPOSE["secrets"].values():
        assert secret["file"].startswith("./secrets/")


def test_secrets_that_are_mounted_are_those_that_are_made(tmp_path: Any) -> None:
    assert run("bash", DEPLOY / "secrets.sh", tmp_path).returncode == 0
    made = {path.name for path in tmp_path.iterdir()}
    named = {secret["file"].removeprefix("./secrets/") for secret in COMPOSE["secrets"].values()}
    assert named <= made
    assert {secret for service in SERVICES.values() for secret in service.get("secrets", [])} == set(
        COMPOSE["secrets"]
    )


@pytest.mark.parametrize("name", OWN)
def test_targets_that_are_built_are_in_the_dockerfile(name: str) -> None:
    target = SERVICES[name]["build"]["target"]
    assert re.search(rf"^FROM .* AS {target}$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", OWN)
def test_arguments_that_are_passed_are_in_the_dockerfile(name: str) -> None:
    for argument in SERVICES[name]["build"]["args"]:
        assert re.search(rf"^ARG {argument}(=|$)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def test_a_server_has_time_to_drain() -> None:
    grace = re.search(r"STOP_GRACE_PERIOD:-(\d+)s", TEXT)
    assert grace
    assert int(grace[1]) > Settings.model_fields["drain_seconds"].default + PARTING_SECONDS


def test_variables_of_containers_are_settings_of_the_server() -> None:
    for service in SERVICES.values():
        for variable in service.get("environment") or {}:
            if variable.startswith("FEWSTEP_"):
                assert (
                    variable.removeprefix("FEWSTEP_").removesuffix("_FILE").lower() in Settings.model_fields
                )


def test_targets_of_prometheus_are_services_on_their_ports() -> None:
    (job,) = [
        job
        for job in read_yaml(PROMETHEUS / "prometheus.yml")["scrape_configs"]
        if job["job_name"] == "fewstep"
    ]
    for group in job["static_configs"]:
        for target in group["targets"]:
            name, port = target.split(":")
            assert str(SERVICES[name]["environment"]["FEWSTEP_PORT"]) == port
            assert set(SERVICES[name]["networks"]) & set(SERVICES["prometheus"]["networks"])


def test_targets_of_ray_are_its_nodes_on_the_port_that_they_are_told() -> None:
    (job,) = [
        job for job in read_yaml(PROMETHEUS / "prometheus.yml")["scrape_configs"] if job["job_name"] == "ray"
    ]
    targets = [target for group in job["static_configs"] for target in group["targets"]]
    targets += [f"{name}:{found['port']}" for found in job["dns_sd_configs"] for name in found["names"]]
    assert {target.split(":")[0] for target in targets} == {
        name for name in SERVICES if name.startswith("ray-")
    }
    for target in targets:
        name, port = target.split(":")
        assert f"--metrics-export-port={port}" in SERVICES[name]["command"]


def test_every_variable_of_the_file_is_explained_with_its_default() -> None:
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", TEXT))
    arguments = set(COMPOSE["x-build"]["args"])
    explained = {name: default for name, (default, _) in SCRIPT.COMPOSE.items()}
    assert set(used) | arguments | {"COMPOSE_PROFILES"} == set(explained)
    assert used == {name: explained[name] for name in used}


def test_the_example_is_what_the_script_writes() -> None:
    assert SCRIPT.text() == EXAMPLE, "run deploy/env_example.py"


@pytest.mark.parametrize("name", sorted(set(Settings.model_fields) - {"host", "port", "data_dir"}))
def test_every_setting_is_in_the_example(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uncommented as it is, a line changes nothing."""
    (value,) = re.findall(rf"^#FEWSTEP_{name.upper()}=(.*)$", EXAMPLE, re.MULTILINE)
    before = getattr(Settings(), name)
    monkeypatch.setenv(f"FEWSTEP_{name.upper()}", value)
    assert getattr(Settings(), name) == before


def test_an_example_that_lacks_a_setting_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = dict(Settings.model_fields)
    fields["invented"] = fields["threads"]
    monkeypatch.setattr(SCRIPT.Settings, "__pydantic_fields__", fields)
    assert "#FEWSTEP_INVENTED=" in SCRIPT.text()
    assert SCRIPT.text() != EXAMPLE
