"""Batches in the job store: every change is one transaction, and only who holds a batch may write about it.

    validating --begin--> in_progress --finalize--> finalizing --finish--> completed, expired
    validating --fail--> failed
    any of the first three --cancel--> cancelling --finish--> cancelled

A batch is worked on until its end whatever has become of it: what was answered before it was cancelled or expired is
kept.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from ..errors import ServiceError
from ..jobs.database import Database
from ..jobs.leases import Lease, held, known, one_at_a_time, page, take
from ..jobs.tables import OPEN, BatchLineRow, BatchRow, BatchStatus, UploadRow, is_id, new_id, now

WINDOW_SECONDS = 24 * 3600
Kind = Literal["output", "error"]


@dataclass(frozen=True)
class NewBatch:
    """What a client asks for, checked.

    Attributes:
        total: Requests in the input file.
        digest: Of the request, to tell a repeated one from another under its idempotency key.
    """

    input_file: str
    total: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    client: str = ""
    idempotency_key: str | None = None
    digest: str = ""


class BatchStore:
    """The batches of one database, for any number of servers. Who asks gives its `client`; None sees all."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # What clients do.

    def create(self, wanted: NewBatch, limit: int) -> BatchRow:
        """A batch that waits, or the one that this idempotency key has made before.

        Raises:
            ServiceError: 429, the client has `limit` batches already that are not at their end; 422, the key was
                used for another request.
        """
        with self.database.begin() as session:
            one_at_a_time(session)
            if batch := known(session, BatchRow, wanted.idempotency_key, wanted.digest):
                return batch
            own = select(func.count()).where(BatchRow.client == wanted.client, BatchRow.status.in_(OPEN))
            if (waiting := session.scalar(own) or 0) >= limit:
                message = (
                    f"{waiting} of your batches are not at their end, and {limit} may be: cancel one or wait."
                )
                raise ServiceError(message, status=429, code="queue_full", headers={"Retry-After": "60"})
            created = now()
            batch = BatchRow(
                id=new_id("batch_"),
                number=(session.scalar(select(func.max(BatchRow.number))) or 0) + 1,
                status="validating",
                client=wanted.client,
                input_file=wanted.input_file,
                details=dict(wanted.metadata),
                idempotency_key=wanted.idempotency_key,
                request_digest=wanted.digest,
                total=wanted.total,
                created_at=created,
                expires_at=created + WINDOW_SECONDS,
            )
            session.add(batch)
            session.flush()  # so that what has a default is there
            return batch

    def get(self, id: str, client: str | None = None) -> BatchRow:
        """
        Raises:
            ServiceError: 404.
        """
        with self.database.begin() as session:
            return _found(session, id, client)

    def page(
        self, client: str | None = None, after: str | None = None, limit: int = 20
    ) -> tuple[Sequence[BatchRow], bool]:
        """The newest first, and whether there are more.

        Raises:
            ServiceError: 404, there is no batch `after`.
        """
        wanted = select(BatchRow).order_by(BatchRow.number.desc())
        if client is not None:
            wanted = wanted.where(BatchRow.client == client)
        with self.database.begin() as session:
            if after is not None:
                wanted = wanted.where(BatchRow.number < _found(session, after, client, "after").number)
            return page(session, wanted, limit)

    def cancel(self, id: str, client: str | None = None) -> BatchRow:
        """Whoever holds the batch, or takes it next, brings it to its end.

        Raises:
            ServiceError: 404; 409, it has ended.
        """
        with self.database.begin() as session:
            batch = _found(session, id, client, change=True)
            if batch.status not in OPEN:
                message = f"The batch has ended ({batch.status}) and cannot be cancelled."
                raise ServiceError(message, status=409, code="batch_ended")
            if batch.status != "cancelling":
                _turn(batch, "cancelling")
            return batch

    def counts(self) -> dict[str, int]:
        """Batches by status."""
        with self.database.begin() as session:
            rows = session.execute(select(BatchRow.status, func.count()).group_by(BatchRow.status)).all()
        return {row[0]: row[1] for row in rows}

    # What runners do.

    def claim(
        self, owner: str, lease_seconds: float, but: Collection[str] = ()
    ) -> tuple[BatchRow, Lease] | None:
        """The oldest batch that nobody holds, or that `owner` held before it was restarted; None if there is none.

        Args:
            but: Ids of those that the owner has on hand.
        """
        free = or_(
            BatchRow.owner.is_(None), BatchRow.owner == owner, BatchRow.lease_until < time.time()
        ) & BatchRow.status.in_(OPEN)
        wanted = select(BatchRow).where(free, BatchRow.id.not_in(but)).order_by(BatchRow.number).limit(1)
        with self.database.begin() as session:
            batch = session.scalars(wanted.with_for_update(skip_locked=True)).first()
            return None if batch is None else (batch, take(batch, owner, lease_seconds))

    def heartbeat(self, lease: Lease, lease_seconds: float) -> str:
        """Renews the lease and returns the batch's status.

        Raises:
            LeaseLostError: it is not the caller's any more; so everywhere below.
        """
        with self.database.begin() as session:
            batch = held(session, BatchRow, lease, OPEN)
            batch.lease_until = time.time() + lease_seconds
            return batch.status

    def begin(self, lease: Lease) -> str:
        """Its requests are being answered."""
        return self._move(lease, "in_progress", ("validating",))

    def finalize(self, lease: Lease) -> str:
        """Its files are being made."""
        return self._move(lease, "finalizing", ("validating", "in_progress"))

    def record(self, lease: Lease, number: int, failed: bool, name: str) -> str:
        """A request has been answered; returns the batch's status.

        Args:
            name: Of the file with the answer, which is there.
        """
        with self.database.begin() as session:
            batch = held(session, BatchRow, lease, OPEN)
            session.add(BatchLineRow(batch=batch.id, number=number, failed=failed, name=name))
            batch.completed, batch.failed = batch.completed + (not failed), batch.failed + failed
            return batch.status

    def lines(self, batch: str) -> dict[int, BatchLineRow]:
        """What has been answered, by line."""
        with self.database.begin() as session:
            rows = session.scalars(select(BatchLineRow).where(BatchLineRow.batch == batch)).all()
        return {row.number: row for row in rows}

    def give_back(self, lease: Lease) -> None:
        """Whoever wants may take it."""
        with self.database.begin() as session:
            held(session, BatchRow, lease, OPEN).owner = None

    def fail(self, lease: Lease, error: ServiceError) -> None:
        """It cannot be worked on at all."""
        told = {"code": error.code, "line": None, "message": error.message, "param": error.param}
        with self.database.begin() as session:
            batch = held(session, BatchRow, lease, OPEN)
            batch.errors, batch.owner = {"data": [told]}, None
            _turn(batch, "failed")

    def finish(self, lease: Lease, status: BatchStatus, files: Mapping[Kind, UploadRow]) -> None:
        """It has come to its end; its files appear with that.

        Args:
            status: `completed`, `expired` or `cancelled`.
        """
        with self.database.begin() as session:
            batch = held(session, BatchRow, lease, OPEN)
            for row in files.values():
                session.add(row)
            ids: dict[Kind, Any] = {kind: row.id for kind, row in files.items()}
            batch.output_file, batch.error_file, batch.owner = ids.get("output"), ids.get("error"), None
            _turn(batch, status)

    def _move(self, lease: Lease, status: BatchStatus, before: Collection[str]) -> str:
        with self.database.begin() as session:
            batch = held(session, BatchRow, lease, OPEN)
            if batch.status in before:
                _turn(batch, status)
            return batch.status


def _turn(batch: BatchRow, status: BatchStatus) -> None:
    batch.status = status
    setattr(batch, f"{status}_at", now())


def _found(
    session: Session, id: str, client: str | None, param: str | None = None, change: bool = False
) -> BatchRow:
    row = session.get(BatchRow, id, with_for_update=change) if is_id(id) else None
    if row is None or client not in (None, row.client):
        raise ServiceError(f"There is no batch {id[:100]!r}.", status=404, param=param, code="not_found")
    return row
