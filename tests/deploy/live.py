"""A real Prometheus on a loopback port, with the shipped configuration and other targets."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from .files import PROMETHEUS


@dataclass
class Live:
    """A running Prometheus."""

    client: httpx.Client

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The result of an instant query; fails with Prometheus' own words."""
        answer = self.client.get("/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", f"{query}: {answer['error']}"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def names(self) -> set[str]:
        """Of every series that it has."""
        return set(self.client.get("/api/v1/label/__name__/values").json()["data"])

    def wait_for(self, query: str, seconds: float = 60) -> list[dict[str, Any]]:
        deadline = time.monotonic() + seconds
        while not (found := self.ask(query)):
            assert time.monotonic() < deadline, f"no result within {seconds} s: {query}"
            time.sleep(0.2)
        return found


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, str]) -> Iterator[Live]:
    """
    Args:
        folder: For configuration and data.
        targets: Address in the shipped configuration -> address to scrape in its place.
    """
    shutil.copytree(PROMETHEUS, folder / "etc")
    config = yaml.safe_load((folder / "etc" / "prometheus.yml").read_text())
    port = free_port()
    own = {"127.0.0.1:9090": f"127.0.0.1:{port}"}
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job in config["scrape_configs"]:
        for group in job.get("static_configs", []):
            group["targets"] = [(own | dict(targets)).get(name, "127.0.0.1:1") for name in group["targets"]]
    (folder / "etc" / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        "prometheus",
        f"--config.file={folder / 'etc' / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                _wait_until_ready(client, process, folder / "log")
                yield Live(client)
        finally:
            process.terminate()


def _wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            if client.get("/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
