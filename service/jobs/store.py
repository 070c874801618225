"""The job store: every change of a job is one transaction, and only who holds a job may write about it.

    queued --claim--> running --finish--> succeeded, failed, cancelled
    queued <-give_back, reclaim-- running --stand_by--> paused --resume--> queued

What clients ask of a running job is its `wish`; whoever runs it hears that at the next heartbeat. A lease that
runs out frees the job for the next claim; its fence then shuts the late owner out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from ..errors import ServiceError
from .database import Database
from .leases import Lease, held, known, one_at_a_time, page, take
from .tables import (
    ENDED,
    CheckpointRow,
    DeliveryRow,
    EventRow,
    JobRow,
    Status,
    Wish,
    is_id,
    new_id,
    now,
)

Announce = Callable[[JobRow, str], Mapping[str, Any]]
"""A job that has ended, and the id of the message -> the body of its webhook."""


@dataclass(frozen=True)
class NewJob:
    """What a client asks for, checked.

    Attributes:
        recipe: Of the distillation, whole.
        options: What is done with the student: `gate`, `publish`, `webhook`.
        digest: Of the request, to tell a repeated one from another under its idempotency key.
    """

    model: str
    training_file: str
    recipe: Mapping[str, Any]
    seed: int = 0
    suffix: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    client: str = ""
    idempotency_key: str | None = None
    digest: str = ""


class JobStore:
    """The jobs of one database, for any number of servers and runners."""

    def __init__(self, database: Database, announce: Announce | None = None) -> None:
        self.database, self._announce = database, announce

    # What clients do.

    def create(self, wanted: NewJob, limit: int) -> JobRow:
        """A queued job, or the one that this idempotency key has made before.

        Raises:
            ServiceError: 429, `limit` jobs wait already; 422, the key was used for another request.
        """
        with self.database.begin() as session:
            one_at_a_time(session)
            if job := known(session, JobRow, wanted.idempotency_key, wanted.digest):
                return job
            waiting = session.scalar(
                select(func.count()).select_from(JobRow).where(JobRow.status == "queued")
            )
            if (waiting or 0) >= limit:
                message = f"{waiting} jobs are waiting, and the queue holds {limit}: cancel one or try later."
                raise ServiceError(message, status=429, code="queue_full", headers={"Retry-After": "60"})
            last = session.scalar(select(func.max(JobRow.number))) or 0
            job = JobRow(
                id=new_id("ftjob-"), number=last + 1, created_at=now(), status="queued", **_asked(wanted)
            )
            session.add(job)
            session.flush()
            _say(session, job, "The job waits for a runner.")
            return job

    def get(self, job: str) -> JobRow:
        """
        Raises:
            ServiceError: 404.
        """
        with self.database.begin() as session:
            return _found(session, job)

    def page(
        self, after: str | None = None, limit: int = 20, metadata: Mapping[str, str] | None = None
    ) -> tuple[Sequence[JobRow], bool]:
        """The newest first, and whether there are more."""
        wanted = select(JobRow).order_by(JobRow.number.desc())
        for key, value in (metadata or {}).items():
            wanted = wanted.where(JobRow.details[key].as_string() == value)
        with self.database.begin() as session:
            if after is not None:
                wanted = wanted.where(JobRow.number < _found(session, after, "after").number)
            return page(session, wanted, limit)

    def cancel(self, job: str) -> JobRow:
        """At once where nobody works on it, else at the owner's next heartbeat.

        Raises:
            ServiceError: 404; 409, it has ended.
        """
        with self.database.begin() as session:
            row = _active(session, job, "cancelled")
            if row.status == "running":
                return _wish(session, row, "cancel")
            self._end(session, row, "cancelled", "The job was cancelled.")
            return row

    def pause(self, job: str) -> JobRow:
        """
        Raises:
            ServiceError: 404; 409, it has ended.
        """
        with self.database.begin() as session:
            row = _active(session, job, "paused")
            if row.status == "running":
                return row if row.wish == "cancel" else _wish(session, row, "pause")
            if row.status == "queued":
                row.status = "paused"
                _say(session, row, "The job is paused.")
            return row

    def resume(self, job: str) -> JobRow:
        """
        Raises:
            ServiceError: 404; 409, it has ended.
        """
        with self.database.begin() as session:
            row = _active(session, job, "resumed")
            if row.status == "paused":
                row.status, row.wish = "queued", "run"
                _say(session, row, "The job waits for a runner again.")
            elif row.wish == "pause":
                _wish(session, row, "run")
            return row

    def events(self, job: str, after: int = 0, limit: int = 20) -> Sequence[EventRow]:
        """Those after number `after`, the oldest first.

        Raises:
            ServiceError: 404.
        """
        wanted = select(EventRow).where(EventRow.job == job, EventRow.number > after)
        with self.database.begin() as session:
            _found(session, job)
            return session.scalars(wanted.order_by(EventRow.number).limit(limit)).all()

    def latest_events(self, job: str, before: int | None, limit: int) -> tuple[Sequence[EventRow], bool]:
        """Those before number `before`, the newest first, as the OpenAI API lists them, and whether there are more."""
        wanted = select(EventRow).where(EventRow.job == job)
        if before is not None:
            wanted = wanted.where(EventRow.number < before)
        with self.database.begin() as session:
            _found(session, job)
            return page(session, wanted.order_by(EventRow.number.desc()), limit)

    def checkpoints(self, job: str, before: int | None, limit: int) -> tuple[Sequence[CheckpointRow], bool]:
        """Those before step `before`, the newest first, and whether there are more."""
        wanted = select(CheckpointRow).where(CheckpointRow.job == job)
        if before is not None:
            wanted = wanted.where(CheckpointRow.step < before)
        with self.database.begin() as session:
            _found(session, job)
            return page(session, wanted.order_by(CheckpointRow.step.desc()), limit)

    def checkpoint_row(self, job: str, id: str) -> CheckpointRow:
        """
        Raises:
            ServiceError: 404.
        """
        with self.database.begin() as session:
            _found(session, job)
            row = session.get(CheckpointRow, id) if is_id(id) else None
            if row is None or row.job != job:
                message = f"The job has no checkpoint {id[:100]!r}."
                raise ServiceError(message, status=404, code="not_found")
            return row

    def counts(self) -> dict[str, int]:
        """Jobs by status."""
        with self.database.begin() as session:
            rows = session.execute(select(JobRow.status, func.count()).group_by(JobRow.status)).all()
        return {row[0]: row[1] for row in rows}

    def running(self) -> dict[str, dict[str, Any]]:
        """The jobs that run, by id, with what their runners last told of their progress."""
        wanted = select(JobRow.id, JobRow.progress).where(JobRow.status == "running")
        with self.database.begin() as session:
            return {row[0]: row[1] for row in session.execute(wanted).all()}

    # What runners do.

    def claim(self, owner: str, lease_seconds: float) -> tuple[JobRow, Lease] | None:
        """A job for `owner`: one that it held before it was restarted, else the oldest that waits or whose
        lease has run out; None if there is none. Nobody else gets the same one."""
        instant = time.time()
        free = or_(
            JobRow.status == "queued",
            (JobRow.status == "running") & or_(JobRow.owner == owner, JobRow.lease_until < instant),
        )
        wanted = select(JobRow).where(free).order_by(JobRow.status.desc(), JobRow.number).limit(1)
        with self.database.begin() as session:
            job = session.scalars(wanted.with_for_update(skip_locked=True)).first()
            if job is None:
                return None
            again, lease = job.status == "running", take(job, owner, lease_seconds)
            job.status = "running"
            job.started_at = job.started_at or now()
            _say(session, job, "The job goes on after an interruption." if again else "The job is running.")
            return job, lease

    def heartbeat(self, lease: Lease, lease_seconds: float, progress: Mapping[str, Any]) -> Wish:
        """Renews the lease and notes how far the job is; returns what is wished of it.

        Raises:
            LeaseLostError: it is not the caller's any more.
        """
        with self.database.begin() as session:
            job = _held(session, lease)
            job.lease_until, job.progress = time.time() + lease_seconds, dict(progress)
            return job.wish  # type: ignore[return-value]

    def say(
        self,
        lease: Lease,
        message: str,
        level: str = "info",
        kind: str = "message",
        data: Mapping[str, Any] | None = None,
    ) -> None:
        """An event for whoever watches the job.

        Args:
            level: `info`, `warn` or `error`.
            kind: `message` or `metrics`.

        Raises:
            LeaseLostError: it is not the caller's any more.
        """
        with self.database.begin() as session:
            _say(session, _held(session, lease), message, level, kind, data)

    def checkpoint(self, lease: Lease, step: int, metrics: Mapping[str, Any], sample: str | None) -> None:
        """A state of the student; one of the same step replaces it, as after a resume.

        Args:
            sample: Its grid of samples: a path or URL that the runner's artifacts know.

        Raises:
            LeaseLostError: it is not the caller's any more.
        """
        with self.database.begin() as session:
            _held(session, lease)
            same = select(CheckpointRow).where(CheckpointRow.job == lease.job, CheckpointRow.step == step)
            row = session.scalars(same).first()
            if row is None:
                row = CheckpointRow(id=new_id("ftckpt_"), job=lease.job, step=step, created_at=now())
                session.add(row)
            row.metrics, row.sample = dict(metrics), sample

    def give_back(self, lease: Lease) -> None:
        """The job waits again.

        Raises:
            LeaseLostError: it is not the caller's any more.
        """
        self._release(lease, "queued", "The job waits for a runner again.")

    def stand_by(self, lease: Lease) -> None:
        """The job has been paused, as wished.

        Raises:
            LeaseLostError: it is not the caller's any more.
        """
        self._release(lease, "paused", "The job is paused.")

    def finish(
        self,
        lease: Lease,
        status: Status,
        message: str,
        model: str | None = None,
        result: Mapping[str, Any] | None = None,
        error: Mapping[str, Any] | None = None,
    ) -> None:
        """The job has come to its end.

        Args:
            status: `succeeded`, `failed` or `cancelled`.
            model: The name under which the student can be found.

        Raises:
            LeaseLostError: it is not the caller's any more.
        """
        with self.database.begin() as session:
            job = _held(session, lease)
            job.fine_tuned_model, job.result = model, dict(result or {})
            job.error = dict(error) if error else None
            self._end(session, job, status, message)

    def _release(self, lease: Lease, status: Status, message: str) -> None:
        with self.database.begin() as session:
            job = _held(session, lease)
            job.status, job.owner, job.wish = status, None, "run"
            _say(session, job, message)

    def _end(self, session: Session, job: JobRow, status: Status, message: str) -> None:
        job.status, job.finished_at, job.owner = status, now(), None
        _say(session, job, message, "error" if status == "failed" else "info")
        url = job.options.get("webhook")
        if url and self._announce is not None:
            message = new_id("evt_")
            body = json.dumps(self._announce(job, message))
            session.add(
                DeliveryRow(id=message, job=job.id, created_at=now(), url=url, body=body, due=time.time())
            )


def _asked(wanted: NewJob) -> dict[str, Any]:
    return {
        "model": wanted.model,
        "training_file": wanted.training_file,
        "suffix": wanted.suffix,
        "seed": wanted.seed,
        "recipe": dict(wanted.recipe),
        "options": dict(wanted.options),
        "details": dict(wanted.metadata),
        "client": wanted.client,
        "idempotency_key": wanted.idempotency_key,
        "request_digest": wanted.digest,
    }


def _found(session: Session, job: str, param: str | None = None, change: bool = False) -> JobRow:
    """A job to be changed is locked; whoever only reads keeps no heartbeat waiting."""
    row = session.get(JobRow, job, with_for_update=change) if is_id(job) else None
    if row is None:
        raise ServiceError(f"There is no job {job[:100]!r}.", status=404, param=param, code="not_found")
    return row


def _active(session: Session, job: str, done: str) -> JobRow:
    row = _found(session, job, change=True)
    if row.status in ENDED:
        message = f"The job has ended ({row.status}) and cannot be {done}."
        raise ServiceError(message, status=409, code="job_ended")
    return row


def _held(session: Session, lease: Lease) -> JobRow:
    return held(session, JobRow, lease, ("running",))


def _wish(session: Session, job: JobRow, wish: Wish) -> JobRow:
    if job.wish != wish:
        job.wish = wish
        _say(session, job, f"The job was asked to {'go on' if wish == 'run' else wish}.")
    return job


def _say(
    session: Session,
    job: JobRow,
    message: str,
    level: str = "info",
    kind: str = "message",
    data: Mapping[str, Any] | None = None,
) -> None:
    job.events = (job.events or 0) + 1
    event = EventRow(
        job=job.id,
        number=job.events,
        created_at=now(),
        level=level,
        kind=kind,
        message=message,
        data=dict(data or {}),
    )
    session.add(event)
