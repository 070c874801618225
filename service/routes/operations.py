"""What operators and their tools ask for: health, metrics, and the pages for people."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client.exposition import choose_encoder
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import Receive, Scope, Send

from ..context import InService
from ..schemas import Health

router = APIRouter(tags=["operations"])

STATIC = Path(__file__).parent.parent / "static"

files = GZipMiddleware(StaticFiles(directory=STATIC))
"""What the pages are made of, under `/static`; browsers ask each time whether it has changed."""


async def _describe(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse(scope["app"].openapi())(scope, receive, send)


description = GZipMiddleware(_describe)
"""The API, as OpenAPI; larger than all of the page."""


@router.get("/health/live")
async def live() -> Health:
    """The process is up."""
    return Health(status="live")


@router.get("/health/ready", responses={503: {"model": Health}})
async def ready(response: Response, service: InService) -> Health:
    """Every model has been loaded and has produced pictures, and the server is not shutting down."""
    models = service.models
    response.status_code = 200 if models.status == "ready" else 503
    return Health.model_validate(
        {"status": models.status, "models": {n: models.state(n) for n in models.catalogue.names}}
    )


@router.get("/metrics", response_class=Response)
async def metrics(request: Request, service: InService) -> Response:
    """Prometheus text, or OpenMetrics when the client prefers it."""
    try:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
    except (TypeError, ValueError):  # a version that is none
        encode, media_type = choose_encoder("")
    models = service.models
    states = {name: models.state(name) for name in models.catalogue.names}
    draws = {name: state == "ready" for name, state in states.items() if state != "unloaded"}
    service.metrics.health.report(models.status == "ready", draws)
    return Response(encode(service.metrics.registry), headers={"Content-Type": media_type})


@router.get("/", include_in_schema=False)
@router.get("/docs", include_in_schema=False)
async def page() -> FileResponse:
    """At `/docs` it opens with the description of the API."""
    return FileResponse(STATIC / "index.html")
