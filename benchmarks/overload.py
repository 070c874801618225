"""Twice as many requests as a server can serve: what is still served in time, how soon the rest is told, and memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from benchmarks.subjects import Running
from fewstep.bench.load import Client, open_loop
from fewstep.bench.report import summary

SLO_FACTOR = 5.0
PROMPTS = [f"a red circle left of a blue star, number {number}" for number in range(100_000)]
WARM_SECONDS = 10.0


FIXED, OPEN = {"num_inference_steps": 4}, {"quality": "auto"}
"""What requests ask for: four steps, or as many as there is time for."""


async def overload(
    server: Running, capacity: float, unloaded_ms: float, seconds: float, fields: dict[str, Any] = FIXED
) -> dict[str, Any]:
    """Poisson arrivals at twice `capacity`; each request's deadline is `SLO_FACTOR` times the unloaded latency."""
    slo_ms = SLO_FACTOR * unloaded_ms
    # The deadline is the server's own clock's; what the way there and back takes is left to it.
    client = Client(server.url, PROMPTS, {**fields, "deadline_ms": int(slo_ms)}, None)
    try:
        await open_loop(client.send, 2 * capacity, WARM_SECONDS, 1)
        memory = [server.megabytes()]
        watch = asyncio.create_task(_watch(server, memory))
        run = await open_loop(client.send, 2 * capacity, seconds, 2)
        watch.cancel()
    finally:
        await client.close()
    row = summary(run, slo_ms / 1000, 1)
    return {
        **row,
        "statuses": {
            str(status): count
            for status, count in sorted(Counter(each.status for each in run.answers).items())
        },
        "capacity": capacity,
        "slo_ms": round(slo_ms, 2),
        "goodput_share": round(row["goodput_images_per_second"] / capacity, 3),
        "megabytes": [round(value, 1) for value in memory],
        "megabytes_grown": round(memory[-1] - memory[0], 1),
    }


async def _watch(server: Running, memory: list[float]) -> None:
    while True:
        await asyncio.sleep(5)
        memory.append(server.megabytes())
