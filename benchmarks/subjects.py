"""The servers that `benchmarks.serving` compares: how each is started, awaited, watched and ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

READY_SECONDS = 120.0
FEWSTEP = "fewstep"
PEERS = ("plain", "lit", "bento", "rayserve")
STOCK = ("teacher", "student")
"""Pipelines of stock diffusers."""


@dataclass(frozen=True)
class Pythons:
    """Interpreters: BentoML's requirements do not go together with those of the others."""

    own: str = sys.executable
    peers: str = sys.executable
    bento: str = sys.executable

    def of(self, name: str) -> str:
        if name in (FEWSTEP, *STOCK):
            return self.own
        return self.bento if name == "bento" else self.peers


@dataclass
class Running:
    """A server that answers, with all its processes."""

    name: str
    url: str
    process: psutil.Process

    def megabytes(self) -> float:
        """Resident memory of the server and its children."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(each.memory_info().rss for each in family) / 1e6


@contextmanager
def running(name: str, pythons: Pythons, threads: int, batch: int, *flags: str) -> Iterator[Running]:
    """
    Raises:
        RuntimeError: it ended or did not answer in time; shows the end of its log.
    """
    port = _free_port()
    settings = {"PEER_PORT": str(port), "PEER_THREADS": str(threads), "PEER_BATCH": str(batch)}
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "BENTOML_DO_NOT_TRACK": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="fewstep-bench-") as folder, tempfile.TemporaryFile() as log:
        command = _command(name, pythons.of(name), port, threads, Path(folder), flags)
        environment = {**os.environ, **settings, **quiet, "PYTHONPATH": os.getcwd(), "BENTOML_HOME": folder}
        process = psutil.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            url = f"http://127.0.0.1:{port}"
            if not _answers(url, process):
                log.seek(0)
                raise RuntimeError(f"{name} did not start: {log.read()[-2000:].decode(errors='replace')}")
            yield Running(name, url, process)
        finally:
            _end(process)


def _command(
    name: str, python: str, port: int, threads: int, folder: Path, flags: tuple[str, ...]
) -> list[str]:
    if name == FEWSTEP:
        where = ["--port", str(port), "--data-dir", str(folder), "--threads", str(threads)]
        return [python, "-m", "fewstep", "serve", *where, "--log-level", "warning", *flags]
    if name == "bento":
        where = ["--host", "127.0.0.1", "--port", str(port)]
        return [python, "-m", "bentoml", "serve", "benchmarks.peers.bento:Pictures", *where]
    if name in STOCK:
        return [python, "-m", "benchmarks.peers.stock", name]
    return [python, "-m", f"benchmarks.peers.{name}"]


def _answers(url: str, process: psutil.Popen) -> bool:
    """Whether it draws before the time is over."""
    body, deadline = {"prompt": "a red circle", "seed": 0}, time.monotonic() + READY_SECONDS
    with httpx.Client(trust_env=False, timeout=30) as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if client.post(f"{url}/v1/images/generations", json=body).status_code == 200:
                    return True
            except httpx.HTTPError:
                pass  # not there yet, which is what is being asked
            time.sleep(0.1)
    return False


def _end(process: psutil.Popen) -> None:
    """The server and whatever it started, which Ray does not all end by itself."""
    if process.poll() is not None:
        return
    family = [process, *process.children(recursive=True)]
    process.send_signal(signal.SIGTERM)
    psutil.wait_procs([process], timeout=20)
    for each in psutil.wait_procs(family, timeout=3)[1]:
        each.kill()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
