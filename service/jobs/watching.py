"""A job as server-sent events: what has happened, what happens, and how far it is, until it has ended.

id: ftevent-…-7          an event; a client that reconnects sends its id as `Last-Event-ID` and misses none
event: fine_tuning.job.event
event: fine_tuning.job   the job itself, whenever its status or its progress has changed
data: [DONE]             it has ended, and nothing more will come
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from pydantic import BaseModel

from .database import StoreGoneError
from .objects import event_object, job_object
from .store import JobStore
from .tables import ENDED, EventRow, JobRow

POLL_SECONDS = 0.5
SILENCE_SECONDS = 15.0
"""After which a comment says that the line is alive."""
AT_ONCE = 200


Look = tuple[JobRow, list[EventRow]]


async def watch(
    look: Callable[[int], Awaitable[Look]], after: int, ending: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """
    Args:
        look: The number of an event -> the job, and those that come after it.
        after: The number of the last event that the client has.
        ending: Whether the server is about to end; the client finds the rest elsewhere.
    """
    told, spoken = "", time.monotonic()
    while not ending():
        row, events = await _seen(look, after)
        for event in events:
            after = event.number
            said = event_object(event)
            yield f"id: {said.id}\n".encode() + _frame("fine_tuning.job.event", said)
        if row is not None and (now := _state(row)) != told:
            told = now
            yield _frame("fine_tuning.job", job_object(row))
            spoken = time.monotonic()
        if row is not None and row.status in ENDED and after >= row.events:
            yield b"data: [DONE]\n\n"
            return
        if time.monotonic() - spoken > SILENCE_SECONDS:
            spoken = time.monotonic()
            yield b": waiting\n\n"
        if len(events) < AT_ONCE:
            await asyncio.sleep(POLL_SECONDS)


async def _seen(look: Callable[[int], Awaitable[Look]], after: int) -> tuple[JobRow | None, list[EventRow]]:
    """Nothing while the database is gone."""
    try:
        return await look(after)
    except StoreGoneError:
        return None, []


def look_at(store: JobStore, job: str, after: int) -> Look:
    """
    Raises:
        ServiceError: 404; 503, the database does not answer.
    """
    row = store.get(job)
    return row, list(store.events(job, after, AT_ONCE))


def _state(row: JobRow) -> str:
    return repr((row.status, row.wish, row.progress))


def _frame(kind: str, content: BaseModel) -> bytes:
    return f"event: {kind}\ndata: {content.model_dump_json()}\n\n".encode()
