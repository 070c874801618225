"""`fewstep bench` against real servers and against its own arithmetic."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.bench.load import Answer, Run, closed_loop, open_loop
from fewstep.bench.report import as_table, percentile, summary
from fewstep.cli import main
from service.settings import Settings
from tests.service.fake_runtime import FakeRuntime, make_bundle
from tests.service.running import run_server


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.sampled_from([50, 95, 99]))
def test_percentiles(values: list[float], share: int) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share / 100 * len(values)
    assert sum(value < found for value in values) < share / 100 * len(values)


def answer(seconds: float, status: int = 200) -> Answer:
    return Answer(seconds, status, 4 if status == 200 else 0, {"queue": 2.0} if status == 200 else {})


def test_what_a_run_came_to() -> None:
    answers = [answer(0.1)] * 8 + [answer(0.9)] * 2 + [answer(0.01, 429)] * 5 + [answer(1, 500), answer(1, 0)]
    row = summary(Run("open", 20.0, 2.0, answers), slo_seconds=0.5, images=3)
    assert (row["requests"], row["ok"], row["shed"], row["failed"]) == (17, 10, 5, 2)
    assert (row["images_per_second"], row["goodput_images_per_second"]) == (15.0, 12.0)
    assert (row["latency_ms"]["p50"], row["latency_ms"]["p95"]) == (100.0, 900.0)
    assert row["shed_ms"]["p99"] == 10.0
    assert (row["steps"], row["phases_ms"]) == ({"4": 10}, {"queue": 2.0})
    table = as_table([row, summary(Run("closed", 4, 1.0, [answer(1, 500)]), None, 1)])
    assert "| 20/s | 10 | 5 | 2 | 15.0 | 12.0 | 100.0 | 900.0 | 900.0 | 4: 10 | - | queue 2.0 |" in table
    assert "| 4 callers | 0 | 0 | 1 | 0.0 | 0.0 | - | - | - | - | - | - |" in table
    assert (row["within_slo"], row["shed_share"]) == (8, round(5 / 17, 4))


def test_arrivals_do_not_wait_for_answers_and_lateness_counts() -> None:
    dues: list[float] = []

    async def slow(due: float) -> Answer:
        dues.append(due)
        await asyncio.sleep(0.3)
        return answer(time.perf_counter() - due)

    run = asyncio.run(open_loop(slow, rate=200, seconds=0.5, seed=3))
    assert 60 < len(run.answers) < 140
    assert dues == sorted(dues)
    again: list[float] = []

    async def quick(due: float) -> Answer:
        again.append(due)
        return answer(0.0)

    asyncio.run(open_loop(quick, rate=200, seconds=0.5, seed=3))
    first, second = ([round(due - each[0], 6) for due in each] for each in (dues, again))
    assert first == second


def test_callers_wait_for_their_answers() -> None:
    inside, most = 0, 0

    async def send(due: float) -> Answer:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.01)
        inside -= 1
        return answer(0.01)

    run = asyncio.run(closed_loop(send, 3, 0.2))
    assert most == 3
    assert 3 < len(run.answers) <= 63


def test_a_server_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = FakeRuntime(make_bundle((1, 2), ((64, 64),)), call_seconds=0.004)
    with run_server(Settings(data_dir=tmp_path, queue_limit=4), {"fake": runtime}) as running:
        flags = ["--seconds", "0.7", "--warm-up", "0.1", "--steps", "2", "--slo-ms", "5000", "--json"]
        assert main(["bench", running.url + "/", "--concurrency", "2", "--rate", "400", *flags]) == 0
        closed, opened = json.loads(capsys.readouterr().out)
    assert (closed["loop"], closed["concurrency"], closed["shed"]) == ("closed", 2, 0)
    assert closed["ok"] > 2
    assert closed["steps"] == {"2": closed["ok"]}
    assert set(closed["phases_ms"]) == {"queue", "encode", "denoise", "decode", "file"}
    denoise = closed["batches"]["denoise"]
    assert 1 <= denoise["mean_batch"] <= 2
    assert denoise["batches"] * denoise["mean_batch"] >= 2 * closed["ok"] - 4
    assert 0 < denoise["seconds"] < 10
    assert closed["warm_up_seconds"] == 0.1
    assert (opened["loop"], opened["rate"]) == ("open", 400)
    assert opened["shed"] > 0
    assert opened["requests"] == opened["ok"] + opened["shed"]


def test_an_address_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "http://127.0.0.1:9"]) == 2
    assert "does not answer" in capsys.readouterr().err
