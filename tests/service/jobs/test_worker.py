"""`fewstep worker` and a server that wants keys: which key will do is known before a job has run."""

from __future__ import annotations

import inspect
import logging
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import service.worker
from fewstep.cli import main
from fewstep.serve import OF_WORKER
from service.errors import ServiceError
from service.jobs import plans, room, workers
from service.jobs.publish import Remote
from service.keys import add_key
from service.settings import Settings
from service.worker import _server

from ..fake_runtime import FakeRuntime
from ..running import Running, run_server
from .test_conclude import SHIPPED

WAIT = 60.0


def test_a_worker_has_a_flag_for_each_setting_that_it_reads_and_for_no_other() -> None:
    readers = (
        service.worker,
        workers,
        plans,
        room.database_url,
        Settings.store,
        Settings.jobs_folder,
        Settings.artifacts,
    )
    sources = [inspect.getsource(getattr(one, "fget", None) or one) for one in readers]
    read = set(re.findall(r"\b(?:settings|self)\.(\w+)", "\n".join(sources))) & set(Settings.model_fields)
    assert set(OF_WORKER) == read - {"max_file_bytes"}, "a worker takes no files in"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.jsonl"


@pytest.fixture(scope="module")
def admin(keys: Path) -> str:
    return add_key(keys, "worker", admin=True)


@pytest.fixture(scope="module")
def plain(keys: Path) -> str:
    return add_key(keys, "alice", jobs=True)


@pytest.fixture(scope="module")
def guarded(
    keys: Path, admin: str, plain: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), log_level="warning", api_keys=keys)
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        yield running


def test_an_administrators_key_publishes(guarded: Running, admin: str) -> None:
    remote = Remote(guarded.url, admin)
    remote.check()
    version = remote.publish("small", SHIPPED, 1.0, "job 1", {"job": "1"})
    assert (version["state"], version["gate"]) == ("serving", {"job": "1"})
    assert [one["id"] for one in remote.versions("small")] == [version["id"]]
    assert remote.versions("unknown") == []


def test_another_key_is_refused_before_anything_has_run(guarded: Running, plain: str) -> None:
    for key, status in ((None, 401), ("fs-wrong", 401), (plain, 403)):
        with pytest.raises(ServiceError) as raised:
            Remote(guarded.url, key).check()
        assert raised.value.status == status


def test_a_check_changes_nothing(guarded: Running, admin: str) -> None:
    headers = {"Authorization": f"Bearer {admin}"}
    before = guarded.client.get("/v1/models", headers=headers).json()
    Remote(guarded.url, admin).check()
    assert guarded.client.get("/v1/models", headers=headers).json() == before


def test_a_worker_with_a_key_that_will_not_do_says_so_and_ends(
    guarded: Running, plain: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["worker", "--jobs-server", guarded.url, "--data-dir", str(tmp_path), "--jobs-server-key", plain]
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    level = logging.getLogger().level
    try:
        assert main(words) == 2
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers):
            signal.signal(number, handler)
        logging.getLogger().setLevel(level)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "needs the key of an administrator" in line
    assert "FEWSTEP_JOBS_SERVER_KEY" in line
    assert plain not in line


def test_a_worker_that_cannot_write_says_so_and_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "jobs").write_text("a file")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    level = logging.getLogger().level
    try:
        assert main(["worker", "--jobs-server", "http://127.0.0.1:9", "--data-dir", str(tmp_path)]) == 2
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers):
            signal.signal(number, handler)
        logging.getLogger().setLevel(level)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"cannot keep jobs in {tmp_path / 'jobs'}: File exists; set FEWSTEP_DATA_DIR" in line


def worker(data: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fewstep", "worker", "--data-dir", str(data), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_key_may_lie_in_a_file_as_secrets_do(
    guarded: Running, admin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"{admin}\n")
    monkeypatch.setenv("FEWSTEP_JOBS_SERVER_KEY_FILE", str(secret))
    started = worker(tmp_path / "data", "--jobs-server", guarded.url)
    try:
        assert started.stdout is not None
        assert started.stdout.readline() == f"fewstep runs jobs and publishes on {guarded.url}\n"
    finally:
        started.send_signal(signal.SIGTERM)
        _, said = started.communicate(timeout=WAIT)
    assert started.returncode == 0
    assert "does not answer" not in said


def test_a_server_that_is_not_there_yet_is_no_reason_to_wait(tmp_path: Path) -> None:
    started = worker(tmp_path / "data", "--jobs-server", "http://127.0.0.1:9")
    try:
        assert started.stdout is not None
        assert started.stdout.readline() == "fewstep runs jobs and publishes on http://127.0.0.1:9\n"
    finally:
        started.send_signal(signal.SIGTERM)
        _, said = started.communicate(timeout=WAIT)
    assert started.returncode == 0
    assert "http://127.0.0.1:9 does not answer" in said
    assert "nothing can be published as long as that is so" in said


def test_a_server_without_keys_on_another_machine_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its jobs that publish nothing can still be run."""
    monkeypatch.setattr("service.keys._is_loopback", lambda host: False)
    settings = Settings(data_dir=tmp_path, log_level="warning")
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        _server(settings.model_copy(update={"jobs_server": running.url}))
    assert "--open-admin" in caplog.text
