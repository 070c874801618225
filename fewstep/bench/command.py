"""`fewstep bench`: load on a running server, and what it came to."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from service.errors import ServiceError

from .http import run
from .load import Client, Run, closed_loop, open_loop
from .plot import check_plot, plot
from .report import as_table, headline, summary
from .scrape import batches
from .sweep import sweep

COLOURS, SHAPES = ("red", "green", "blue", "yellow"), ("circle", "square", "triangle", "star")
PROMPTS = [f"a {colour} {shape} on a white background" for colour in COLOURS for shape in SHAPES]
DEFAULT_CONCURRENCY = (1, 2, 4, 8, 16)


def bench(options: argparse.Namespace) -> int:
    """Runs each setting after the other; 1 when requests failed (those shed have not)."""
    if options.sweep and (options.rate or options.concurrency):
        raise ServiceError(
            "--sweep chooses rates and callers itself: expected no --rate and no --concurrency"
        )
    if options.plot:
        check_plot(options.plot)
    found = run(_bench(options))
    rows = found["rows"] if options.sweep else found
    if options.plot:
        knee = found["knee_requests_per_second"] if options.sweep else None
        plot(rows, options.plot, found["slo_ms"] if options.sweep else options.slo_ms, knee)
    text = as_table(rows) + (f"\n\n{headline(found)}" if options.sweep else "")
    print(json.dumps(found, indent=2) if options.json else text)
    return 1 if any(row["failed"] for row in rows) else 0


async def _bench(options: argparse.Namespace) -> Any:
    key = options.api_key or os.environ.get("FEWSTEP_KEY")
    client = Client(options.url.rstrip("/"), PROMPTS, _fields(options), key)
    slo = options.slo_ms and options.slo_ms / 1000

    async def measure(kind: str, value: float, slo_seconds: float | None) -> dict[str, Any]:
        before = await client.counted()
        run = await _run(client, options, kind, value)
        counted = batches(before, await client.counted())
        row = summary(run, slo_seconds, options.n)
        return {**row, "warm_up_seconds": options.warm_up, "batches": counted}

    try:
        await client.check()
        if options.warm_up:
            await closed_loop(client.send, 1, options.warm_up)
        if options.sweep:
            return await sweep(measure, slo, options.n)
        return [await measure(kind, value, slo) for kind, value in _settings(options)]
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
