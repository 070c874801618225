"""One batch in one server's hands, from where it was left to its end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..answers import answer, inline
from ..errors import ServiceError, as_service_error
from ..image import OFFLINE
from ..jobs.attend import write_json
from ..jobs.database import StoreGoneError
from ..jobs.leases import Lease, LeaseLostError
from ..jobs.room import Jobs
from ..jobs.tables import BatchLineRow, BatchRow, BatchStatus, UploadRow, new_id
from ..metrics import Metrics
from ..middleware import outcome
from ..models import Models
from ..orders import lot_of, read_order
from ..schemas import MAX_IMAGES
from ..settings import Settings
from .intake import Intake
from .lines import read_lines
from .schemas import LineRequest, answered, unanswered
from .store import BatchStore, Kind

log = logging.getLogger(__name__)

PASSING = ("shutting_down", "model_loading", "memory_full")
"""Codes of what says nothing of the request: it is tried again."""
UNTRIED = {
    "expired": ("batch_expired", "The completion window ended before this request was answered."),
    "cancelled": ("batch_cancelled", "The batch was cancelled before this request was answered."),
}
FILLED = 2
"""Full batches of images inside at once, so that one is in each of two phases."""


@dataclass(frozen=True)
class Pace:
    """Seconds: of a lease, between heartbeats, between two looks for work, until something is tried again.

    Attributes:
        at_once: Batches that are worked on together; their clients share alike.
    """

    lease_seconds: float = 30.0
    beat_seconds: float = 2.0
    poll_seconds: float = 1.0
    retry_seconds: float = 5.0
    at_once: int = 4


@dataclass(frozen=True)
class Workplace:
    """What a batch needs: where it is kept, what draws, who is told.

    Attributes:
        folder: Answers wait here, in a folder for each batch, until all are there.
    """

    store: BatchStore
    intake: Intake
    jobs: Jobs
    models: Models
    settings: Settings
    metrics: Metrics
    folder: Path
    pace: Pace = Pace()


class Attendance:
    """Draws what has not been drawn yet, a bounded number of images at a time, and makes the files."""

    def __init__(self, place: Workplace, row: BatchRow, lease: Lease) -> None:
        self._place, self._row, self._lease = place, row, lease
        self._store, self._call = place.store, place.jobs.call
        self._folder = place.folder / row.id
        largest = max((max(one.batch_sizes) for one in place.models.generators.values()), default=1)
        self._room = asyncio.Semaphore(max(FILLED * largest, MAX_IMAGES))
        self._drawing: asyncio.Task[None] | None = None
        self._lost: Exception | None = None

    async def run(self) -> None:
        """
        Raises:
            LeaseLostError: another server has the batch.
            ServiceError: it cannot go on now; whoever takes it next finds all that is done.
        """
        beating = asyncio.create_task(self._beat())
        try:
            await self._see_through()
        except asyncio.CancelledError:
            with contextlib.suppress(LeaseLostError, StoreGoneError):
                await self._call(self._store.give_back, self._lease)
            raise
        except ServiceError as error:
            if error.status >= 500:
                raise
            log.warning("batch=%s failed: %s", self._row.id, error)
            await self._call(self._store.fail, self._lease, error)
        finally:
            beating.cancel()

    async def _see_through(self) -> None:
        path = await self._call(self._place.intake.find, self._row.input_file)
        if await self._call(self._store.begin, self._lease) == "in_progress":
            await self._draw_in_time(path)
        ending = await self._call(self._conclude, path)
        log.info("batch=%s %s", self._row.id, ending)

    async def _draw_in_time(self, path: Path) -> None:
        self._drawing = drawing = asyncio.create_task(self._draw(path))
        try:
            await asyncio.wait({drawing}, timeout=max(0.0, self._row.expires_at - time.time()))
        finally:
            drawing.cancel()
            await asyncio.wait({drawing})
        if self._lost is not None:
            raise self._lost
        if not drawing.cancelled() and (error := drawing.exception()) is not None:
            raise error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error

    async def _draw(self, path: Path) -> None:
        done = await self._call(self._store.lines, self._row.id)
        lines = (line for line in read_lines(path, self._place.intake.limits) if line[0] not in done)
        async with asyncio.TaskGroup() as group:
            while (line := await self._call(next, lines, None)) is not None:
                for _ in range(line[1].body.n or 1):
                    await self._room.acquire()
                group.create_task(self._finish_line(*line))

    async def _finish_line(self, number: int, line: LineRequest) -> None:
        try:
            recording = asyncio.ensure_future(self._record(number, line, *await self._answered(line)))
            try:
                await asyncio.shield(recording)
            except asyncio.CancelledError:
                await recording  # its thread writes on, and the files have to hold what it counts
                raise
        finally:
            for _ in range(line.body.n or 1):
                self._room.release()

    async def _record(self, number: int, line: LineRequest, status: int, body: dict[str, Any]) -> None:
        try:
            told = await self._call(self._keep, number, line.custom_id, status, body)
            self._place.metrics.batch_requests.labels(outcome(status)).inc()
            self._heed(told)
        except (LeaseLostError, StoreGoneError) as error:
            self._give_up(error)

    async def _answered(self, line: LineRequest) -> tuple[int, dict[str, Any]]:
        """What the live route would answer, as soon as it would say something of the request."""
        while True:
            try:
                return 200, await self._drawn(line)
            except Exception as error:
                known = as_service_error(error)
                if known.code not in PASSING:
                    if known is not error:
                        log.exception("batch=%s a request failed", self._row.id)
                    return known.status, known.as_object()
            await asyncio.sleep(self._place.pace.retry_seconds)

    async def _drawn(self, line: LineRequest) -> dict[str, Any]:
        generator = await self._place.models.spare(line.body.model, lot_of(line.body))
        client = self._row.client
        order = read_order(line.body, generator, self._place.settings, client=client, lane=OFFLINE)
        files = await order.filled_in()
        data = await asyncio.to_thread(inline, order, files)
        return answer(order, data).model_dump(mode="json", exclude_unset=True)

    def _keep(self, number: int, custom_id: str, status: int, body: dict[str, Any]) -> str:
        self._folder.mkdir(parents=True, exist_ok=True)
        # Another server's answer to the same line, from before this lease, has another name.
        name = f"{number}.{self._lease.fence}.json"
        content = answered(new_id("batch_req_"), custom_id, new_id("req_"), status, body)
        write_json(self._folder / name, content)
        return self._store.record(self._lease, number, status >= 400, name)

    def _conclude(self, path: Path) -> BatchStatus:
        status, done = self._store.finalize(self._lease), self._store.lines(self._row.id)
        missing = self._row.total - len(done)
        ending: BatchStatus = "completed" if not missing else "expired"
        if status == "cancelling":
            ending = "cancelled"
        kinds: dict[Kind, bool] = {
            "output": any(not row.failed for row in done.values()),
            "error": bool(missing) or any(row.failed for row in done.values()),
        }
        files = {kind: self._file(kind, path, done, ending) for kind, needed in kinds.items() if needed}
        self._store.finish(self._lease, ending, files)
        if missing:
            self._place.metrics.batch_requests.labels(ending).inc(missing)
        shutil.rmtree(self._folder, ignore_errors=True)
        return ending

    def _file(
        self, kind: Kind, path: Path, done: Mapping[int, BatchLineRow], ending: BatchStatus
    ) -> UploadRow:
        """The file of a kind, under the same id whoever makes it, so that one cut off is made anew."""
        row = self._row
        id = "file-" + hashlib.sha256(f"{row.id} {kind}".encode()).hexdigest()[:24]
        lines = self._lines(kind, path, done, ending)
        name = f"{row.id}_{kind}.jsonl"
        return self._place.jobs.uploads.write(lines, id, name, "batch_output", row.client)

    def _lines(
        self, kind: Kind, path: Path, done: Mapping[int, BatchLineRow], ending: BatchStatus
    ) -> Iterator[bytes]:
        for number, line in read_lines(path, self._place.intake.limits):
            row = done.get(number)
            if row is not None and row.failed == (kind == "error"):
                yield (self._folder / row.name).read_bytes()
            elif row is None and kind == "error":
                told = unanswered(new_id("batch_req_"), line.custom_id, *UNTRIED[ending])
                yield f"{json.dumps(told)}\n".encode()

    async def _beat(self) -> None:
        pace = self._place.pace
        while self._lost is None:
            await asyncio.sleep(pace.beat_seconds)
            try:
                self._heed(await self._call(self._store.heartbeat, self._lease, pace.lease_seconds))
            except LeaseLostError as error:
                self._give_up(error)
            except StoreGoneError as error:
                log.warning("batch=%s the store does not answer: %s", self._row.id, error)

    def _heed(self, status: str) -> None:
        if status == "cancelling" and self._drawing is not None:
            self._drawing.cancel()

    def _give_up(self, error: Exception) -> None:
        self._lost = self._lost or error
        if self._drawing is not None:
            self._drawing.cancel()
