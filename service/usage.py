"""What a request used, in OpenAI's terms, and where its time went."""

from __future__ import annotations

import re

from .generator import STAGES
from .image import Image
from .orders import Order
from .schemas import InputTokens, OutputTokens, Usage


def usage_of(order: Order, pictures: int) -> Usage:
    """Of `pictures` pictures of an order."""
    # Words and marks stand for tokens: a runtime takes prompts and does not say how it cuts them.
    text = len(re.findall(r"\w+|[^\w\s]", order.body.prompt))
    _, height, width = order.generator.engine.spec.latent_shape(order.images[0].size)
    positions = pictures * height * width
    return Usage(
        input_tokens=text,
        output_tokens=positions,
        total_tokens=text + positions,
        input_tokens_details=InputTokens(text_tokens=text, image_tokens=0),
        output_tokens_details=OutputTokens(text_tokens=0, image_tokens=positions),
    )


def timing_of(image: Image) -> dict[str, float]:
    """Milliseconds by phase of a finished image; `queue` is the time in which nothing worked on it."""
    return {stage: round(1000 * image.seconds.get(stage, 0.0), 2) for stage in ("queue", *STAGES)}
