"""Servers for tests: real sockets, a fake runtime."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import uvicorn

from engines.runtime.base import Runtime
from service.app import create_app
from service.protocol import Protocol
from service.settings import Settings


@dataclass
class Running:
    """A server on a loopback port, in a thread of this process."""

    url: str
    client: httpx.Client
    server: uvicorn.Server

    def generate(self, **body: object) -> httpx.Response:
        return self.client.post("/v1/images/generations", json={"prompt": "a red circle", **body})

    def metric(self, name: str, **labels: str) -> float:
        """One sample, or the sum of those that match."""
        total = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            head, _, value = line.rpartition(" ")
            if head.split("{")[0] == name and all(f'{key}="{text}"' in head for key, text in labels.items()):
                total += float(value)
        return total


@contextmanager
def run_server(
    settings: Settings,
    runtimes: Mapping[str, Runtime] | None,
    ready: bool = True,
    workers: bool = False,
    port: int = 0,
    protocol: type[Protocol] = Protocol,
) -> Iterator[Running]:
    """With `workers` it runs the jobs that it takes on; on port 0 it listens on a free one."""
    settings = settings.model_copy(update={"jobs_workers": workers})
    config = uvicorn.Config(
        create_app(settings, runtimes),
        http=protocol,
        ws="none",
        port=port,
        log_config=None,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=30) as client:
            wait_until(lambda: not ready or client.get("/health/ready").status_code == 200)
            yield Running(url, client, server)
    finally:
        server.should_exit = True
        thread.join(15)
    assert not thread.is_alive()


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.005)
