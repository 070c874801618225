"""A real Prometheus reads a real server: what rules and dashboards name is there, and every query works."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import Settings

from ..service.fake_runtime import FakeRuntime
from ..service.running import Running, run_server
from .files import metrics_in, needs_prometheus, queries, rules
from .live import Live, prometheus

pytestmark = needs_prometheus

TOLD = {
    "percent": 40,
    "images_per_second": 3.5,
    "eta_seconds": 60,
    "losses": {"generator": -0.1},
    "quality": {"accuracy": 0.9},
}
QUIET = {"ALERTS"}
"""Series that are there only when something is wrong."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), log_level="error", result_cache_mb=1)
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        # As a runner tells it; none runs here.
        running.server.config.app.state.service.jobs.store.running = lambda: {"ftjob-1": TOLD}  # type: ignore[union-attr]
        yield running


@pytest.fixture(scope="module")
def live(server: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """Prometheus, after it has seen the server work for a few scrapes."""
    address = server.url.removeprefix("http://")
    with prometheus(tmp_path_factory.mktemp("prometheus"), {"api:8000": address}) as running:
        work(server)
        running.wait_for("sum(fewstep_images_total) > 0")
        work(server)
        running.wait_for("sum(increase(fewstep_images_total[1m])) > 0")
        running.wait_for("fewstep:errors:ratio_rate5m >= 0")
        running.wait_for("fewstep:embedding_cache_hits:ratio_rate5m > 0")
        yield running


def work(server: Running) -> None:
    """Something of each outcome and step count."""
    for quality in ("low", "medium", "high", "auto"):
        assert server.generate(quality=quality, seed=1).status_code == 200
        assert server.generate(quality=quality, seed=1).status_code == 200
    assert server.generate(n=0).status_code == 400
    assert server.generate(prompt="bad-denoise").status_code == 500
    assert server.generate(deadline_ms=0.001).status_code in (400, 429)


def test_the_server_is_a_target_that_is_up(live: Live) -> None:
    (up,) = live.wait_for('up{job="fewstep", hardware="cpu"} == 1')
    assert up["metric"]["hardware"] == "cpu"


def test_profiles_that_are_not_started_are_not_missed(live: Live) -> None:
    assert live.ask('up{job="fewstep", hardware="gpu"} == 0')
    assert not live.ask('ALERTS{alertname="FewstepDown"}')


@pytest.mark.parametrize("name", sorted(rules("record")))
def test_what_a_recording_rule_records_can_be_read(live: Live, name: str) -> None:
    assert live.wait_for(name), "recorded, with values"


@pytest.mark.parametrize("name", sorted(rules("alert")))
def test_metrics_of_an_alert_exist(live: Live, name: str) -> None:
    live.ask(rules("alert")[name]["expr"])
    named = metrics_in(rules("alert")[name]["expr"])
    # Those of a GPU come from an exporter of NVIDIA's, which runs beside a GPU only; Ray's are tried with Ray.
    assert {metric for metric in named if not metric.startswith(("DCGM_", "ray_"))} <= live.names()


@pytest.mark.parametrize(("panel", "query"), queries(), ids=[panel for panel, _ in queries()])
def test_a_panel_shows_something(live: Live, panel: str, query: str) -> None:
    query = re.sub(r"\$__rate_interval", "1m", query)
    query = re.sub(r"\$\w+", ".*", query)
    if any(quiet in query for quiet in QUIET):
        live.ask(query)
    else:
        live.wait_for(query)


def test_a_job_is_told_from_the_scrape_job(live: Live) -> None:
    (told,) = live.wait_for("fewstep_job_progress_ratio")
    assert told["metric"]["distillation_job"] == "ftjob-1"
    assert told["metric"]["job"] == "fewstep"
    assert told["value"][1] == "0.4"


def test_all_rules_can_be_evaluated(live: Live) -> None:
    groups = live.client.get("/api/v1/rules").json()["data"]["groups"]
    found = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert set(found) == set(rules("alert")) | set(rules("record"))
    assert {rule["health"] for rule in found.values()} <= {"ok", "unknown"}
    assert all("lastError" not in rule for rule in found.values())


def test_the_server_draws_whether_it_is_watched_or_not(server: Running, tmp_path: Path, live: Live) -> None:
    """Prometheus going away is nothing that the server notices."""
    with prometheus(tmp_path, {"api:8000": server.url.removeprefix("http://")}) as second:
        second.wait_for('up{hardware="cpu"} == 1')
    began = time.monotonic()
    assert server.generate().status_code == 200
    assert time.monotonic() - began < 30
