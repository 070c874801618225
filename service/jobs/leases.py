"""What the rows of jobs and batches have in common: one runner at a time works on them, clients make each once."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Select, text
from sqlalchemy import select as select_from
from sqlalchemy.orm import Session

from ..errors import ServiceError
from .tables import BatchRow, JobRow

L = TypeVar("L", JobRow, BatchRow)
R = TypeVar("R")


class LeaseLostError(Exception):
    """The row is another owner's by now, or nobody's."""


@dataclass(frozen=True)
class Lease:
    """The right to write about a job, or a batch, that is being worked on.

    Attributes:
        job: The row's id.
    """

    job: str
    fence: int


def take(row: JobRow | BatchRow, owner: str, lease_seconds: float) -> Lease:
    """For the next `lease_seconds` the row is the owner's; who had it before is shut out."""
    row.owner, row.fence, row.lease_until = owner, row.fence + 1, time.time() + lease_seconds
    return Lease(row.id, row.fence)


def held(session: Session, kind: type[L], lease: Lease, statuses: Collection[str]) -> L:
    """The row, locked.

    Raises:
        LeaseLostError: it is not the lease's any more.
    """
    row = session.get(kind, lease.job, with_for_update=True)
    if row is None or row.status not in statuses or row.fence != lease.fence:
        raise LeaseLostError(lease.job)
    return row


def one_at_a_time(session: Session) -> None:
    """Until the end of the transaction: numbers, the queue's bound and idempotency keys look at all rows."""
    if session.get_bind().dialect.name == "postgresql":  # SQLite has one writer anyway
        session.execute(text("SELECT pg_advisory_xact_lock(7306)"))


def known(session: Session, kind: type[L], key: str | None, digest: str) -> L | None:
    """What this idempotency key has made before.

    Raises:
        ServiceError: 422, of another request.
    """
    if key is None:
        return None
    found = session.scalars(select_from(kind).where(kind.idempotency_key == key)).first()
    if found is not None and found.request_digest != digest:
        message = "This Idempotency-Key was used for a request with other fields."
        raise ServiceError(message, status=422, code="idempotency_key_reused")
    return found


def page(session: Session, wanted: Select[R], limit: int) -> tuple[Sequence[R], bool]:
    """The first rows of a query, and whether there are more."""
    rows: Sequence[Any] = session.scalars(wanted.limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit
