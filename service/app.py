"""The application: routes, the models behind them, and what surrounds every request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Route

from engines.runtime.base import Runtime

from .batches.room import Batches
from .context import Service
from .errors import ServiceError, to_response
from .idempotency import Idempotency
from .jobs.room import Jobs
from .keys import Keys
from .metrics import Metrics, package_version
from .middleware import RequestEnvelope
from .models import Models
from .pictures import FileStore
from .routes import batches, files, images, jobs, models, operations
from .settings import Settings
from .tracing import Tracing

log = logging.getLogger(__name__)

EXPOSED = (
    *("x-request-id", "etag", "server-timing", "x-model-version", "x-model-digest", "idempotent-replayed"),
    *("retry-after", "retry-after-ms", "x-should-retry", "www-authenticate"),
)
"""Headers that pages of other origins may read, the official client's among them."""


def create_app(settings: Settings, runtimes: Mapping[str, Runtime] | None = None) -> FastAPI:
    """The server as an ASGI application; its models load while it starts to answer.

    Args:
        settings: All of them.
        runtimes: Models to serve instead of loading `settings.models`.
    """
    metrics = Metrics()
    metrics.health.queue_limit.set(settings.queue_limit)
    served = Models(settings, metrics, runtimes)
    pictures = FileStore(settings.data_dir / "pictures")
    work = Jobs(settings, metrics, served)
    service = Service(
        settings,
        metrics,
        served,
        pictures,
        Keys(settings.api_keys),
        Tracing(),
        Idempotency(),
        work,
        Batches(settings, metrics, served, work),
    )
    app = FastAPI(
        title="fewstep",
        version=package_version(),
        lifespan=_lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.add_middleware(
        RequestEnvelope,
        metrics=metrics,
        max_body_bytes=settings.max_body_bytes,
        body_seconds=settings.body_seconds,
        keys=service.keys,
        max_file_bytes=settings.max_file_bytes,
        log_prompts=settings.log_prompts,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
    for kind in (ServiceError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer)
    for routes in (images, models, files, batches, operations):
        app.include_router(routes.router)
    for prefix in ("/v1/distillation", "/v1/fine_tuning"):
        app.include_router(jobs.router, prefix=prefix)
    app.include_router(jobs.teachers, prefix="/v1/distillation")
    described = Route("/openapi.json", operations.description, methods=["GET"], include_in_schema=False)
    app.router.routes.append(described)
    app.mount("/static", operations.files, name="static")
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    if not service.models.started:  # else whoever started them hears of a failure
        service.models.start().add_done_callback(_report)
    service.jobs.start()
    service.batches.start()
    yield
    await service.batches.stop()
    await service.models.drain(0)
    await asyncio.to_thread(service.jobs.stop)


def _report(loading: asyncio.Task[None]) -> None:
    if not loading.cancelled() and (error := loading.exception()) is not None:
        log.error("loading failed: %s", error)


async def _answer(request: Request, error: Exception) -> Response:
    return to_response(error)
