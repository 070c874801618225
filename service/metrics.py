"""Prometheus metrics; the names are public and frozen by a test."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

from .versions import Version

SECONDS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30)
"""Dense where few-step generation lives: 60 ms and 95 ms fall into different buckets."""
JOB_STATUSES = ("queued", "running", "paused", "succeeded", "failed", "cancelled")
BATCH_STATUSES = (
    "validating",
    "in_progress",
    "finalizing",
    "completed",
    "failed",
    "expired",
    "cancelling",
    "cancelled",
)
BATCH_OUTCOMES = ("ok", "invalid", "error", "rejected", "expired", "cancelled")
JOB_SECONDS = (10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400, 172800, 604800)
RATIOS = (0.25, 0.5, 0.75, 0.9, 1, 1.1, 1.25, 1.5, 2, 4)
IMAGES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)

# A second series per counter that only says when the process started.
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class StageMeters:
    """What one phase of one model reports."""

    depth: Gauge
    seconds: Histogram
    batch_size: Histogram
    padding: Counter


@dataclass(frozen=True)
class EngineMeters:
    """What the engine of one model reports."""

    hits: Counter
    misses: Counter
    padding: Counter
    restarts: Counter


@dataclass(frozen=True)
class ModelMeters:
    """What goes in and out of one model."""

    inflight: Gauge
    images: Counter
    """Has labels yet to be given: model and steps."""
    reduced: Counter
    cancelled: Counter
    prediction: Histogram


class Health:
    """Whether the server and its models can be used, and how much one takes in."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ready = Gauge(
            "fewstep_ready", "1 while /health/ready says that the server is ready.", registry=registry
        )
        self._model_ready = Gauge(
            "fewstep_model_ready", "1 while the model is loaded and draws.", ["model"], registry=registry
        )
        self.queue_limit = Gauge(
            "fewstep_queue_limit_images", "The setting queue_limit, which is per model.", registry=registry
        )

    def report(self, ready: bool, models: Mapping[str, bool]) -> None:
        """How it is from now on; a model not named any more has no series."""
        self._ready.set(ready)
        self._model_ready.clear()
        for name, draws in models.items():
            self._model_ready.labels(name).set(draws)


class RunningJobs:
    """Where the jobs that run are; one that has ended has no series any more."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, help: str, *labels: str) -> Gauge:
            return Gauge(f"fewstep_job_{name}", help, ["job", *labels], registry=registry)

        self._progress = gauge("progress_ratio", "Share of a running job's iterations that is done.")
        self._pace = gauge("images_per_second", "Pace of a running job.")
        self._left = gauge("remaining_seconds", "Estimate of the rest of a running job's distillation.")
        self._loss = gauge(
            "loss", "Newest losses of a running job; of SiD, they say nothing of quality.", "loss"
        )
        self._quality = gauge("quality", "Newest figures of a running job's quality curve.", "measure")

    def show(self, progress: Mapping[str, Mapping[str, Any]]) -> None:
        """
        Args:
            progress: By the id of the job, as its runner last told.
        """
        for one in (self._progress, self._pace, self._left, self._loss, self._quality):
            one.clear()
        for job, told in progress.items():
            self._progress.labels(job).set(told.get("percent", 0) / 100)
            for gauge, name in ((self._pace, "images_per_second"), (self._left, "eta_seconds")):
                if told.get(name) is not None:
                    gauge.labels(job).set(told[name])
            for gauge, name in ((self._loss, "losses"), (self._quality, "quality")):
                for key, value in told.get(name, {}).items():
                    gauge.labels(job, key).set(value)


class Metrics:
    """The metrics of one application, on a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "fewstep_requests", "API requests.", ["model", "route", "outcome"], registry=registry
        )
        self._images = Counter("fewstep_images", "Images generated.", ["model", "steps"], registry=registry)
        self.request_seconds = Histogram(
            "fewstep_request_duration_seconds",
            "Duration of successful generation requests.",
            buckets=SECONDS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "fewstep_queue_wait_seconds",
            "Time in which an image was not worked on, from admission to its file.",
            buckets=(0.001, 0.002, 0.005, *SECONDS),
            registry=registry,
        )
        self._stage_seconds = Histogram(
            "fewstep_stage_duration_seconds",
            "Duration of one batch in one phase.",
            ["stage"],
            buckets=(0.001, 0.002, 0.005, *SECONDS),
            registry=registry,
        )
        self._batch_size = Histogram(
            "fewstep_batch_size",
            "Images in one batch, padding aside.",
            ["stage"],
            buckets=IMAGES,
            registry=registry,
        )
        self._padding = Counter(
            "fewstep_padded_images", "Places in batches that held a repeat.", ["stage"], registry=registry
        )
        self._depth = Gauge(
            "fewstep_queue_depth", "Images waiting before a phase.", ["model", "stage"], registry=registry
        )
        self._inflight = Gauge(
            "fewstep_inflight_images", "Images admitted and not yet finished.", ["model"], registry=registry
        )
        self._embedding_hits = Counter(
            "fewstep_embedding_cache_hits", "Images whose prompt was encoded already.", registry=registry
        )
        self._embedding_misses = Counter(
            "fewstep_embedding_cache_misses", "Prompts that had to be encoded.", registry=registry
        )
        self.result_hits = Counter(
            "fewstep_result_cache_hits", "Images drawn already, or being drawn.", registry=registry
        )
        self.result_misses = Counter(
            "fewstep_result_cache_misses", "Images looked for and not found.", registry=registry
        )
        self._reduced = Counter(
            "fewstep_reduced_images",
            "Images of quality auto that got fewer steps because of load or deadline.",
            ["model"],
            registry=registry,
        )
        self._cancelled = Counter(
            "fewstep_cancelled_images", "Images given up as their client left.", ["model"], registry=registry
        )
        self._prediction = Histogram(
            "fewstep_prediction_ratio",
            "Time that an image took, over that predicted when it was admitted.",
            ["model"],
            buckets=RATIOS,
            registry=registry,
        )
        self._restarts = Counter(
            "fewstep_engine_restarts", "Engines restarted after a failure.", ["model"], registry=registry
        )
        self._add_jobs(registry)
        self.health = Health(registry)
        ProcessCollector(registry=registry)
        self._add_versions(registry)
        build = Info("fewstep_build", "Versions of this server.", registry=registry)
        build.info({"version": package_version(), "python": platform.python_version()})

    def _add_jobs(self, registry: CollectorRegistry) -> None:
        self.jobs = Gauge("fewstep_jobs", "Distillation jobs in the database.", ["status"], registry=registry)
        for status in JOB_STATUSES:
            self.jobs.labels(status)
        self.job_seconds = Histogram(
            "fewstep_job_duration_seconds",
            "Time from a job's first start to its end, of those that ended since this server started.",
            buckets=JOB_SECONDS,
            registry=registry,
        )
        self.running = RunningJobs(registry)
        self.batches = Gauge("fewstep_batches", "Batches in the database.", ["status"], registry=registry)
        for status in BATCH_STATUSES:
            self.batches.labels(status)
        self.batch_requests = Counter(
            "fewstep_batch_requests",
            "Requests of batches that this server has answered or given up.",
            ["outcome"],
            registry=registry,
        )
        for outcome in BATCH_OUTCOMES:
            self.batch_requests.labels(outcome)

    def _add_versions(self, registry: CollectorRegistry) -> None:
        self.version_requests = Counter(
            "fewstep_version_requests",
            "Generation requests by the version that they went to.",
            ["model", "version", "outcome"],
            registry=registry,
        )
        self._share = Gauge(
            "fewstep_model_version_share",
            "Share of the requests of a model that its version gets; of the versions that may be reached.",
            ["model", "version", "digest"],
            registry=registry,
        )
        self._memory = Gauge(
            "fewstep_model_memory_bytes",
            "What a version in memory takes.",
            ["model", "version"],
            registry=registry,
        )
        self.evictions = Counter(
            "fewstep_model_evictions",
            "Versions that had to make room for others.",
            ["model"],
            registry=registry,
        )

    def shares(self, versions: Iterable[Version]) -> None:
        """Of all versions of all models, anew."""
        self._share.clear()
        for one in versions:
            model, _, number = one.id.rpartition("@")
            self._share.labels(model, number, one.digest).set(one.share)

    def hosted(self, version: Version, taken: int) -> None:
        model, _, number = version.id.rpartition("@")
        self._memory.labels(model, number).set(taken)

    def unhosted(self, version: Version) -> None:
        model, _, number = version.id.rpartition("@")
        self._memory.remove(model, number)

    def stage(self, model: str, stage: str) -> StageMeters:
        return StageMeters(
            depth=self._depth.labels(model, stage),
            seconds=self._stage_seconds.labels(stage),
            batch_size=self._batch_size.labels(stage),
            padding=self._padding.labels(stage),
        )

    def engine(self, model: str) -> EngineMeters:
        return EngineMeters(
            hits=self._embedding_hits,
            misses=self._embedding_misses,
            padding=self._padding.labels("encode"),
            restarts=self._restarts.labels(model),
        )

    def model(self, model: str) -> ModelMeters:
        return ModelMeters(
            inflight=self._inflight.labels(model),
            images=self._images,
            reduced=self._reduced.labels(model),
            cancelled=self._cancelled.labels(model),
            prediction=self._prediction.labels(model),
        )


def package_version() -> str:
    try:
        return version("fewstep")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0+checkout"
