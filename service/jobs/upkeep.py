"""What has to be done about jobs besides running them: webhooks are sent, and metrics follow the store."""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy import select

from ..metrics import JOB_STATUSES, Metrics
from .database import Outage
from .store import JobStore
from .tables import JobRow, now
from .webhooks import Webhooks

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
COUNT_SECONDS = 5.0


class Upkeep:
    """A thread of each server. It goes on when the database comes back."""

    def __init__(
        self, store: JobStore, metrics: Metrics, webhooks: Webhooks | None, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._store, self._metrics, self._webhooks = store, metrics, webhooks
        self._poll_seconds = poll_seconds
        self._stopping = threading.Event()
        self._counted = 0.0
        self._ended_since, self._seen = now(), set[str]()
        self._outage = Outage(log)
        self._thread = threading.Thread(target=self._run, name="upkeep-of-jobs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._webhooks is not None:
            self._webhooks.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with self._outage.outlived("the upkeep of jobs failed"):
                self.once()
            self._stopping.wait(self._poll_seconds)

    def once(self) -> None:
        """
        Raises:
            StoreGoneError: the database does not answer.
        """
        if self._webhooks is not None:
            self._webhooks.send_due()
        if time.monotonic() - self._counted >= COUNT_SECONDS:
            self.count()
            self._counted = time.monotonic()

    def count(self) -> None:
        """Brings the metrics up to the store: all jobs of the database, whichever server runs them."""
        counts = self._store.counts()
        for status in JOB_STATUSES:
            self._metrics.jobs.labels(status).set(counts.get(status, 0))
        self._metrics.running.show(self._store.running())
        ended = select(JobRow).where(JobRow.finished_at >= self._ended_since, JobRow.started_at.is_not(None))
        with self._store.database.begin() as session:
            rows = session.scalars(ended).all()
        for row in rows:
            if row.id not in self._seen:
                self._metrics.job_seconds.observe((row.finished_at or 0) - (row.started_at or 0))
        # Of the newest second more may come; what is older is not looked at again.
        latest = max((row.finished_at or 0 for row in rows), default=self._ended_since)
        self._seen = {row.id for row in rows if row.finished_at == latest} or self._seen
        self._ended_since = latest
