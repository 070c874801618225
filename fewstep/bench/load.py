"""Load on a server: closed loop, where each caller waits for its answer, and open loop, where none does."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from service.errors import ServiceError

from .http import Http
from .scrape import Reading, read

ROUTE = "/v1/images/generations"
LONGEST_ANSWER = 600.0


@dataclass(frozen=True)
class Answer:
    """One request, as its caller saw it.

    Attributes:
        seconds: From when it was due to the last byte of its answer.
        status: HTTP status; 0 when there was no answer.
        steps: What was used; 0 without a picture.
        phases: Milliseconds by phase, from `Server-Timing`.
    """

    seconds: float
    status: int
    steps: int
    phases: dict[str, float]


@dataclass(frozen=True)
class Run:
    """All requests of one setting: `seconds` from the first request to the last answer."""

    kind: str
    setting: float
    seconds: float
    answers: list[Answer]


Send = Callable[[float], Awaitable[Answer]]
"""Sends one request that was due at a time on the clock of `time.perf_counter`."""


async def closed_loop(send: Send, concurrency: int, seconds: float) -> Run:
    """`concurrency` callers, each with one request after another."""
    began, answers = time.perf_counter(), list[Answer]()

    async def caller() -> None:
        while time.perf_counter() < began + seconds:
            answers.append(await send(time.perf_counter()))

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return Run("closed", concurrency, time.perf_counter() - began, answers)


async def open_loop(send: Send, rate: float, seconds: float, seed: int) -> Run:
    """Poisson arrivals, `rate` a second, whatever the server does; lateness of the sender counts."""
    began, sent = time.perf_counter(), list[asyncio.Task[Answer]]()
    async for due in _arrivals(began, rate, seconds, seed):
        sent.append(asyncio.ensure_future(send(due)))
    answers = list(await asyncio.gather(*sent))
    return Run("open", rate, time.perf_counter() - began, answers)


async def _arrivals(began: float, rate: float, seconds: float, seed: int) -> AsyncIterator[float]:
    due, chance = began, random.Random(seed)
    while (due := due + chance.expovariate(rate)) < began + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        yield due


class Client:
    """Sends generation requests; prompts and seeds are different each time, in a repeatable order."""

    def __init__(self, url: str, prompts: list[str], fields: dict[str, Any], key: str | None) -> None:
        """
        Args:
            fields: Of every request body, beside prompt and seed.

        Raises:
            ServiceError: the URL is not that of a server.
        """
        self._url, self._prompts, self._fields, self._count = url, prompts, fields, 0
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = Http(url, {**headers, "Content-Type": "application/json"}, LONGEST_ANSWER)

    async def send(self, due: float) -> Answer:
        number, self._count = self._count, self._count + 1
        body = {"prompt": self._prompts[number % len(self._prompts)], "seed": number, **self._fields}
        try:
            reply = await self._http.request("POST", ROUTE, json.dumps(body).encode())
        except OSError:
            return Answer(time.perf_counter() - due, 0, 0, {})
        seconds = time.perf_counter() - due
        steps = json.loads(reply.body)["num_inference_steps"] if reply.status == 200 else 0
        return Answer(seconds, reply.status, steps, _phases(reply.headers.get("server-timing", "")))

    async def counted(self) -> Reading:
        """What the server has counted so far; nothing if it does not say."""
        try:
            reply = await self._http.request("GET", "/metrics", headers={"Accept": "text/plain"})
            return read(reply.body.decode()) if reply.status == 200 else {}
        except (OSError, ValueError):  # no answer, or another server's page of that name
            return {}

    async def check(self) -> None:
        """
        Raises:
            ServiceError: the server is not there, or refuses the request.
        """
        answer = await self.send(time.perf_counter())
        if answer.status != 200:
            told = f"answers {answer.status}" if answer.status else "does not answer"
            raise ServiceError(f"{self._url} {told}; expected the address of a ready server")

    async def close(self) -> None:
        await self._http.close()


def _phases(header: str) -> dict[str, float]:
    parts = [part.strip().split(";dur=") for part in header.split(",") if ";dur=" in part]
    return {name: float(milliseconds) for name, milliseconds in parts}
