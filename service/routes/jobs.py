"""`/v1/distillation/jobs`, and the same under `/v1/fine_tuning/jobs` for clients of the OpenAI API."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import FileResponse, Response, StreamingResponse

from ..context import FIELDS_ONCE, InService, Service
from ..errors import SHOWN, ServiceError, invalid
from ..idempotency import HEADER
from ..jobs.objects import checkpoint_object, event_number, event_object, job_object, page_of
from ..jobs.schemas import (
    METADATA_KEY,
    CheckpointList,
    EventList,
    JobList,
    JobObject,
    JobRequest,
    TeacherList,
)
from ..jobs.store import NewJob
from ..jobs.tables import JobRow
from ..jobs.watching import Look, look_at, watch
from .images import ERRORS


def allowed(request: Request) -> None:
    """
    Raises:
        ServiceError: 403, the key may not run jobs.
    """
    key = request.state.key
    if key is not None and not key.may_run_jobs:
        message = "This key may not run jobs: `fewstep keys add NAME --jobs` makes one that may."
        raise ServiceError(message, status=403, code="permission_denied")


router = APIRouter(prefix="/jobs", tags=["jobs"], dependencies=[Depends(allowed), FIELDS_ONCE])
teachers = APIRouter(prefix="/teachers", tags=["jobs"], dependencies=[Depends(allowed)])

METADATA = re.compile(r"^metadata\[(.*)\]$", re.DOTALL)
Limit = Annotated[int, Query(ge=1, le=100)]


@teachers.get("", responses=ERRORS)
async def list_teachers(service: InService) -> TeacherList:
    """What jobs can be given as `model`, each with the recipe that it has of its own."""
    offered = service.jobs.recipes.offered()
    return TeacherList.model_validate(
        {"data": [{"id": id, "recipe": recipe} for id, recipe in offered.items()]}
    )


@router.post("", responses=ERRORS)
async def create_job(body: JobRequest, request: Request, service: InService) -> JobObject:
    """Has a student distilled. The same `Idempotency-Key` makes one job only."""
    wanted = await service.jobs.call(
        service.jobs.intake.check, body, request.state.client, request.headers.get(HEADER)
    )
    return job_object(await service.jobs.call(_create, service, wanted))


def _create(service: Service, wanted: NewJob) -> JobRow:
    return service.jobs.store.create(wanted, service.jobs.queue_limit)


@router.get("", responses=ERRORS)
async def list_jobs(
    request: Request, service: InService, after: str | None = None, limit: Limit = 20
) -> JobList:
    """The newest first; `metadata[KEY]=VALUE` for those that have it."""
    wanted = _metadata(request)
    rows, more = await service.jobs.call(service.jobs.store.page, after, limit, wanted)
    return JobList.model_validate(page_of([job_object(row) for row in rows], more))


@router.get("/{id}", responses=ERRORS)
async def get_job(id: str, service: InService) -> JobObject:
    return job_object(await service.jobs.call(service.jobs.store.get, id))


@router.post("/{id}/cancel", responses=ERRORS)
async def cancel_job(id: str, service: InService) -> JobObject:
    """A running job ends at its next heartbeat, within seconds."""
    return job_object(await service.jobs.call(service.jobs.store.cancel, id))


@router.post("/{id}/pause", responses=ERRORS)
async def pause_job(id: str, service: InService) -> JobObject:
    """A running job saves its state and makes room for others."""
    return job_object(await service.jobs.call(service.jobs.store.pause, id))


@router.post("/{id}/resume", responses=ERRORS)
async def resume_job(id: str, service: InService) -> JobObject:
    """A paused job waits for its turn and goes on from where it was."""
    return job_object(await service.jobs.call(service.jobs.store.resume, id))


@router.get("/{id}/events", response_model=EventList, responses=ERRORS)
async def list_events(
    id: str,
    request: Request,
    service: InService,
    after: str | None = None,
    limit: Limit = 20,
    stream: bool = False,
) -> Response | EventList:
    """The newest first. With `stream` server-sent events, the oldest first, those after `Last-Event-ID` or
    `after`, until the job has ended."""
    if stream:
        return await _streamed(id, request, service, after)
    before = None if after is None else event_number(after, "after")
    rows, more = await service.jobs.call(service.jobs.store.latest_events, id, before, limit)
    return EventList.model_validate(page_of([event_object(row) for row in rows], more))


async def _streamed(id: str, request: Request, service: Service, after: str | None) -> Response:
    last = request.headers.get("last-event-id") or after
    number = event_number(last, "Last-Event-ID") if last else 0

    async def look(number: int) -> Look:
        return await service.jobs.call(look_at, service.jobs.store, id, number)

    await look(number)  # so that what is wrong is said with a status of its own
    frames = watch(look, number, lambda: service.models.status == "draining")
    return StreamingResponse(frames, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@router.get("/{id}/checkpoints", responses=ERRORS)
async def list_checkpoints(
    id: str, request: Request, service: InService, after: str | None = None, limit: Limit = 10
) -> CheckpointList:
    """The newest first, each with a grid of what the student drew then."""
    job, (rows, more) = await service.jobs.call(_checkpoints, service, id, after, limit)
    name = f"ft:{job.model}:fewstep:{job.suffix or ''}:{job.id}"
    here = request.url.path.rstrip("/")
    data = [checkpoint_object(row, name, lambda one: f"{here}/{one}/sample") for row in rows]
    return CheckpointList.model_validate(page_of(data, more))


def _checkpoints(service: Service, id: str, after: str | None, limit: int) -> Any:
    store = service.jobs.store
    before = None if after is None else store.checkpoint_row(id, after).step
    return store.get(id), store.checkpoints(id, before, limit)


@router.get("/{id}/checkpoints/{checkpoint}/sample", response_class=FileResponse, responses=ERRORS)
async def checkpoint_sample(id: str, checkpoint: str, service: InService) -> FileResponse:
    """The grid of a checkpoint."""
    row = await service.jobs.call(service.jobs.store.checkpoint_row, id, checkpoint)
    folder = (service.jobs.folder / id).resolve()
    path = (folder / (row.sample or "")).resolve()
    if not path.is_relative_to(folder) or not path.is_file():
        raise ServiceError("The checkpoint's grid is not here.", status=404, code="not_found")
    headers = {"Cache-Control": "private, max-age=3600"}
    return FileResponse(path, media_type="image/png", headers=headers)


def _metadata(request: Request) -> dict[str, str]:
    wanted = {}
    for name, value in request.query_params.multi_items():
        key = METADATA.match(name)
        if key is None:
            continue
        if not re.match(METADATA_KEY, key[1]) or "\0" in value:
            raise invalid("metadata", f"Invalid 'metadata': {key[1][:SHOWN]!r} can be no key of any.")
        wanted[key[1]] = value
    return wanted
