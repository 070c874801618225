"""What is answered to an order: its pictures and what was used for them."""

from __future__ import annotations

import base64
import time

from .orders import Order, quality_of, written
from .schemas import ImageObject, ImagesResponse
from .usage import usage_of


def inline(order: Order, files: list[bytes]) -> list[ImageObject]:
    """The pictures, each whole within the answer."""
    return [
        ImageObject(b64_json=base64.b64encode(content).decode("ascii"), revised_prompt=None, seed=image.seed)
        for image, content in zip(order.images, files)
    ]


def answer(order: Order, data: list[ImageObject]) -> ImagesResponse:
    first = order.images[0]
    return ImagesResponse(
        created=int(time.time()),
        data=data,
        background="opaque",
        output_format=first.format,
        quality=quality_of(first.steps),
        size=written(first.size),
        usage=usage_of(order, len(order.images)),
        model=order.generator.name,
        num_inference_steps=first.steps,
    )
