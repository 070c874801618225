"""The server against the engine alone and against other servers: `python -m benchmarks.serving --help`.

One run, one machine, one bundle, one client; the subjects take turns, so that noise of the machine hits all alike,
and what counts are ratios. Every prompt is different, so that no cache helps. Writes JSON and a plot, prints Markdown.
How to install the peers is in `benchmarks/requirements.txt`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.overload import FIXED, OPEN, overload
from benchmarks.subjects import FEWSTEP, PEERS, STOCK, Pythons, Running, running
from distill.metrics.tables import markdown
from engines.bundle import Bundle
from engines.runtime import generate, load_runtime
from engines.store import find_bundle
from fewstep.bench.http import run
from fewstep.bench.load import Client, closed_loop, open_loop
from fewstep.bench.report import summary
from fewstep.bench.scrape import batches

BUNDLE = "shapes-sana-sid"
STEPS, BATCHES = 4, (1, 2, 4, 8, 16)
CALLERS, LOAD = 32, 0.7
PROMPTS = [f"a red circle left of a blue star, number {number}" for number in range(100_000)]

RATIOS = ("added_ms", "share_of_engine", "ahead_in_throughput", "ahead_in_p95_at_their_70_percent")
OVERLOADS = {"overload": FIXED, "overload_of_open_steps": OPEN}

Row = dict[str, Any]


def main() -> None:
    options = _options()
    pythons = Pythons(peers=options.peers_python, bento=options.bento_python)
    subjects = [FEWSTEP, *[name for name in options.peers.split(",") if name]]
    rounds = []
    for number in range(options.rounds):
        found: Row = {"engine": engine_alone(options.threads, options.seconds)}
        for name in [*subjects[1:], FEWSTEP]:
            print(f"round {number + 1} of {options.rounds}: {name}", flush=True)
            # The server comes last, as it also gets the load that was 70 % of each peer's.
            rates = {peer: row["at_70_percent"]["rate"] for peer, row in found.items() if peer != "engine"}
            with running(name, pythons, options.threads, options.batch) as server:
                found[name] = run(measure(server, options.seconds, rates if name == FEWSTEP else {}))
        rounds.append(found)
    report = {**_heading(options), "rounds": rounds, **ratios(rounds, subjects)}
    if options.overload:
        capacity = report["subjects"][FEWSTEP]["images_per_second"]
        unloaded = report["subjects"][FEWSTEP]["lone_p50_ms"]
        for name, fields in OVERLOADS.items():
            # A small cache is full after the warm-up, so that what grows then is a leak.
            cache = "--embedding-cache-mb", "4"
            with running(FEWSTEP, pythons, options.threads, options.batch, *cache) as server:
                report[name] = run(overload(server, capacity, unloaded, options.overload, fields))
    _write(report, options.out)
    print(as_markdown(report))


def engine_alone(threads: int, seconds: float) -> Row:
    """A bare loop over the engine: median ms of one picture alone, and images a second at each batch size."""
    runtime = load_runtime(Bundle.load(find_bundle(BUNDLE)), "onnxruntime-cpu", threads)
    rates, alone = {}, 0.0
    for size in BATCHES:
        generate(runtime, PROMPTS[:size], range(size), STEPS)
        times, end = list[float](), time.perf_counter() + seconds / len(BATCHES)
        while time.perf_counter() < end:
            began, first = time.perf_counter(), len(times) * size
            prompts = [PROMPTS[(first + index) % len(PROMPTS)] for index in range(size)]
            generate(runtime, prompts, range(first, first + size), STEPS)
            times.append(time.perf_counter() - began)
        rates[size] = round(size * len(times) / sum(times), 2)
        alone = alone or 1000 * median(times)
    return {"alone_ms": round(alone, 2), "images_per_second": rates, "best": max(rates.values())}


async def measure(server: Running, seconds: float, rates: dict[str, float]) -> Row:
    """A lone caller, then `CALLERS` of them, then Poisson arrivals at `LOAD` of what those got, and at `rates`."""
    fields = {"num_inference_steps": STEPS} if server.name == FEWSTEP else {}
    client = Client(server.url, PROMPTS, fields, None)
    try:
        await closed_loop(client.send, 8, 2.0)  # warm-up
        before = await client.counted()
        lone = summary(await closed_loop(client.send, 1, seconds / 2), None, 1)
        middle = await client.counted()
        full = summary(await closed_loop(client.send, CALLERS, seconds), None, 1)
        full["batches"] = batches(middle, await client.counted())
        rate = LOAD * full["images_per_second"]
        loaded = summary(await open_loop(client.send, rate, seconds, 0), None, 1)
        lone["batches"] = batches(before, middle)
        matched = {
            f"at_70_percent_of_{peer}": summary(await open_loop(client.send, rate, seconds, 0), None, 1)
            for peer, rate in rates.items()
        }
    finally:
        await client.close()
    return {"lone": lone, "saturated": full, "at_70_percent": loaded, **matched}


def ratios(rounds: list[Row], subjects: list[str]) -> Row:
    """Medians over the rounds, and what they are to one another."""

    def middle(name: str, load: str, *keys: str) -> float:
        values = []
        for found in rounds:
            value: Any = found[name][load]
            for key in keys:
                value = value[key]
            values.append(value)
        return round(median(values), 2)

    each = {
        name: {
            "lone_p50_ms": middle(name, "lone", "latency_ms", "p50"),
            "images_per_second": middle(name, "saturated", "images_per_second"),
            "p95_ms_at_70_percent": middle(name, "at_70_percent", "latency_ms", "p95"),
            "rate_at_70_percent": middle(name, "at_70_percent", "rate"),
            "failed": sum(found[name][load]["failed"] for found in rounds for load in found[name]),
        }
        for name in subjects
    }
    own = each[FEWSTEP]
    engine = {
        "alone_ms": round(median(found["engine"]["alone_ms"] for found in rounds), 2),
        "images_per_second": round(median(found["engine"]["best"] for found in rounds), 2),
    }
    added = median(
        found[FEWSTEP]["lone"]["latency_ms"]["p50"] - found["engine"]["alone_ms"] for found in rounds
    )
    share = median(
        found[FEWSTEP]["saturated"]["images_per_second"] / found["engine"]["best"] for found in rounds
    )
    return {
        "engine": engine,
        "subjects": each,
        "added_ms": round(added, 2),
        "share_of_engine": round(share, 3),
        "ahead_in_throughput": {
            name: round(own["images_per_second"] / each[name]["images_per_second"], 2)
            for name in subjects[1:]
        },
        "p95_ms_at_their_70_percent": {
            name: middle(FEWSTEP, f"at_70_percent_of_{name}", "latency_ms", "p95") for name in subjects[1:]
        },
        "ahead_in_p95_at_their_70_percent": {
            name: round(
                each[name]["p95_ms_at_70_percent"]
                / middle(FEWSTEP, f"at_70_percent_of_{name}", "latency_ms", "p95"),
                2,
            )
            for name in subjects[1:]
        },
    }


def as_markdown(report: Row) -> str:
    head = ["server", "one caller p50, ms", "images/s", "p95 at 70 % of that, ms", "failed"]
    rows = [
        [
            name,
            f"{found['lone_p50_ms']:.1f}",
            f"{found['images_per_second']:.1f}",
            f"{found['p95_ms_at_70_percent']:.1f}",
            str(found["failed"]),
        ]
        for name, found in report["subjects"].items()
    ]
    engine = report["engine"]
    rows.insert(
        0, ["engine alone", f"{engine['alone_ms']:.1f}", f"{engine['images_per_second']:.1f}", "-", "-"]
    )
    return markdown(head, rows) + "\n\n" + json.dumps({
        key: report[key]
        for key in (*RATIOS, *OVERLOADS)
        if key in report
    }, indent=2)  # fmt: skip


def _heading(options: argparse.Namespace) -> Row:
    return {
        "date": str(date.today()),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU",
        "usable_cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "onnxruntime": version("onnxruntime"),
        "bundle": BUNDLE,
        "steps": STEPS,
        "engine_threads": options.threads,
        "callers": CALLERS,
        "seconds": options.seconds,
        "warm_up": "2 s of 8 callers",
        "client": "fewstep bench",
    }


def _write(report: Row, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    staged = out.with_suffix(".part")
    staged.write_text(json.dumps(report, indent=1) + "\n")
    staged.replace(out.with_suffix(".json"))
    from benchmarks.picture import draw

    draw(report, out.with_suffix(".png"))


def _options() -> argparse.Namespace:
    command = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--seconds", type=float, default=10.0, help="of each load")
    command.add_argument("--threads", type=int, default=1, help="of the engine, in every subject")
    command.add_argument("--batch", type=int, default=16, help="largest batch of the peers")
    command.add_argument("--peers", default=",".join((*PEERS, *STOCK)))
    command.add_argument("--peers-python", default=Pythons.peers)
    command.add_argument("--bento-python", default=Pythons.bento)
    command.add_argument(
        "--overload", type=float, default=60.0, help="seconds at twice the capacity; 0: none"
    )
    command.add_argument("--out", type=Path, default=Path("docs/benchmarks/serving"))
    return command.parse_args()


if __name__ == "__main__":
    main()
