"""Thousands of requests, clients that leave, bodies that are wrong, an engine that dies: `python -m benchmarks.faults`.

Every request has to get its picture, bit for bit the one that an undisturbed engine draws, or one clear error in
OpenAI's form; and when all is over nothing may be left inside the server. Prints JSON; exit code 1 if not so.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.faulty import BUNDLE
from engines.bundle import Bundle
from engines.runtime import generate, load_runtime
from engines.store import find_bundle
from fewstep.bench.scrape import read

ROUTE = "/v1/images/generations"
CALLERS = 24
PROMPTS = [
    f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("circle", "star", "square")
]
SEEDS, STEPS = range(5), (1, 2, 4)
KINDS = {"picture": 0.62, "several": 0.08, "stream": 0.06, "leaves": 0.12, "bad": 0.09, "hasty": 0.03}
"""Shares of the requests."""
BAD: list[dict[str, Any]] = [
    {"content": b"{"},
    {"content": b"\xff\xfe\x00"},
    {"content": b"[" * 5000},
    {"json": {}},
    {"json": {"prompt": ""}},
    {"json": {"prompt": "a", "seed": -1}},
    {"json": {"prompt": "a", "n": 11}},
    {"json": {"prompt": "a", "size": "1x1"}},
    {"json": {"prompt": "a", "unknown": 1}},
    {"json": {"prompt": "a", "model": "no-such"}},
    {"content": b'{"prompt": "a", "prompt": "b"}' + b" " * (1 << 20)},
    {"json": {"prompt": "a", "num_inference_steps": 3}},
]
FINE_ERRORS = {429, 503, 504}
"""What a request that was right may get instead of its picture while engines die."""
LEFT = {"tasks": 2, "threads": 2, "files": 8}
"""By how much these may differ at the end from what they were after the warm-up."""
GROWTH = 1.10

Key = tuple[str, int, int]


@dataclass
class Report:
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def expect(self, right: bool, what: str) -> None:
        if not right:
            self.wrong.append(what)


class Callers:
    """Sends requests of all kinds and judges what comes back."""

    def __init__(self, url: str, seed: int, pictures: dict[Key, np.ndarray]) -> None:
        self.client = httpx.AsyncClient(base_url=url, timeout=120, trust_env=False)
        self.chance, self.pictures, self.report = random.Random(seed), pictures, Report()

    async def one(self) -> None:
        kind = self.chance.choices(list(KINDS), list(KINDS.values()))[0]
        try:
            outcome = await getattr(self, f"_{kind}")()
        except httpx.HTTPError as error:
            outcome = "no answer"
            self.report.expect(False, f"{kind}: no answer, {error!r}")
        self.report.outcomes[f"{kind}: {outcome}"] += 1

    def _key(self) -> Key:
        return self.chance.choice(PROMPTS), self.chance.choice(SEEDS), self.chance.choice(STEPS)

    async def _picture(self, n: int = 1, **more: Any) -> str:
        prompt, seed, steps = self._key()
        seed = min(seed, max(SEEDS) + 1 - n)
        body = {"prompt": prompt, "seed": seed, "num_inference_steps": steps, "n": n, **more}
        response = await self.client.post(ROUTE, json=body)
        if response.status_code != 200:
            self._judge_error(response, FINE_ERRORS)
            return str(response.status_code)
        data = response.json()["data"]
        self.report.expect(len(data) == n, f"{len(data)} of {n} pictures")
        for index, entry in enumerate(data):
            self._judge_picture((prompt, seed + index, steps), entry["b64_json"])
        return "200"

    async def _several(self) -> str:
        return await self._picture(n=self.chance.randint(2, 4))

    async def _hasty(self) -> str:
        return await self._picture(deadline_ms=self.chance.choice([1, 20, 60, 200]))

    async def _bad(self) -> str:
        request = self.chance.choice(BAD)
        response = await self.client.post(ROUTE, **request, headers={"content-type": "application/json"})
        self._judge_error(response, {400, 404, 413})
        return str(response.status_code)

    async def _leaves(self) -> str:
        prompt, seed, steps = self._key()
        stream = self.chance.random() < 0.3
        body = {"prompt": prompt, "seed": seed, "num_inference_steps": steps, "stream": stream}
        try:
            async with asyncio.timeout(self.chance.uniform(0.001, 0.15)):
                await self.client.post(ROUTE, json=body)
        except TimeoutError:
            return "left"
        return "stayed"

    async def _stream(self) -> str:
        prompt, seed, steps = self._key()
        seed = min(seed, max(SEEDS) - 1)
        body = {"prompt": prompt, "seed": seed, "num_inference_steps": steps, "n": 2, "stream": True}
        response = await self.client.post(ROUTE, json={**body, "partial_images": self.chance.randint(0, 1)})
        if response.status_code != 200:
            self._judge_error(response, FINE_ERRORS)
            return str(response.status_code)
        events = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        done = [event for event in events if event.get("type") == "image_generation.completed"]
        failed = [event for event in events if "error" in event]
        complete = (len(done), len(failed)) == (2, 0) or (len(done) < 2 and len(failed) == 1)
        self.report.expect(complete, f"a stream with {len(done)} pictures and {len(failed)} errors")
        for event in done:
            self._judge_picture((prompt, event["seed"], steps), event["b64_json"])
        return "200" if not failed else "error event"

    def _judge_picture(self, key: Key, encoded: str) -> None:
        with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
            same = np.array_equal(np.asarray(picture), self.pictures[key])
        self.report.expect(same, f"another picture than undisturbed: {key}")

    def _judge_error(self, response: httpx.Response, allowed: set[int]) -> None:
        told = f"{response.status_code} {response.text[:200]}"
        self.report.expect(response.status_code in allowed, f"status {told}")
        try:
            fine = list(response.json()["error"]) == ["message", "type", "param", "code"]
        except (ValueError, KeyError, TypeError):
            fine = False
        self.report.expect(fine, f"no error object: {told}")


async def run(url: str, process: subprocess.Popen[str], chosen: argparse.Namespace) -> dict[str, Any]:
    callers = Callers(url, chosen.seed, undisturbed())
    await _ready(callers.client)
    warm = max(1, chosen.requests // 5)
    began = time.perf_counter()
    await _all(callers, process, warm, chosen.kill_every)
    before = await _settled(callers.client)
    await _all(callers, process, chosen.requests - warm, chosen.kill_every)
    after = await _settled(callers.client)
    seconds = time.perf_counter() - began
    report = callers.report
    for name, slack in LEFT.items():
        report.expect(after[name] <= before[name] + slack, f"{name}: {before[name]} -> {after[name]}")
    grown = after["megabytes"] / before["megabytes"]
    report.expect(grown < GROWTH, f"memory: {before['megabytes']:.0f} -> {after['megabytes']:.0f} MB")
    report.expect(after["inside"] == 0, f"{after['inside']} images are left inside")
    await callers.client.aclose()
    return {
        "date": str(date.today()),
        "requests": chosen.requests,
        "seconds": round(seconds, 1),
        "engines_killed_and_loaded_again": after["loaded"] - 1,
        "outcomes": dict(sorted(report.outcomes.items())),
        "after_a_fifth": before,
        "at_the_end": after,
        "wrong": report.wrong[:50],
    }


async def _all(callers: Callers, process: subprocess.Popen[str], count: int, kill_every: int) -> None:
    left = iter(range(1, count + 1))

    async def caller() -> None:
        for number in left:
            if number % kill_every == 0:
                hang = number // kill_every % 5 == 0
                process.send_signal(signal.SIGUSR2 if hang else signal.SIGUSR1)
            await callers.one()

    await asyncio.gather(*(caller() for _ in range(CALLERS)))


async def _settled(client: httpx.AsyncClient) -> dict[str, Any]:
    """What is left when nobody asks for anything any more; waits for what may still end."""
    for _ in range(100):
        await asyncio.sleep(0.2)
        counted = read((await client.get("/metrics")).text)
        inside = counted["inflight_images", ""]
        waiting = sum(value for (name, _), value in counted.items() if name == "queue_depth")
        if inside == waiting == 0 and (await client.get("/health/ready")).status_code == 200:
            break
    await asyncio.sleep(7)  # longer than a hung call hangs, and than a kept connection is kept
    return {**(await client.get("/faults")).json(), "inside": int(inside + waiting)}


async def _ready(client: httpx.AsyncClient) -> None:
    deadline = time.monotonic() + 120
    while (await client.get("/health/ready")).status_code != 200:
        if time.monotonic() > deadline:
            raise TimeoutError("the server did not become ready in 120 s")
        await asyncio.sleep(0.1)


def undisturbed() -> dict[Key, np.ndarray]:
    """Each picture drawn alone."""
    runtime = load_runtime(Bundle.load(find_bundle(BUNDLE)), "onnxruntime-cpu", 1)
    return {
        (prompt, seed, steps): generate(runtime, [prompt], [seed], steps)[0]
        for prompt in PROMPTS
        for seed in SEEDS
        for steps in STEPS
    }


@contextmanager
def faulty_server() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    with tempfile.TemporaryDirectory(prefix="fewstep-faults-") as folder:
        command = [sys.executable, "-m", "benchmarks.faulty", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            try:
                assert process.stdout is not None
                yield f"http://127.0.0.1:{int(process.stdout.readline())}", process
            finally:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    command.add_argument("--requests", type=int, default=10_000)
    command.add_argument("--kill-every", type=int, default=400, metavar="REQUESTS")
    command.add_argument("--seed", type=int, default=0)
    return command.parse_args(arguments)


def main() -> int:
    chosen = options()
    with faulty_server() as (url, process):
        found = asyncio.run(run(url, process, chosen))
    print(json.dumps(found, indent=1))
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
