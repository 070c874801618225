"""The program that is the head of a Ray cluster in a container."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from .files import DEPLOY, ROOT, load_script, read_yaml, run
from .live import free_port

SERVE = read_yaml(DEPLOY / "ray" / "serve.yaml")
HEAD = DEPLOY / "image" / "ray_head.py"


@pytest.fixture(scope="module")
def head() -> Any:
    pytest.importorskip("ray.serve", reason="needs the extra `ray`")
    return load_script(HEAD)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("applications: [{name: a, import_path: x:y, args: {settings: {queue_limit: 0}}}]", "queue_limit"),
        (
            "applications: [{name: a, import_path: x:y, args: {settings: {queu_limit: 3}}}]",
            "FEWSTEP_QUEUE_LIMIT",
        ),
        ("applications: 3", "applications"),
        ("a: [", "expected"),
        ("", "ServeDeploySchema"),
        (None, "No such file"),
    ],
)
def test_a_wrong_file_ends_it_before_ray_is_started(
    head: Any, tmp_path: Path, content: str | None, words: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(head.subprocess, "run", lambda *_, **__: pytest.fail("something was started"))
    file = tmp_path / "serve.yaml"
    if content is not None:
        file.write_text(content)
    assert head.main([str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fewstep-ray-head: {file}: ")
    assert words in line


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "No such file or directory"), ("", "it is empty"), (" \n", "it is empty")]
)
def test_a_lost_token_ends_it_before_ray_is_started(
    head: Any, tmp_path: Path, content: str | None, reason: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(head.subprocess, "run", lambda *_, **__: pytest.fail("something was started"))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    token = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    if content is not None:
        token.write_text(content)
    assert head.main([str(DEPLOY / "ray" / "serve.yaml")]) == 2
    wanted = "a file with the cluster's token is wanted"
    assert capsys.readouterr().err == f"fewstep-ray-head: RAY_AUTH_TOKEN_PATH: {token}: {reason}; {wanted}\n"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN_PATH": "/none"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t"},
    ],
)
def test_a_token_that_is_not_needed_or_given_otherwise_is_not_missed(
    head: Any, environment: dict[str, str]
) -> None:
    assert head.lost_token(environment) == ""


def test_without_a_file_it_says_how_it_is_called(head: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert head.main([]) == 2
    assert "usage: fewstep-ray-head FILE" in capsys.readouterr().err


def test_a_ray_that_does_not_start_is_named(
    head: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "ray").write_text("#!/bin/sh\nexit 7\n")
    (tmp_path / "ray").chmod(0o755)
    assert head.main([str(DEPLOY / "ray" / "serve.yaml"), "--port=1"]) == 1
    assert capsys.readouterr().err == "fewstep-ray-head: ray start --head --port=1 ended with 7\n"


class Told:
    """Stands for Ray: each question is answered with what is next in the list."""

    def __init__(self, *answers: dict[str, tuple[str, str]] | Exception) -> None:
        self.answers = list(answers)

    def get_serve_details(self) -> dict[str, Any]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        states = {name: {"status": status, "message": why} for name, (status, why) in answer.items()}
        return {"applications": states}


def watched(head: Any, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> str:
    monkeypatch.setattr(head.time, "sleep", lambda _: None)
    reason: str = head.watch(Told(*answers))
    return reason


def test_a_failed_application_ends_it_with_its_reason(
    head: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    why = "Deploying failed:\n  File x, line 1\n service.errors.ServiceError: no bundle 'x'\nThe deployment failed"
    reason = watched(
        head,
        monkeypatch,
        {},
        {"fewstep": ("DEPLOYING", "")},
        {"fewstep": ("RUNNING", "")},
        {"fewstep": ("RUNNING", "")},
        {"fewstep": ("DEPLOY_FAILED", why)},
    )
    assert reason == "fewstep: service.errors.ServiceError: no bundle 'x'"
    assert capsys.readouterr().out == "running: fewstep\n"


def test_a_cluster_that_answers_again_is_not_lost(head: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = ConnectionError("gone")
    fine = {"fewstep": ("RUNNING", "")}
    assert watched(head, monkeypatch, fine, gone, gone, fine, gone, gone, ConnectionError("for good")) == (
        "the cluster does not answer: for good"
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_serves_wants_the_token_takes_jobs_and_ends_when_told(tmp_path: Path) -> None:
    """A real cluster of one node: a picture, a stranger, a job by Ray's client, the alerts' metrics, SIGTERM."""
    pytest.importorskip("ray.serve", reason="needs the extra `ray`")
    serving, gcs, dashboard, metrics = (free_port() for _ in range(4))
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(SERVE | {"http_options": {"host": "127.0.0.1", "port": serving}}))
    (tmp_path / "token").write_text("b" * 32)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
        "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_worker_niceness": "0",
        "RAY_raylet_start_wait_time_s": "300",
        "FEWSTEP_DATA_DIR": str(tmp_path / "data"),
    }
    words = [
        f"--port={gcs}",
        f"--dashboard-port={dashboard}",
        f"--metrics-export-port={metrics}",
        "--num-cpus=3",
    ]
    # Ray takes 127.0.0.1 for the machine's outer address.
    words += ["--node-ip-address=127.0.0.2", "--dashboard-host=127.0.0.1", "--disable-usage-stats"]
    words += ["--object-store-memory=100000000", "--dashboard-agent-listen-port", str(free_port())]
    command = [sys.executable, HEAD, file, *words]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: "running: fewstep" in (tmp_path / "log").read_text(), process, tmp_path / "log")
        url, board = f"http://127.0.0.1:{serving}", f"http://127.0.0.1:{dashboard}"
        drawn = httpx.post(f"{url}/v1/images/generations", json={"prompt": "a red circle"}, timeout=120)
        assert drawn.status_code == 200, drawn.text
        assert httpx.get(f"{board}/api/jobs/", timeout=60).status_code == 401, "no token"
        told = run("ray", "job", "submit", "--address", board, "--", "fewstep", "--help", env=environment)
        assert told.returncode == 0, told.stdout + told.stderr
        assert "usage: fewstep" in told.stdout, "the job's own words"
        named = {"ray_serve_application_status", "ray_serve_deployment_replica_healthy"}
        named |= {"ray_serve_autoscaling_target_replicas"}
        wait_for(lambda: all(name in scraped(metrics) for name in named), process, tmp_path / "log")
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0, (tmp_path / "log").read_text()[-2000:]
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # Ray's processes are of its group


def scraped(port: int) -> str:
    return httpx.get(f"http://127.0.0.2:{port}/metrics", timeout=60).text


def wait_for(condition: Any, process: subprocess.Popen[bytes], log: Path, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.5)
