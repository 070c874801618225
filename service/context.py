"""What every route of one application shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Request

from .batches.room import Batches
from .idempotency import Idempotency
from .jobs.room import Jobs
from .keys import Keys, is_foreign
from .metrics import Metrics
from .models import Models
from .pictures import FileStore
from .schemas import check_unique
from .settings import Settings
from .tracing import Tracing


@dataclass(frozen=True)
class Service:
    settings: Settings
    metrics: Metrics
    models: Models
    files: FileStore
    keys: Keys
    tracing: Tracing
    idempotency: Idempotency
    jobs: Jobs
    batches: Batches


async def service_of(request: Request) -> Service:
    # A coroutine, as FastAPI would run a plain function in its thread pool, for each request.
    return cast(Service, request.app.state.service)


async def admin_of(request: Request) -> Service:
    """
    Raises:
        ServiceError: 403, the request may not change what is served.
    """
    service = await service_of(request)
    host, headers = request.client.host if request.client else "", request.headers
    foreign = is_foreign(headers.get("origin"), headers.get("host", ""))
    service.keys.check_admin(request.state.key, host, foreign, service.settings.open_admin)
    return service


async def fields_once(request: Request) -> None:
    """
    Raises:
        ServiceError: 400, the body names a field twice.
    """
    check_unique(await request.body())


InService = Annotated[Service, Depends(service_of)]
AsAdmin = Annotated[Service, Depends(admin_of)]
FIELDS_ONCE = Depends(fields_once)
