"""`serve` as a process: start-up errors, the announcement, signals, and what is not imported."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx
import pytest

from engines.runtime.base import Floats, Images
from service.errors import ServiceError
from service.metrics import Metrics
from service.models import Models
from service.server import _announce, listen, serve
from service.settings import Settings, read_settings

from .fake_runtime import FakeRuntime
from .running import wait_until

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
import service.bundles
import service.server
from fake_runtime import FakeRuntime, make_bundle
from service.server import serve
from service.settings import Settings

runtime = FakeRuntime(make_bundle((1,), ((64, 64),)), call_seconds=float(sys.argv[1]))
service.bundles.Bundle.load = classmethod(lambda cls, path: runtime.bundle)
service.bundles.find_bundle = lambda name, store: name
service.bundles.load_runtime = lambda bundle, backend, threads: runtime
service.server.PARTING_SECONDS = 1
sys.exit(serve(Settings(port=0, drain_seconds=float(sys.argv[2]))))
"""


@contextmanager
def server_process(
    data_dir: Path, call_seconds: float, drain_seconds: float
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server in a process of its own, and its address."""
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
        "FEWSTEP_DATA_DIR": str(data_dir),
        "FEWSTEP_MODELS": "fake=anywhere",
    }
    command = [sys.executable, "-c", PROGRAM, str(call_seconds), str(drain_seconds)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"fewstep serves fake at (http://127\.0\.0\.1:\d+) \(ready in", line)
            assert found, line
            assert process.stdout.readline().strip().startswith(f"curl {found[1]}/v1/images/generations")
            yield found[1], process
        finally:
            process.kill()


def post(url: str, **fields: object) -> httpx.Response:
    return httpx.post(f"{url}/v1/images/generations", json={"prompt": "a", **fields}, timeout=30)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_lets_admitted_work_finish(tmp_path: Path, number: int) -> None:
    with (
        server_process(tmp_path, call_seconds=0.3, drain_seconds=20) as (url, process),
        ThreadPoolExecutor(8) as pool,
    ):
        answers = [pool.submit(post, url, n=2, num_inference_steps=1) for _ in range(4)]
        wait_until(lambda: 'fewstep_inflight_images{model="fake"} 8.0' in httpx.get(f"{url}/metrics").text)
        process.send_signal(number)
        wait_until(lambda: httpx.get(f"{url}/health/ready").status_code == 503)
        late = post(url)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "shutting_down")
        assert [answer.result().status_code for answer in answers] == [200] * 4
        assert process.wait(10) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)


@pytest.mark.slow
def test_what_does_not_finish_in_time_gets_an_error(tmp_path: Path) -> None:
    with (
        server_process(tmp_path, call_seconds=0.2, drain_seconds=0.2) as (url, process),
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(post, url, n=10)
        wait_until(lambda: 'fewstep_inflight_images{model="fake"} 10.0' in httpx.get(f"{url}/metrics").text)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        response = answer.result()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
        assert process.wait(10) == 0
        assert time.monotonic() - started < 5


@pytest.mark.slow
def test_a_second_signal_cuts_the_drain_short(tmp_path: Path) -> None:
    with (
        server_process(tmp_path, call_seconds=0.2, drain_seconds=60) as (url, process),
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(post, url, n=10)
        wait_until(lambda: 'fewstep_inflight_images{model="fake"} 10.0' in httpx.get(f"{url}/metrics").text)
        process.send_signal(signal.SIGINT)
        wait_until(lambda: httpx.get(f"{url}/health/ready").status_code == 503)
        process.send_signal(signal.SIGINT)
        assert answer.result().status_code == 503
        assert process.wait(10) == 0


def test_a_client_that_never_ends_its_request_does_not_hold_the_server(tmp_path: Path) -> None:
    with server_process(tmp_path, call_seconds=0.01, drain_seconds=30) as (url, process):
        address = httpx.URL(url)
        with socket.create_connection((address.host, address.port), 10) as slow:
            head = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
            slow.sendall(head + b"half a")
            assert post(url, num_inference_steps=1).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ServiceError, match=rf"cannot listen on 127.0.0.1:{port}: .*in use.*another port \(FEWSTEP_PORT;"
        ):
            serve(Settings(port=port, data_dir=tmp_path))


def test_answers_are_not_held_back_by_nagle() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_bad_bundle(tmp_path: Path) -> None:
    with pytest.raises(
        ServiceError, match=r"model m: no bundle 'nowhere': give .*\(FEWSTEP_MODELS: what is served"
    ):
        serve(Settings(port=0, data_dir=tmp_path, models={"m": "nowhere"}))


def test_bundle_that_cannot_draw(tmp_path: Path, settings: Settings) -> None:
    class Broken(FakeRuntime):
        def decode(self, x0_BCHW: Floats) -> Images:
            raise RuntimeError("out of memory")

    async def load() -> None:
        models = Models(settings, Metrics(), {"m": Broken()})
        with pytest.raises(ServiceError, match="m was loaded and cannot draw: out of memory"):
            await models.start()
        assert models.status == "failed"

    asyncio.run(load())


def test_a_failed_start_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ServiceError, match="model a"):
        serve(read_settings(models=[f"a={tmp_path}"], data_dir=tmp_path, port=0))
    assert [record for record in caplog.records if "loading failed" in record.getMessage()] == []


def test_host_of_another_machine(tmp_path: Path) -> None:
    with pytest.raises(
        ServiceError, match=r"cannot listen on 192\.0\.2\.1:0: Cannot assign.*FEWSTEP_HOST is"
    ):
        serve(Settings(host="192.0.2.1", port=0, data_dir=tmp_path))


def test_data_dir_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="FEWSTEP_DATA_DIR"):
        serve(Settings(port=0, data_dir=tmp_path / "file"))


@pytest.mark.parametrize("locked", [False, True])
def test_the_printed_command_has_a_place_for_a_key(locked: bool, capsys: pytest.CaptureFixture[str]) -> None:
    models = cast(Models, SimpleNamespace(catalogue=SimpleNamespace(names=["fake"])))
    with listen("127.0.0.1", 0) as listener:
        _announce(models, listener, 1.0, locked)
    curl = capsys.readouterr().out.splitlines()[1]
    assert ("-H 'Authorization: Bearer KEY'" in curl) == locked
    assert curl.count("-H '") == 1 + locked


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_PORT", "9000")
    monkeypatch.setenv("FEWSTEP_MODELS", "a=/bundles/a, /bundles/b,c=shapes")
    settings = read_settings(queue_limit=5)
    assert (settings.port, settings.queue_limit) == (9000, 5)
    assert settings.models == {"a": "/bundles/a", "b": "/bundles/b", "c": "shapes"}
    monkeypatch.setenv("FEWSTEP_MODELS", '{"x": "y"}')
    assert read_settings().models == {"x": "y"}
    assert read_settings(models=["m=n", "/bundles/o"]).models == {"m": "n", "o": "/bundles/o"}
    monkeypatch.setenv("FEWSTEP_PORT", "")
    assert read_settings().port == 8000


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "99999"),
        ("QUEUE_LIMIT", "0"),
        ("LOG_LEVEL", "loud"),
        ("MODELS", "a="),
        ("MODELS", "a=x,a=y"),
        ("MODELS", "{oops"),
        ("MODELS", "мод=x"),
        ("MODELS", '{"a b": "x"}'),
        ("MODELS", "a@1=x"),
        ("MODELS", "/bundles/my own"),
    ],
)
def test_bad_settings_name_themselves(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(f"FEWSTEP_{variable}", value)
    with pytest.raises(ServiceError, match=f"FEWSTEP_{variable}"):
        read_settings()


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_serving_imports_no_training_library() -> None:
    heavy = ("torch", "diffusers", "transformers", "distill")
    program = f"import service.server, sys; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
