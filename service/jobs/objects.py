"""Rows of the store -> objects of the API."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import SHOWN, ServiceError
from .schemas import CheckpointObject, EventObject, FileObject, JobMethod, JobObject
from .tables import CheckpointRow, EventRow, JobRow, UploadRow, now

EVENT_ID = re.compile(r"^(?:ftevent-[0-9a-f]+-)?(\d{1,18})$")


def job_object(row: JobRow) -> JobObject:
    options = row.options
    webhook = options.get("webhook")
    return JobObject.model_validate(
        {
            "id": row.id,
            "created_at": row.created_at,
            "started_at": row.started_at,
            "finished_at": row.finished_at,
            "estimated_finish": _estimate(row),
            "status": row.status,
            "requested": row.wish if row.status == "running" and row.wish != "run" else None,
            "error": row.error,
            "model": row.model,
            "fine_tuned_model": row.fine_tuned_model,
            "training_file": row.training_file,
            "method": JobMethod(sid=row.recipe),
            "suffix": row.suffix,
            "seed": row.seed,
            "metadata": row.details,
            "integrations": [{"type": "webhook", "webhook": {"url": webhook}}] if webhook else None,
            "gate": options.get("gate"),
            "publish": options.get("publish"),
            "precision": options.get("precision", "fp32"),
            "prompts": options.get("prompts"),
            "progress": row.progress,
            "result": row.result,
        }
    )


def event_object(row: EventRow) -> EventObject:
    return EventObject.model_validate(
        {
            "id": f"ftevent-{row.job.rpartition('-')[2]}-{row.number}",
            "created_at": row.created_at,
            "level": row.level,
            "message": row.message,
            "type": row.kind,
            "data": row.data,
        }
    )


def event_number(id: str, param: str) -> int:
    """
    Raises:
        ServiceError: it is no event's id.
    """
    found = EVENT_ID.match(id)
    if found is None:
        raise ServiceError(
            f"Invalid '{param}': {id[:SHOWN]!r} is not the id of an event.", param=param, code="invalid_value"
        )
    return int(found[1])


def checkpoint_object(row: CheckpointRow, name: str, url: Callable[[str], str]) -> CheckpointObject:
    """
    Args:
        name: Of the student to be.
        url: A checkpoint's id -> the address of its grid.
    """
    return CheckpointObject(
        id=row.id,
        created_at=row.created_at,
        fine_tuning_job_id=row.job,
        fine_tuned_model_checkpoint=f"{name}:ckpt-step-{row.step}",
        step_number=row.step,
        metrics={"step": row.step, **row.metrics},
        sample_url=url(row.id) if row.sample else None,
    )


def file_object(row: UploadRow) -> FileObject:
    fields = ("id", "bytes", "created_at", "filename", "purpose", "digest")
    return FileObject.model_validate({name: getattr(row, name) for name in fields})


def page_of(data: Sequence[Any], more: bool) -> dict[str, Any]:
    """What all lists have."""
    ends = {"first_id": data[0].id, "last_id": data[-1].id} if data else {"first_id": None, "last_id": None}
    return {"data": data, "has_more": more, **ends}


def announcement(row: JobRow, message: str) -> Mapping[str, Any]:
    """The body of a webhook, as OpenAI's."""
    return {
        "id": message,
        "object": "event",
        "type": f"fine_tuning.job.{row.status}",
        "created_at": now(),
        "data": {"id": row.id},
    }


def _estimate(row: JobRow) -> int | None:
    seconds = row.progress.get("eta_seconds")
    running = row.status == "running" and isinstance(seconds, int | float)
    return now() + int(seconds) if running and isinstance(seconds, int | float) else None
