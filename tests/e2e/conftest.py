"""The real server in a process of its own, on the shipped model, over a real socket."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from openai import OpenAI


@dataclass
class Server:
    """A running `fewstep serve`.

    Attributes:
        url: Its address.
        lines: What it printed until it was ready.
        seconds: From starting the process to the first `ready`.
    """

    process: subprocess.Popen[str]
    url: str
    lines: list[str]
    seconds: float

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0)

    def metrics(self) -> dict[str, float]:
        """Sample name with labels -> value."""
        lines = httpx.get(self.url + "/metrics").text.splitlines()
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
        }


def start_server(data_dir: Path, *arguments: str) -> Server:
    began = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "fewstep",
        "serve",
        "--port",
        "0",
        "--data-dir",
        str(data_dir),
        *arguments,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line.rstrip())
        found = re.search(r"curl (http://[\d.:]+)", line)
        if found:
            return Server(process, found[1], lines, time.monotonic() - began)
    raise AssertionError(f"the server ended with {process.wait()} after {lines}")


def stop_server(server: Server) -> int:
    server.process.send_signal(signal.SIGTERM)
    return server.process.wait(40)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start_server(tmp_path_factory.mktemp("data"))
    yield running
    assert stop_server(running) == 0
