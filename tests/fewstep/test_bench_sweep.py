"""`fewstep bench --sweep`: the knee, what the server counted, the plot."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fewstep.bench.http import Http, Reply
from fewstep.bench.load import Client
from fewstep.bench.plot import plot
from fewstep.bench.scrape import batches, read
from fewstep.bench.sweep import CALLERS, KEPT, SHARES, knee, sweep
from fewstep.cli import main
from service.settings import Settings
from tests.service.fake_runtime import FakeRuntime, make_bundle
from tests.service.running import run_server

BEFORE = """
# TYPE fewstep_batch_size histogram
fewstep_batch_size_bucket{le="1.0",stage="denoise"} 2.0
fewstep_batch_size_bucket{le="+Inf",stage="denoise"} 2.0
fewstep_batch_size_sum{stage="denoise"} 2.0
fewstep_batch_size_count{stage="denoise"} 2.0
# TYPE other_batch_size_count counter
other_batch_size_count 9.0
"""
AFTER = """
# TYPE fewstep_batch_size histogram
fewstep_batch_size_sum{stage="denoise"} 32.0
fewstep_batch_size_count{stage="denoise"} 6.0
fewstep_batch_size_sum{stage="file"} 0.0
fewstep_batch_size_count{stage="file"} 0.0
# TYPE fewstep_padded_images counter
fewstep_padded_images_total{stage="denoise"} 3.0
# TYPE fewstep_stage_duration_seconds histogram
fewstep_stage_duration_seconds_sum{stage="denoise"} 0.25
fewstep_stage_duration_seconds_count{stage="denoise"} 6.0
# TYPE fewstep_queue_depth gauge
fewstep_queue_depth{model="a",stage="denoise"} 1.0
fewstep_queue_depth{model="b",stage="denoise"} 4.0
"""


def test_what_was_counted_between_two_readings() -> None:
    before, after = read(BEFORE), read(AFTER)
    assert batches(before, after) == {
        "denoise": {"batches": 4, "mean_batch": 7.5, "padded": 3, "seconds": 0.25}
    }
    assert after["queue_depth", "denoise"] == 5, "labels other than the stage are summed"
    assert ("other_batch_size_count", "") not in before
    assert batches(after, after) == {}
    assert batches({}, {}) == {}, "a server without such metrics"


@pytest.mark.parametrize(
    "answer", [Reply(404, {}, b""), Reply(200, {}, b'{"ready":true}'), ConnectionError("gone")]
)
def test_servers_without_such_metrics(answer: Reply | Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    async def request(self: object, *args: object, **named: object) -> Reply:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(Http, "request", request)
    assert asyncio.run(Client("http://127.0.0.1:9", ["a"], {}, None).counted()) == {}


def row(kind: str, setting: float, served: float, requests: int = 1000) -> dict[str, Any]:
    """A row of a server of which a share of the requests was served in time."""
    return {
        "loop": kind,
        "rate" if kind == "open" else "concurrency": setting,
        "requests": requests,
        "within_slo": int(served * requests),
        "shed": 0,
        "images_per_second": 100.0,
        "goodput_images_per_second": served * 100.0,
        "latency_ms": {"p50": 20.0, "p95": 30.0, "p99": 40.0},
    }


class Server:
    """Serves all within the SLO up to `limit` requests a second."""

    def __init__(self, limit: float) -> None:
        self.limit, self.asked = limit, list[tuple[str, float, float | None]]()

    async def measure(self, kind: str, value: float, slo: float | None) -> dict[str, Any]:
        self.asked.append((kind, value, slo))
        return row(kind, value, 1.0 if kind == "closed" or value <= self.limit else 0.5)


@given(st.floats(20, 200))
def test_the_knee_is_the_last_rate_that_was_served(limit: float) -> None:
    server = Server(limit)
    found = asyncio.run(sweep(server.measure, None, 1))
    served = [rate for share in SHARES if (rate := float(f"{100 * share:.3g}")) <= limit]
    assert found["knee_requests_per_second"] == max(served, default=None)
    assert (found["unloaded_ms"], found["slo_ms"]) == (20.0, 100.0)
    assert server.asked[:2] == [("closed", 1, None), ("closed", CALLERS, 0.1)]
    assert all(slo == 0.1 for _, _, slo in server.asked[1:])
    assert len(found["rows"]) == 2 + len(SHARES)


def test_a_sweep_keeps_the_slo_that_it_is_given_and_counts_images_by_request() -> None:
    server = Server(1e9)
    found = asyncio.run(sweep(server.measure, 0.25, 4))
    assert found["slo_ms"] == 250.0
    assert {slo for _, _, slo in server.asked} == {0.25}
    rates = [value for kind, value, _ in server.asked if kind == "open"]
    assert rates == [float(f"{25 * share:.3g}") for share in SHARES]


@given(st.lists(st.booleans(), max_size=8))
def test_rates_behind_the_first_that_failed_do_not_count(served: Sequence[bool]) -> None:
    rows = [row("open", rate, 1.0 if good else KEPT - 0.01) for rate, good in enumerate(served, 1)]
    wanted = served.index(False) if False in served else len(served)
    assert knee(rows[::-1]) == (wanted or None)


@pytest.mark.parametrize("kind", ["open", "closed"])
def test_a_plot_shows_latency_and_goodput(kind: str, tmp_path: Path) -> None:
    rows = [row(kind, setting, 0.9) for setting in (10, 30, 20)]
    rows.append({**row(kind, 40, 0), "latency_ms": {}})
    file = tmp_path / "load.svg"
    plot(rows, file, slo_ms=100, knee=20 if kind == "open" else None)
    drawn = file.read_text()
    for shown in ("p99", "SLO", "goodput", "requests a second" if kind == "open" else "callers"):
        assert f"<!-- {shown} -->" in drawn
    assert ("<!-- knee, 20/s -->" in drawn) == (kind == "open")
    assert list(tmp_path.iterdir()) == [file], "nothing half-written is left"


@pytest.mark.slow
def test_a_server_is_swept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runtime = FakeRuntime(make_bundle((1, 2, 4), ((64, 64),)), call_seconds=0.005)
    file = tmp_path / "sweep.png"
    with run_server(Settings(data_dir=tmp_path, queue_limit=64), {"fake": runtime}) as running:
        flags = ["--sweep", "--seconds", "0.3", "--warm-up", "0.1", "--steps", "1", "--plot", str(file)]
        assert main(["bench", running.url, *flags, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert main(["bench", running.url, *flags]) == 0
        table = capsys.readouterr().out
    assert found["slo_ms"] == pytest.approx(5 * found["unloaded_ms"], abs=0.01)
    rates = [one["rate"] for one in found["rows"] if one["loop"] == "open"]
    capacity = found["capacity_images_per_second"]
    assert rates == pytest.approx([share * capacity for share in SHARES], rel=0.01)
    assert 1 < found["rows"][1]["batches"]["denoise"]["mean_batch"] <= 4
    assert "images/s; knee at" in table
    with Image.open(file) as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--sweep", "--rate", "3"], "--sweep chooses rates and callers itself"),
        (["--plot", "load.docx"], "expected a name that ends in one of"),
        (["--plot", "load"], "expected a name that ends in one of"),
        (["--plot", "no/such/folder/load.png"], "there is no folder"),
    ],
)
def test_flags_that_cannot_be(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "http://127.0.0.1:9", *flags]) == 2
    assert said in capsys.readouterr().err


def test_a_plot_without_matplotlib(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backend_bases", None)
    assert main(["bench", "http://127.0.0.1:9", "--plot", "load.png"]) == 2
    assert "pip install 'fewstep[plot]'" in capsys.readouterr().err
