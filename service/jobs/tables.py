"""The tables of the job store; `migrations/` makes them."""

from __future__ import annotations

import time
from typing import Any, Literal
from uuid import uuid4

from sqlalchemy import JSON, BigInteger, Double, ForeignKey, Index, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Status = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
Wish = Literal["run", "pause", "cancel"]
ENDED: tuple[Status, ...] = ("succeeded", "failed", "cancelled")
ACTIVE: tuple[Status, ...] = ("queued", "running", "paused")
BatchStatus = Literal[
    "validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"
]
OPEN: tuple[BatchStatus, ...] = ("validating", "in_progress", "finalizing", "cancelling")
"""Of batches that have not come to their end."""


def now() -> int:
    """Unix time, as the OpenAI API has it."""
    return int(time.time())


def new_id(kind: str) -> str:
    return f"{kind}{uuid4().hex[:24]}"


def is_id(text: str) -> bool:
    """Whether it can be asked for at all: PostgreSQL refuses text with NUL, and drivers what is no Unicode."""
    return text.isascii() and text.isprintable()


class Base(DeclarativeBase):
    type_annotation_map = {str: Text, dict[str, Any]: JSON, int: BigInteger, float: Double}  # noqa: RUF012


class Leased:
    """A row that one runner at a time works on.

    Attributes:
        owner, fence, lease_until: Who may write about it. Each claim raises `fence`, so that one who has lost the
            row and does not know it yet cannot write any more.
    """

    owner: Mapped[str | None]
    fence: Mapped[int] = mapped_column(default=0)
    lease_until: Mapped[float] = mapped_column(default=0.0)


class UploadRow(Base):
    """A file that a client has sent; its bytes lie in the data folder under its id.

    Attributes:
        digest: SHA-256 of the bytes, as `sha256:...`.
        client: Who sent it; empty where the server needs no keys.
    """

    __tablename__ = "files"

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[int]
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int]
    digest: Mapped[str]
    client: Mapped[str] = mapped_column(default="", server_default="")


class JobRow(Leased, Base):
    """A job: what was asked, where it is, who holds it.

    Attributes:
        number: Their order; jobs of one second have different ones.
        wish: What its owner is to do at the next heartbeat.
        events: How many it has; events are numbered from 1 without gaps.
        result: What the runner says of the student, its gate and where they are.
    """

    __tablename__ = "jobs"
    __table_args__ = (Index("jobs_by_status", "status", "number"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)
    created_at: Mapped[int]
    started_at: Mapped[int | None]
    finished_at: Mapped[int | None]
    status: Mapped[str]
    wish: Mapped[str] = mapped_column(default="run")
    client: Mapped[str] = mapped_column(default="")

    model: Mapped[str]
    training_file: Mapped[str]
    suffix: Mapped[str | None]
    seed: Mapped[int]
    recipe: Mapped[dict[str, Any]]
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)
    details: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    idempotency_key: Mapped[str | None] = mapped_column(unique=True)
    request_digest: Mapped[str] = mapped_column(default="")

    events: Mapped[int] = mapped_column(default=0)
    progress: Mapped[dict[str, Any]] = mapped_column(default=dict)
    fine_tuned_model: Mapped[str | None]
    result: Mapped[dict[str, Any]] = mapped_column(default=dict)
    error: Mapped[dict[str, Any] | None]


class EventRow(Base):
    __tablename__ = "events"

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    created_at: Mapped[int]
    level: Mapped[str]
    kind: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)


class CheckpointRow(Base):
    """A state of the student with its figures and a grid of samples."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job", "step"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    step: Mapped[int]
    created_at: Mapped[int]
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    sample: Mapped[str | None]


class DeliveryRow(Base):
    """A webhook that has to be sent, or was."""

    __tablename__ = "deliveries"
    __table_args__ = (Index("deliveries_by_due", "done", "due"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[int]
    url: Mapped[str]
    body: Mapped[str]
    attempts: Mapped[int] = mapped_column(default=0)
    due: Mapped[float]
    done: Mapped[bool] = mapped_column(default=False)
    outcome: Mapped[str] = mapped_column(default="")


class BatchRow(Leased, Base):
    """Requests of one file, answered when there is time; times are Unix seconds of when it got there.

    Attributes:
        number: Their order; batches of one second have different ones.
        input_file, output_file, error_file: Ids of files.
        errors: Why it failed as a whole, as `{"data": [...]}`.
        total, completed, failed: Of its requests.
    """

    __tablename__ = "batches"
    __table_args__ = (Index("batches_by_status", "status", "number"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)
    status: Mapped[str]
    client: Mapped[str] = mapped_column(default="")
    input_file: Mapped[str]
    output_file: Mapped[str | None]
    error_file: Mapped[str | None]
    details: Mapped[dict[str, Any]] = mapped_column("metadata", default=dict)
    idempotency_key: Mapped[str | None] = mapped_column(unique=True)
    request_digest: Mapped[str] = mapped_column(default="")
    errors: Mapped[dict[str, Any] | None]
    total: Mapped[int]
    completed: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)

    created_at: Mapped[int]
    expires_at: Mapped[int]
    in_progress_at: Mapped[int | None]
    finalizing_at: Mapped[int | None]
    completed_at: Mapped[int | None]
    failed_at: Mapped[int | None]
    expired_at: Mapped[int | None]
    cancelling_at: Mapped[int | None]
    cancelled_at: Mapped[int | None]


class BatchLineRow(Base):
    """A request of a batch that has been answered.

    Attributes:
        number: Of its line in the input file, from 1.
        name: Of the file with its answer, in the batch's folder.
    """

    __tablename__ = "batch_lines"

    batch: Mapped[str] = mapped_column(ForeignKey("batches.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    failed: Mapped[bool]
    name: Mapped[str]
