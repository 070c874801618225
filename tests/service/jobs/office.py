"""A server whose jobs nobody but the test works on."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from PIL import Image

from service.jobs.leases import Lease
from service.jobs.room import Jobs
from service.jobs.store import JobStore, NewJob

from ..running import Running

FOREVER = 1000.0


@dataclass
class Office:
    """The server, and the store behind it."""

    running: Running

    @property
    def jobs(self) -> Jobs:
        application: Any = self.running.server.config.app
        found: Jobs = application.state.service.jobs
        return found

    @property
    def store(self) -> JobStore:
        return self.jobs.store

    def submit(self, **changes: Any) -> str:
        return self.store.create(NewJob("shapes-sana", "shapes:train", {}, **changes), 1000).id

    def take(self) -> Lease:
        claimed = self.store.claim("test", FOREVER)
        assert claimed is not None
        return claimed[1]

    def progress(self, lease: Lease, iteration: int, **more: Any) -> str:
        """What a runner tells at a heartbeat; returns what is wished of it."""
        told = {
            "stage": "distill",
            "percent": float(iteration),
            "iteration": iteration,
            "iterations": 100,
            "images": 48 * iteration,
            "images_per_second": 12.5,
            "eta_seconds": 100.0 - iteration,
            "losses": {"generator": 1.0 / iteration, "fake": 0.5},
            "quality": {},
            "sample": None,
            **more,
        }
        return self.store.heartbeat(lease, FOREVER, told)

    def checkpoint(self, lease: Lease, step: int, colour: str) -> bytes:
        """Returns its grid."""
        folder = self.jobs.folder / lease.job
        folder.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(content, "PNG")
        (folder / f"{step}.png").write_bytes(content.getvalue())
        self.store.checkpoint(lease, step, {"generator": 0.5, "accuracy": step / 100}, f"{step}.png")
        return content.getvalue()

    def succeed(self, lease: Lease, **result: Any) -> None:
        told = {"published": False, "reasons": ["nobody asked for it"], **result}
        self.store.finish(lease, "succeeded", "The student is not published.", "shapes-sana-mine", told)

    def fail(self, lease: Lease) -> None:
        error = {"message": "the disk is full", "code": "job_failed", "param": None}
        self.store.finish(lease, "failed", "the disk is full", error=error)
