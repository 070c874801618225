"""Metrics follow the store, and the thread that does it outlives what goes wrong."""

from __future__ import annotations

from typing import Any

import pytest

from service.jobs.database import Database, StoreGoneError
from service.jobs.store import JobStore, NewJob
from service.jobs.upkeep import Upkeep
from service.metrics import JOB_STATUSES, Metrics

from ..running import wait_until


@pytest.fixture
def store(database: Database) -> JobStore:
    return JobStore(database)


def submit(store: JobStore) -> None:
    store.create(NewJob("shapes-sana", "shapes:train", {}), limit=100)


def finish(store: JobStore) -> None:
    claimed = store.claim("a", 1000)
    assert claimed is not None
    store.finish(claimed[1], "succeeded", "Done.")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_jobs_are_counted_by_status_and_ended_ones_once(store: JobStore) -> None:
    metrics = Metrics()
    upkeep = Upkeep(store, metrics, None)
    for _ in range(4):
        submit(store)
    for ended in range(3):
        upkeep.count()
        upkeep.count()
        assert value(metrics, "fewstep_job_duration_seconds_count") == ended
        finish(store)
    upkeep.count()
    counted = {status: value(metrics, "fewstep_jobs", status=status) for status in JOB_STATUSES}
    assert counted == {"queued": 1, "running": 0, "paused": 0, "succeeded": 3, "failed": 0, "cancelled": 0}
    assert value(metrics, "fewstep_job_duration_seconds_count") == 3


@pytest.mark.parametrize(("later", "counted"), [(0, 1), (1, 0)], ids=["same-second", "second-before"])
def test_what_ended_before_the_server_started_or_never_ran_has_no_duration(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, later: int, counted: int
) -> None:
    submit(store)
    finish(store)
    ended = store.page()[0][0].finished_at
    assert ended is not None
    monkeypatch.setattr("service.jobs.upkeep.now", lambda: ended + later)
    metrics = Metrics()
    upkeep = Upkeep(store, metrics, None)
    submit(store)
    store.cancel(store.page()[0][0].id)
    upkeep.count()
    assert value(metrics, "fewstep_job_duration_seconds_count") == counted


class Flaky:
    """Fails twice, each time in another way, then works."""

    def __init__(self) -> None:
        self.failures: list[Exception] = [StoreGoneError("test"), ValueError("test")]
        self.calls = 0

    def send_due(self) -> int:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return 0

    def close(self) -> None:
        self.closed = True


def test_it_goes_on_after_failures(store: JobStore, caplog: pytest.LogCaptureFixture) -> None:
    webhooks: Any = Flaky()
    upkeep = Upkeep(store, Metrics(), webhooks, poll_seconds=0.01)
    upkeep.start()
    wait_until(lambda: webhooks.calls > 3, 30)
    upkeep.stop()
    assert webhooks.closed
    assert "The job store cannot be used" in caplog.text
    assert "the upkeep of jobs failed" in caplog.text
