"""What a batch costs live requests, and what it gets of an idle server: `python -m benchmarks.background`.

Rounds of the same Poisson load, in turn without and with a batch on hand that never runs out; then the batch alone and,
for comparison, as many callers as saturate the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from benchmarks.subjects import FEWSTEP, Pythons, Running, running
from fewstep.bench.load import Client, closed_loop, open_loop
from fewstep.bench.report import summary

URL = "/v1/images/generations"
PROMPTS = [f"a red circle left of a blue star, number {number}" for number in range(100_000)]
FIELDS = {"num_inference_steps": 4}
CALLERS = 16
LINES = 20_000
"""More than can be drawn in the time."""


class Batch:
    """A batch on the server: begun, watched and cancelled."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=60, trust_env=False)
        self._id = ""

    def begin(self) -> None:
        asked = [{"prompt": PROMPTS[number], "seed": number, **FIELDS} for number in range(LINES)]
        lines = [
            json.dumps({"custom_id": str(number), "method": "POST", "url": URL, "body": body})
            for number, body in enumerate(asked)
        ]
        file = self._client.post(
            "/v1/files", data={"purpose": "batch"}, files={"file": "\n".join(lines).encode()}
        )
        body = {"input_file_id": file.json()["id"], "endpoint": URL, "completion_window": "24h"}
        self._id = self._client.post("/v1/batches", json=body).json()["id"]
        while not self.done():
            time.sleep(0.05)

    def done(self) -> int:
        count: int = self._client.get(f"/v1/batches/{self._id}").json()["request_counts"]["completed"]
        return count

    def end(self) -> None:
        self._client.post(f"/v1/batches/{self._id}/cancel")
        while self._client.get(f"/v1/batches/{self._id}").json()["status"] != "cancelled":
            time.sleep(0.05)


async def live(server: Running, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    client = Client(server.url, PROMPTS, FIELDS, None)
    try:
        return summary(await open_loop(client.send, rate, seconds, seed), None, 1)
    finally:
        await client.close()


async def saturated(server: Running, seconds: float) -> float:
    client = Client(server.url, PROMPTS, FIELDS, None)
    try:
        await closed_loop(client.send, CALLERS, seconds / 3)
        run = await closed_loop(client.send, CALLERS, seconds)
        return float(summary(run, None, 1)["images_per_second"])
    finally:
        await client.close()


def idle(batch: Batch, seconds: float) -> float:
    before, began = batch.done(), time.perf_counter()
    time.sleep(seconds)
    return (batch.done() - before) / (time.perf_counter() - began)


def measure(server: Running, rounds: int, seconds: float, share: float) -> dict[str, Any]:
    capacity, batch = asyncio.run(saturated(server, seconds)), Batch(server.url)
    rows: list[dict[str, Any]] = []
    alone: list[float] = []
    for number in range(rounds):
        without = asyncio.run(live(server, share * capacity, seconds, number))
        batch.begin()
        before = batch.done()
        with_batch = asyncio.run(live(server, share * capacity, seconds, number))
        beside = (batch.done() - before) / with_batch["seconds"]
        alone.append(idle(batch, seconds))
        batch.end()
        rows.append({"without": without, "with": with_batch, "batch_images_per_second": round(beside, 2)})
    return {
        "live_share_of_capacity": share,
        "capacity_images_per_second": capacity,
        "batch_alone_images_per_second": [round(each, 2) for each in alone],
        "batch_alone_share": round(median(alone) / capacity, 3),
        "p50_ratio": _ratio(rows, "p50"),
        "p95_ratio": _ratio(rows, "p95"),
        "refused_with": sum(row["with"]["shed"] + row["with"]["failed"] for row in rows),
        "refused_without": sum(row["without"]["shed"] + row["without"]["failed"] for row in rows),
        "rounds": rows,
    }


def _ratio(rows: list[dict[str, Any]], figure: str) -> float:
    ratios = [row["with"]["latency_ms"][figure] / row["without"]["latency_ms"][figure] for row in rows]
    return round(median(ratios), 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--share", type=float, default=0.4, help="of its capacity that live requests take")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with running(FEWSTEP, Pythons(), arguments.threads, 8) as server:
        found = measure(server, arguments.rounds, arguments.seconds, arguments.share)
    text = json.dumps(found, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
