"""A process that runs jobs, for tests that kill it: `python -m tests.service.jobs.worker DATA_DIR DATABASE_URL [real]`.

It runs the stand-in, or with `real` the true command, and publishes by adding a line to `published.txt`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engines.bundle import Bundle
from service.jobs.database import Database
from service.jobs.desk import Claim
from service.jobs.gate import Publish, Verdict
from service.jobs.plans import Planner
from service.jobs.stages import FEWSTEP
from service.jobs.store import JobStore
from service.jobs.workers import Workers
from service.settings import Settings

from .test_runner import STAND_IN


class Notes:
    """Publishes by writing it down."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def publish(
        self, claim: Claim, publish: Publish, bundle: Bundle, verdict: Verdict, rest: Callable[[], None]
    ) -> dict[str, Any]:
        with self.file.open("a") as notes:
            notes.write(f"{claim.job} {bundle.digest}\n")
        return {"digest": bundle.digest}


def main(data: Path, url: str, real: bool) -> None:
    logging.basicConfig(level="INFO", filename=data / f"worker-{os.getpid()}.log")
    settings = Settings(
        data_dir=data,
        jobs_lease_seconds=float(os.environ.get("LEASE_SECONDS", "20")),
        jobs_stop_seconds=20,
        jobs_retries=100,
        jobs_threads=1,
        jobs_nice=0,
    )
    planner = Planner(settings, str, lambda model: None, FEWSTEP if real else STAND_IN)
    notes = Notes(data / "published.txt")
    store = JobStore(Database(url))
    workers = Workers(settings, store, planner, notes, poll_seconds=0.05, beat_seconds=0.2)
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    workers.start()
    ending.wait()
    workers.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], "real" in sys.argv[3:])
