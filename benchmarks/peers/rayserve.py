"""Ray Serve with `@serve.batch`: one replica, the batching decorator as its documentation has it."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from benchmarks.peers.work import BATCH, PORT, WAIT_SECONDS, Work


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
class Pictures:
    def __init__(self) -> None:
        self.work = Work()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_SECONDS)
    async def draw(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return await asyncio.to_thread(self.work, requests)

    async def __call__(self, request: Request) -> JSONResponse:
        if request.method == "GET":
            return JSONResponse({"ready": True})
        return JSONResponse(await self.draw(await request.json()))


if __name__ == "__main__":
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=200_000_000,
        log_to_driver=False,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT, "access_log": False})
    serve.run(Pictures.bind(), name="pictures", route_prefix="/")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()
    serve.shutdown()
    ray.shutdown()
