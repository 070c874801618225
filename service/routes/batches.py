"""`/v1/batches`: many requests for pictures in one file, answered when nobody waits for others."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from ..batches.schemas import BatchList, BatchObject, BatchRequest, batch_object
from ..batches.store import NewBatch
from ..context import FIELDS_ONCE, InService, Service
from ..idempotency import HEADER
from ..jobs.objects import page_of
from ..jobs.tables import BatchRow
from .files import visible_to
from .images import ERRORS

router = APIRouter(prefix="/v1/batches", tags=["batches"], dependencies=[FIELDS_ONCE])


@router.post("", responses=ERRORS)
async def create_batch(body: BatchRequest, request: Request, service: InService) -> BatchObject:
    """Has the requests of a file answered within a day. The same `Idempotency-Key` makes one batch only."""
    wanted = await service.jobs.call(
        service.batches.intake.check,
        body,
        request.state.client,
        visible_to(request),
        request.headers.get(HEADER),
    )
    return batch_object(await service.jobs.call(_create, service, wanted))


def _create(service: Service, wanted: NewBatch) -> BatchRow:
    return service.batches.store.create(wanted, service.batches.limit)


@router.get("", responses=ERRORS)
async def list_batches(
    request: Request,
    service: InService,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> BatchList:
    """The newest first."""
    rows, more = await service.jobs.call(service.batches.store.page, visible_to(request), after, limit)
    return BatchList.model_validate(page_of([batch_object(row) for row in rows], more))


@router.get("/{id}", responses=ERRORS)
async def get_batch(id: str, request: Request, service: InService) -> BatchObject:
    return batch_object(await service.jobs.call(service.batches.store.get, id, visible_to(request)))


@router.post("/{id}/cancel", responses=ERRORS)
async def cancel_batch(id: str, request: Request, service: InService) -> BatchObject:
    """What has been answered is kept."""
    return batch_object(await service.jobs.call(service.batches.store.cancel, id, visible_to(request)))
