"""`POST /v1/images/generations`, and the files that it may point to."""

from __future__ import annotations

import asyncio
import math
import re
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response, StreamingResponse

from ..answers import answer, inline
from ..context import FIELDS_ONCE, InService, Service
from ..errors import ServiceError
from ..hosting import Hosted
from ..idempotency import HEADER
from ..image import Image
from ..keys import Key
from ..orders import Order, lot_of, read_order
from ..pictures import MEDIA_TYPES
from ..schemas import ErrorObject, ImageObject, ImagesRequest, ImagesResponse
from ..streaming import Stream, check_stream
from ..usage import timing_of
from ..versions import Version

router = APIRouter(tags=["images"])

PATIENCE = re.compile(r"\d{1,6}(\.\d{1,6})?")
INLINE_BYTES = 1 << 17
"""Pictures are encoded in the event loop up to here, which takes less time than the way to a thread and back."""
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorObject}, "5XX": {"model": ErrorObject}}


@router.post(
    "/v1/images/generations", response_model=ImagesResponse, responses=ERRORS, dependencies=[FIELDS_ONCE]
)
async def generate(body: ImagesRequest, request: Request, service: InService) -> Response:
    """Draws pictures. The same seed gives the same picture whatever else the server is doing."""
    request.state.prompt = body.prompt
    async with service.models.use(body.model, lot_of(body, request.headers.get(HEADER))) as hosted:
        request.state.model, request.state.version = hosted.generator.name, hosted.version.id
        return await _answered(body, hosted, request, service)


async def _answered(body: ImagesRequest, hosted: Hosted, request: Request, service: Service) -> Response:
    client, deadline, generator = client_of(body, request), deadline_of(body, request), hosted.generator
    order = read_order(body, generator, service.settings, client=client, deadline=deadline)
    known = request.headers.get("if-none-match")
    if known and body.seed is not None and order.etag in _tags(known):
        raise ServiceError("You have these pictures already.", status=412, code="not_modified")
    check_stream(body.partial_images or 0, bool(body.stream), body.response_format)
    if body.stream:
        return _streamed(order, hosted.version, service, request)
    key = request.headers.get(HEADER)
    if key is None:
        return await _drawn(order, hosted.version, service, request)
    return await service.idempotency.run(
        client, key, body.model_dump_json(), lambda: _drawn(order, hosted.version, service, request)
    )


async def _drawn(order: Order, version: Version, service: Service, request: Request) -> Response:
    _submit(order, service, request.state.key)
    files = await order.files(disconnected(request))
    if order.body.response_format == "url" or sum(map(len, files)) > INLINE_BYTES:
        data = await asyncio.to_thread(_data, order, files, request, service)
    else:
        data = _data(order, files, request, service)
    _note(order, service, request)
    content = answer(order, data).model_dump_json(exclude_unset=True)
    headers = {"Server-Timing": _server_timing(order.images), "ETag": order.etag, **_told(version)}
    return Response(content, headers=headers, media_type="application/json")


def _submit(order: Order, service: Service, key: Key | None) -> None:
    step_images = order.steps * len(order.images)
    service.keys.spend(key, step_images)
    try:
        order.submit()
    except ServiceError:
        service.keys.refund(key, step_images)
        raise


def _streamed(order: Order, version: Version, service: Service, request: Request) -> Response:
    def end(error: ServiceError | None) -> None:
        if error is None:
            _note(order, service, request)
        else:
            request.state.failed = error.status

    stream = Stream(order, order.body.partial_images or 0, end)
    _submit(order, service, request.state.key)
    headers = {"Cache-Control": "no-store", **_told(version)}
    return StreamingResponse(stream.events(), media_type="text/event-stream", headers=headers)


def _note(order: Order, service: Service, request: Request) -> None:
    """What a request took, once its pictures are there."""
    started: float = request.state.started
    service.metrics.request_seconds.observe(time.perf_counter() - started)
    attributes = {"model": order.generator.name, "steps": order.steps, "images": len(order.images)}
    service.tracing.record(request.headers, order.images, started, attributes)


def _told(version: Version) -> dict[str, str]:
    """Which bundle draws the pictures; a request may name the version to have it again."""
    return {"X-Model-Version": version.id, "X-Model-Digest": version.digest}


@router.get("/v1/images/files/{name}", response_class=FileResponse, responses=ERRORS)
async def image_file(name: str, service: InService) -> FileResponse:
    """A picture made with `response_format: url`; its address works for an hour."""
    path = await asyncio.to_thread(service.files.find, name)
    headers = {"Cache-Control": "private, max-age=3600, immutable", "X-Content-Type-Options": "nosniff"}
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix[1:]], headers=headers)


def deadline_of(body: ImagesRequest, request: Request) -> float:
    """When the answer is of no use any more, on the clock of `time.perf_counter`.

    Without a deadline of its own a request has the client's patience: the official client tells how
    long it waits for an answer.
    """
    started: float = request.state.started
    if body.deadline_ms is not None:
        return started + body.deadline_ms / 1000
    if body.stream:  # there it is how long it bears silence
        return math.inf
    patience = request.headers.get("x-stainless-read-timeout", "")
    return started + float(patience) if PATIENCE.fullmatch(patience) else math.inf


def _tags(header: str) -> list[str]:
    """Of an `If-None-Match`; a proxy that packs what it passes on makes them weak."""
    return [tag.strip().removeprefix("W/") for tag in header.split(",")]


def client_of(body: ImagesRequest, request: Request) -> str:
    """With whom the request shares: its API key's owner, or the user that it names."""
    return getattr(request.state, "client", "") or body.user or ""


async def disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _data(order: Order, files: list[bytes], request: Request, service: Service) -> list[ImageObject]:
    if order.body.response_format != "url":
        return inline(order, files)
    return [
        ImageObject(
            url=str(request.url_for("image_file", name=service.files.put(content, image.format))),
            revised_prompt=None,
            seed=image.seed,
        )
        for image, content in zip(order.images, files)
    ]


def _server_timing(images: list[Image]) -> str:
    """Of the image that took longest, so that the parts add up to what the client waited for."""
    slowest = max(images, key=lambda image: sum(image.seconds.values()))
    return ", ".join(f"{stage};dur={ms:.2f}" for stage, ms in timing_of(slowest).items())
