"""`POST /v1/images/generations`, and the files that it may point to."""

from __future__ import annotations

import asyncio
import base64
import re
import secrets
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response

from engines.bundle import Size
from engines.runtime.sampler import MAX_SEED

from ..context import InService, Service
from ..errors import ServiceError, invalid
from ..generator import STAGES, Generator
from ..image import Image
from ..pictures import MEDIA_TYPES, Format
from ..schemas import (
    ErrorObject,
    ImageObject,
    ImagesRequest,
    ImagesResponse,
    InputTokens,
    OutputTokens,
    Quality,
    Usage,
)

router = APIRouter(tags=["images"])

STEPS = {"low": 1, "medium": 2, "standard": 2, "high": 4, "hd": 4, "auto": 4}
RANDOM_SEEDS = 2**31
"""Drawn seeds stay small enough for a JavaScript client to repeat exactly."""
ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorObject}, "5XX": {"model": ErrorObject}}


@router.post("/v1/images/generations", response_model=ImagesResponse, responses=ERRORS)
async def generate(body: ImagesRequest, request: Request, service: InService) -> Response:
    """Draws pictures. The same seed gives the same picture whatever else the server is doing."""
    generator = service.models.get(body.model)
    request.state.model = generator.name
    images = _images(body, generator, service)
    generator.submit(images)
    files = await _finished(images, body.deadline_ms, request.state.started)
    data = await asyncio.to_thread(_data, images, files, body.response_format or "b64_json", request, service)
    response = _response(body, generator, images, data)
    service.metrics.request_seconds.observe(time.perf_counter() - request.state.started)
    content, headers = response.model_dump_json(exclude_unset=True), {"Server-Timing": _server_timing(images)}
    return Response(content, headers=headers, media_type="application/json")


@router.get("/v1/images/files/{name}", response_class=FileResponse, responses=ERRORS)
async def image_file(name: str, service: InService) -> FileResponse:
    """A picture made with `response_format: url`; its address works for an hour."""
    path = await asyncio.to_thread(service.files.find, name)
    headers = {"Cache-Control": "private, max-age=3600, immutable", "X-Content-Type-Options": "nosniff"}
    return FileResponse(path, media_type=MEDIA_TYPES[path.suffix[1:]], headers=headers)


def _images(body: ImagesRequest, generator: Generator, service: Service) -> list[Image]:
    """The pictures that a request asks of a model.

    Raises:
        ServiceError: the model or the server cannot do it; says what they can.
    """
    count, format = body.n or 1, body.output_format or "png"
    length, limit = len(body.prompt), service.settings.max_prompt_chars
    if length > limit:
        raise invalid("prompt", f"The prompt has {length} characters; at most {limit} are accepted.")
    if count > service.settings.queue_limit:
        raise invalid("n", f"This server takes at most {service.settings.queue_limit} images at once.")
    size, steps, seed = _size(body, generator), _steps(body, generator), _seed(body, count)
    compression = _compression(body, format)
    return [
        Image(body.prompt, seed + index, steps, size, format=format, compression=compression)
        for index in range(count)
    ]


def _size(body: ImagesRequest, generator: Generator) -> Size:
    if body.size in (None, "auto"):
        return generator.runtime.bundle.spec.default_size
    sizes = {written(size): size for size in generator.sizes}
    if body.size not in sizes:
        raise invalid("size", f"Invalid 'size': '{generator.name}' makes {', '.join(sizes)}, or auto.")
    return sizes[body.size]


def _steps(body: ImagesRequest, generator: Generator) -> int:
    """The step count asked for, or the model's nearest to the quality asked for from below."""
    supported = generator.steps
    if body.num_inference_steps is None:
        wanted = STEPS[body.quality or "auto"]
        return max((steps for steps in supported if steps <= wanted), default=supported[0])
    if body.num_inference_steps not in supported:
        message = f"Invalid 'num_inference_steps': '{generator.name}' takes {', '.join(map(str, supported))}."
        raise invalid("num_inference_steps", message)
    return body.num_inference_steps


def _seed(body: ImagesRequest, count: int) -> int:
    if body.seed is None:
        return secrets.randbelow(RANDOM_SEEDS)
    if body.seed + count - 1 > MAX_SEED:
        message = f"Invalid 'seed': the last of {count} images would have one above {MAX_SEED}."
        raise invalid("seed", message)
    return body.seed


def _compression(body: ImagesRequest, format: Format) -> int:
    compression = 100 if body.output_compression is None else body.output_compression
    if format == "png" and compression < 100:
        message = "Invalid 'output_compression': png is lossless; use jpeg or webp."
        raise invalid("output_compression", message)
    return compression


async def _finished(images: list[Image], deadline_ms: int | None, started: float) -> list[bytes]:
    """The files of all images.

    Raises:
        ServiceError: 504, the deadline passed first.
    """
    files = asyncio.gather(*(asyncio.wrap_future(image.file) for image in images), return_exceptions=True)
    remaining = None if deadline_ms is None else started + deadline_ms / 1000 - time.perf_counter()
    try:
        outcomes = await asyncio.wait_for(files, remaining)
    except TimeoutError:
        message = f"The pictures were not ready within {deadline_ms} ms."
        # The official client would otherwise send the request again, which is late already.
        headers = {"x-should-retry": "false"}
        raise ServiceError(
            message, status=504, param="deadline_ms", code="deadline_exceeded", headers=headers
        ) from None
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, bytes)]


def _data(
    images: list[Image], files: list[bytes], response_format: str, request: Request, service: Service
) -> list[ImageObject]:
    def entry(image: Image, content: bytes) -> ImageObject:
        if response_format == "b64_json":
            encoded = base64.b64encode(content).decode("ascii")
            return ImageObject(b64_json=encoded, revised_prompt=None, seed=image.seed)
        url = request.url_for("image_file", name=service.files.put(content, image.format))
        return ImageObject(url=str(url), revised_prompt=None, seed=image.seed)

    return [entry(image, content) for image, content in zip(images, files)]


def _response(
    body: ImagesRequest, generator: Generator, images: list[Image], data: list[ImageObject]
) -> ImagesResponse:
    first = images[0]
    return ImagesResponse(
        created=int(time.time()),
        data=data,
        background="opaque",
        output_format=first.format,
        quality=_quality(first.steps),
        size=written(first.size),
        usage=_usage(body.prompt, images, generator),
        model=generator.name,
        num_inference_steps=first.steps,
    )


def _quality(steps: int) -> Quality:
    return "high" if steps >= STEPS["high"] else "medium" if steps >= STEPS["medium"] else "low"


def _usage(prompt: str, images: list[Image], generator: Generator) -> Usage:
    # Words and marks stand for tokens: a runtime takes prompts and does not say how it cuts them.
    text = len(re.findall(r"\w+|[^\w\s]", prompt))
    _, height, width = generator.runtime.bundle.spec.latent_shape(images[0].size)
    pictures = len(images) * height * width
    return Usage(
        input_tokens=text,
        output_tokens=pictures,
        total_tokens=text + pictures,
        input_tokens_details=InputTokens(text_tokens=text, image_tokens=0),
        output_tokens_details=OutputTokens(text_tokens=0, image_tokens=pictures),
    )


def _server_timing(images: list[Image]) -> str:
    """Of the image that took longest, so that the parts add up to what the client waited for."""
    slowest = max(images, key=lambda image: sum(image.seconds.values()))
    return ", ".join(
        f"{stage};dur={1000 * slowest.seconds.get(stage, 0.0):.2f}" for stage in ("queue", *STAGES)
    )


def written(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
