"""`fewstep serve`: binds, loads, announces, serves, drains."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from . import logs
from .app import create_app
from .errors import ServiceError
from .models import Models
from .protocol import Protocol
from .settings import Settings, reachable
from .tracing import export_spans

BACKLOG = 2048
SWITCH_SECONDS = 0.0005
"""A phase may keep the event loop from the interpreter for this long at a time, a tenth of Python's default."""
PARTING_SECONDS = 5
"""After the drain, when all pictures are made: for the last answers to leave."""


def serve(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT and returns 0 when everything admitted has been answered.

    Raises:
        ServiceError: the address cannot be used, or a model cannot be served.
    """
    logs.configure(settings.log_level.upper(), settings.log_format)
    export_spans()
    with listen(settings.host, settings.port) as listener:
        sys.setswitchinterval(SWITCH_SECONDS)
        with asyncio.Runner(
            loop_factory=uvicorn.Config(app="", log_config=None).get_loop_factory()
        ) as runner:
            runner.run(_serve(settings, listener))
    return 0


def listen(host: str, port: int) -> socket.socket:
    """
    Raises:
        ServiceError: the port is taken, or the host is not one of this machine's.
    """
    # Asked for as TCP: asyncio turns Nagle's algorithm off only on sockets that say so, and with it
    # on, every answer over a kept-alive connection is 40 ms late.
    listener = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        return listener
    except OSError as error:
        if listener is not None:
            listener.close()
        taken = error.errno == errno.EADDRINUSE
        advice = (
            "stop what uses it or choose another port (FEWSTEP_PORT; 0 picks a free one)"
            if taken
            else "FEWSTEP_HOST is an address of this machine, or 0.0.0.0 for all of them"
        )
        raise ServiceError(f"cannot listen on {host}:{port}: {error.strerror}; {advice}") from error


async def _serve(settings: Settings, listener: socket.socket) -> None:
    started = time.perf_counter()
    app = create_app(settings)
    models: Models = app.state.service.models
    loading, stop = models.start(), asyncio.Event()
    server = _Server(_config(app), _on_signal(models, stop))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({loading, serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            _check(loading)
            locked = settings.api_keys is not None
            _announce(models, listener, time.perf_counter() - started, locked)
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        # Still listening, so that a load balancer sees /health/ready turn and late requests get a 503.
        app.state.service.jobs.wind_down()
        await app.state.service.batches.stop()
        await models.drain(settings.drain_seconds)
        server.should_exit = True
        await serving
        stopping.cancel()


def _check(loading: asyncio.Future[None]) -> None:
    """
    Raises:
        ServiceError: a model cannot be served; names the settings.
    """
    try:
        loading.result()
    except ServiceError as error:
        raise ServiceError(f"{error} (FEWSTEP_MODELS: what is served, FEWSTEP_BACKEND: on what)") from error


class _Server(uvicorn.Server):
    """Leaves what a signal does to `on_signal`; uvicorn itself would stop listening at once."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_signal = on_signal

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_signal()


def _on_signal(models: Models, stop: asyncio.Event) -> Callable[[], None]:
    loop = asyncio.get_running_loop()

    def react() -> None:
        if stop.is_set():
            models.hurry()
        stop.set()

    def on_signal() -> None:
        loop.call_soon_threadsafe(react)

    return on_signal


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=PARTING_SECONDS,
    )


def _announce(models: Models, listener: socket.socket, seconds: float, locked: bool) -> None:
    host, port = listener.getsockname()[:2]
    host = reachable(host)
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    body = json.dumps({"prompt": "a red circle on a white background", "response_format": "url"})
    key = "-H 'Authorization: Bearer KEY' " if locked else ""
    curl = f"curl {address}/v1/images/generations {key}-H 'Content-Type: application/json' -d '{body}'"
    print(
        f"fewstep serves {', '.join(models.catalogue.names)} at {address} (ready in {seconds:.1f} s)\n  {curl}",
        flush=True,
    )
