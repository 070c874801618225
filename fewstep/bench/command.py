"""`fewstep bench`: load on a running server, and what it came to."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any

from .load import Client, Run, closed_loop, open_loop
from .report import as_table, summary

COLOURS, SHAPES = ("red", "green", "blue", "yellow"), ("circle", "square", "triangle", "star")
PROMPTS = [f"a {colour} {shape} on a white background" for colour in COLOURS for shape in SHAPES]
DEFAULT_CONCURRENCY = (1, 2, 4, 8, 16)


def bench(options: argparse.Namespace) -> int:
    """Runs each setting after the other; 1 when requests failed (those shed have not)."""
    rows = asyncio.run(_bench(options))
    print(json.dumps(rows, indent=2) if options.json else as_table(rows))
    return 1 if any(row["failed"] for row in rows) else 0


async def _bench(options: argparse.Namespace) -> list[dict[str, Any]]:
    client = Client(options.url.rstrip("/"), PROMPTS, _fields(options), options.api_key)
    try:
        await client.check()
        if options.warm_up:
            await closed_loop(client.send, 1, options.warm_up)
        return [
            summary(run, options.slo_ms and options.slo_ms / 1000, options.n)
            for run in [await _run(client, options, kind, value) for kind, value in _settings(options)]
        ]
    finally:
        await client.close()


async def _run(client: Client, options: argparse.Namespace, kind: str, value: float) -> Run:
    name = f"{value:g} requests/s" if kind == "open" else f"{value:g} callers"
    print(f"{name} for {options.seconds:g} s", file=sys.stderr, flush=True)
    if kind == "open":
        return await open_loop(client.send, value, options.seconds, options.seed)
    return await closed_loop(client.send, int(value), options.seconds)


def _settings(options: argparse.Namespace) -> list[tuple[str, float]]:
    callers = options.concurrency or ([] if options.rate else DEFAULT_CONCURRENCY)
    return [("closed", value) for value in callers] + [("open", value) for value in options.rate or []]


def _fields(options: argparse.Namespace) -> dict[str, Any]:
    fields = {
        "model": options.model,
        "n": options.n,
        "num_inference_steps": options.steps,
        "quality": options.quality,
        "deadline_ms": options.deadline_ms,
    }
    return {name: value for name, value in fields.items() if value is not None}
