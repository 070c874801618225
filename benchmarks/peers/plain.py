"""A plain FastAPI endpoint: each request alone, in the thread pool, one at a time in the engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from benchmarks.peers.work import PORT, Work


class Request(BaseModel):
    prompt: str
    seed: int


def serve(answer: Callable[[Request], dict[str, Any]]) -> None:
    app, engine = FastAPI(), threading.Lock()

    @app.get("/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/v1/images/generations")
    def generations(request: Request) -> dict[str, Any]:
        with engine:  # two calls at once are slower than one after the other on one core
            return answer(request)

    uvicorn.run(app, host="127.0.0.1", port=PORT, access_log=False)


if __name__ == "__main__":
    work = Work()
    serve(lambda request: work([request.model_dump()])[0])
