"""The fault run of `benchmarks.faults` in a smaller form, and that it would notice."""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from benchmarks.faults import KINDS, Callers
from benchmarks.faulty import Mortal

from .fake_runtime import FakeRuntime

ROOT = Path(__file__).parents[2]
BLACK = np.zeros((8, 8, 3), np.uint8)


def encoded(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


class Everything(dict[Any, np.ndarray]):
    """Expects the same picture whatever is asked for."""

    def __missing__(self, key: Any) -> np.ndarray:
        return BLACK


def judge(kind: str, *answers: httpx.Response) -> list[str]:
    """What a run would object to if requests of one kind were answered so."""

    async def run() -> list[str]:
        callers = Callers("http://test", 0, Everything())
        left = iter(answers)
        callers.client = httpx.AsyncClient(
            transport=httpx.MockTransport(lambda request: next(left)), base_url="http://test"
        )
        for _ in answers:
            await getattr(callers, f"_{kind}")()
        return callers.report.wrong

    return asyncio.run(run())


def picture(pixels: np.ndarray, count: int = 1) -> httpx.Response:
    return httpx.Response(200, json={"data": [{"b64_json": encoded(pixels)}] * count})


def error(status: int, body: Any = None) -> httpx.Response:
    fine = {"error": {"message": "m", "type": "t", "param": None, "code": None}}
    return httpx.Response(status, json=fine if body is None else body)


def stream(*events: dict[str, Any]) -> httpx.Response:
    text = "".join(f"event: x\ndata: {json.dumps(event)}\n\n" for event in events)
    return httpx.Response(200, text=text, headers={"content-type": "text/event-stream"})


DONE = {"type": "image_generation.completed", "seed": 1, "b64_json": encoded(BLACK)}
FAILED = {"error": {"message": "m"}}


def test_what_is_right() -> None:
    assert judge("picture", picture(BLACK), error(503), error(429), error(504)) == []
    assert judge("bad", error(400), error(404), error(413)) == []
    assert judge("stream", stream(DONE, DONE), stream(DONE, FAILED), stream(FAILED), error(503)) == []


@pytest.mark.parametrize(
    ("kind", "answer", "said"),
    [
        ("picture", picture(BLACK + 1), "another picture than undisturbed"),
        ("picture", picture(BLACK, 2), "2 of 1 pictures"),
        ("picture", error(500), "status 500"),
        ("picture", error(503, {"detail": "x"}), "no error object"),
        ("picture", httpx.Response(503, text="oops"), "no error object"),
        ("bad", error(500), "status 500"),
        ("stream", stream(DONE), "1 pictures and 0 errors"),
        ("stream", stream(DONE, DONE, FAILED), "2 pictures and 1 errors"),
        ("stream", stream(), "0 pictures and 0 errors"),
    ],
)
def test_what_is_wrong_is_noticed(kind: str, answer: httpx.Response, said: str) -> None:
    assert any(said in line for line in judge(kind, answer))


def test_a_request_without_an_answer_is_noticed() -> None:
    async def run() -> Callers:
        callers = Callers("http://127.0.0.1:9", 0, Everything())
        for _ in range(20):
            await callers.one()
        return callers

    callers = asyncio.run(run())
    assert any("no answer" in line for line in callers.report.wrong)
    assert {name.split(":")[0] for name in callers.report.outcomes} <= set(KINDS)


def test_a_killed_engine_draws_nothing_more() -> None:
    engine = Mortal(FakeRuntime())
    assert engine.encode(["a"])["text"].shape == (1, 8)
    engine.dead.set()
    for call in (lambda: engine.encode(["a"]), lambda: engine.decode(np.zeros((1, 4, 8, 8), np.float32))):
        with pytest.raises(RuntimeError, match="the engine is dead"):
            call()


@pytest.mark.slow
def test_clients_leave_bodies_are_wrong_and_engines_die() -> None:
    command = [sys.executable, "-m", "benchmarks.faults", "--requests", "600", "--kill-every", "90"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=500)
    found = json.loads(done.stdout)
    # A process of a few hundred requests has not reached its size yet; that is for the full run to say.
    wrong = [line for line in found["wrong"] if not line.startswith("memory")]
    assert wrong == [], done.stderr[-2000:]
    assert found["engines_killed_and_loaded_again"] >= 3
    assert sum(found["outcomes"].values()) == 600
    assert {name.split(":")[0] for name in found["outcomes"]} == set(KINDS)
    assert (found["at_the_end"]["inside"], found["requests"]) == (0, 600)


def test_options_have_the_full_run_as_default(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.faults import options

    assert options([]) == argparse.Namespace(requests=10_000, kill_every=400, seed=0)
