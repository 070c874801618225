"""Takes batches from the store, a few at a time, on the event loop that serves the models."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import shutil
import socket
import time
from uuid import uuid4

from ..errors import ServiceError
from ..jobs.database import Outage
from ..jobs.leases import Lease, LeaseLostError
from ..jobs.local import exclusive
from ..jobs.tables import OPEN, BatchRow
from ..metrics import BATCH_STATUSES
from .attendance import Attendance, Workplace

log = logging.getLogger(__name__)

COUNT_SECONDS = 5.0


class Runner:
    """The batches of one server.

    Its name is the same after a restart, so that what it held goes on at once. A second server on the same
    data folder and machine has a name of its own; what it held waits until the lease has run out.
    """

    def __init__(self, place: Workplace) -> None:
        self._place = place
        self._held = contextlib.ExitStack()
        self._owner = ""
        self._attending: dict[str, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._counted = 0.0
        self._outage = Outage(log)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Gives back what is on hand; all that has been answered is kept."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for task in self._attending.values():
            task.cancel()
        await asyncio.gather(*self._attending.values(), return_exceptions=True)
        self._held.close()

    async def _run(self) -> None:
        while True:
            with self._outage.outlived("looking for batches failed"):
                await self._look()
            await asyncio.sleep(self._place.pace.poll_seconds)

    async def _look(self) -> None:
        call, pace = self._place.jobs.call, self._place.pace
        if not self._owner:
            self._owner = await call(self._name)
            await call(self._sweep)
        if time.monotonic() - self._counted >= COUNT_SECONDS:
            await call(self._count)
            self._counted = time.monotonic()
        while len(self._attending) < pace.at_once:
            on_hand = list(self._attending)
            claimed = await call(self._place.store.claim, self._owner, pace.lease_seconds, on_hand)
            if claimed is None:
                return
            self._attending[claimed[0].id] = asyncio.create_task(self._attend(*claimed))

    async def _attend(self, row: BatchRow, lease: Lease) -> None:
        try:
            await Attendance(self._place, row, lease).run()
        except LeaseLostError:
            log.warning("batch=%s is another server's by now", row.id)
        except ServiceError as error:
            log.warning("batch=%s is tried again: %s", row.id, error)
            await asyncio.sleep(self._place.pace.retry_seconds)
        except Exception:
            log.exception("batch=%s is tried again", row.id)
            await asyncio.sleep(self._place.pace.retry_seconds)
        finally:
            self._attending.pop(row.id, None)

    def _name(self) -> str:
        folder = self._place.folder
        folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:8]
        alone = self._held.enter_context(exclusive(folder / ".runner"))
        return f"{socket.gethostname()}:{digest}" + ("" if alone else f":{uuid4().hex[:8]}")

    def _sweep(self) -> None:
        """Answers of batches that ended as their server did."""
        for folder in self._place.folder.glob("batch_*"):
            with contextlib.suppress(ServiceError):
                if self._place.store.get(folder.name).status not in OPEN:
                    shutil.rmtree(folder, ignore_errors=True)

    def _count(self) -> None:
        counts = self._place.store.counts()
        for status in BATCH_STATUSES:
            self._place.metrics.batches.labels(status).set(counts.get(status, 0))
