"""A server whose engine can be killed from outside: `python -m benchmarks.faulty DATA_DIR`, for `benchmarks.faults`.

SIGUSR1 kills the engine: every call fails until the server has loaded another one. SIGUSR2 hangs it: the call that is
running, or the next one, takes longer than a batch may. `GET /faults` counts what could leak.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import uvicorn

from engines.bundle import Bundle
from engines.runtime import Conditioning, Floats, Images, Runtime, load_runtime
from engines.store import find_bundle
from service.app import create_app
from service.logs import configure
from service.settings import Settings

BUNDLE = "shapes-sana-sid"
STALL_SECONDS, HANG_SECONDS = 3.0, 6.0


class Mortal:
    """An engine that can be killed and hung."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self.bundle, self.backend = runtime, runtime.bundle, runtime.backend
        self.dead, self.hang = threading.Event(), threading.Event()

    def encode(self, prompts: list[str]) -> Conditioning:
        self._alive()
        return self._runtime.encode(prompts)

    def velocity(self, x_BCHW: Floats, t_B: Floats, conditioning: Conditioning) -> Floats:
        self._alive()
        velocity = self._runtime.velocity(x_BCHW, t_B, conditioning)
        self._alive()  # a call that was running when the engine died brings nothing
        return velocity

    def decode(self, x0_BCHW: Floats) -> Images:
        self._alive()
        return self._runtime.decode(x0_BCHW)

    def _alive(self) -> None:
        if self.hang.is_set():
            self.hang.clear()
            time.sleep(HANG_SECONDS)
        if self.dead.is_set():
            raise RuntimeError("the engine is dead")


class Engines(Mapping[str, Runtime]):
    """The one model; each look gives an engine that has just been loaded."""

    def __init__(self) -> None:
        self.alive: Mortal | None = None
        self.loaded = 0

    def __getitem__(self, name: str) -> Runtime:
        bundle = Bundle.load(find_bundle(BUNDLE))
        self.alive = Mortal(load_runtime(bundle, "onnxruntime-cpu", 1))
        self.loaded += 1
        return self.alive

    def __contains__(self, name: object) -> bool:  # a mapping's own would load one
        return name == BUNDLE

    def __iter__(self) -> Iterator[str]:
        return iter([BUNDLE])

    def __len__(self) -> int:
        return 1

    def kill(self, *_: object) -> None:
        if self.alive is not None:
            self.alive.dead.set()

    def hang(self, *_: object) -> None:
        if self.alive is not None:
            self.alive.hang.set()


def main() -> None:
    configure("ERROR", "text")
    engines = Engines()
    app = create_app(
        Settings(data_dir=Path(sys.argv[1]), stall_seconds=STALL_SECONDS, queue_limit=64), engines
    )

    @app.get("/faults")
    async def faults() -> dict[str, Any]:
        return {
            "tasks": len(asyncio.all_tasks()),
            "threads": threading.active_count(),
            "megabytes": psutil.Process().memory_info().rss / 1e6,
            "files": psutil.Process().num_fds(),
            "loaded": engines.loaded,
        }

    signal.signal(signal.SIGUSR1, engines.kill)
    signal.signal(signal.SIGUSR2, engines.hang)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        print(listener.getsockname()[1], flush=True)
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=5)
        )
        server.run(sockets=[listener])


if __name__ == "__main__":
    main()
