"""`Idempotency-Key`: a request that is sent again gets the answer that it had."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Hashable

from starlette.responses import Response

from .caches import ByteCache
from .errors import ServiceError

HEADER = "idempotency-key"
LONGEST = 255
KEPT = ("server-timing", "etag", "x-model-version", "x-model-digest")
CAPACITY = 64 << 20
"""Bytes of answers that are kept; the oldest make room."""


class Idempotency:
    """Answers by client and key; only good ones are kept, so that a failed request can be repeated."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._answers: ByteCache[tuple[str, Response]] = ByteCache(capacity)
        self._running: dict[Hashable, asyncio.Event] = {}

    async def run(
        self, client: str, key: str, body: str, answer: Callable[[], Awaitable[Response]]
    ) -> Response:
        """The answer kept under the key, or a new one; waits while an equal request is being answered.

        Raises:
            ServiceError: 400, the key is too long; 422, it was used for another request.
        """
        if not 0 < len(key) <= LONGEST:
            raise ServiceError(f"An Idempotency-Key has 1 to {LONGEST} characters.", code="invalid_value")
        name, digest = (client, key), hashlib.sha256(body.encode("utf-8", "surrogatepass")).hexdigest()
        while name in self._running:
            await self._running[name].wait()
        if kept := self._answers.get(name):
            return _same(kept, digest)
        self._running[name] = done = asyncio.Event()
        try:
            response = await answer()
            self._answers.put(name, (digest, response), len(response.body))
            return response
        finally:
            del self._running[name]
            done.set()


def _same(kept: tuple[str, Response], digest: str) -> Response:
    if kept[0] != digest:
        message = "This Idempotency-Key was used for a request with other fields."
        raise ServiceError(message, status=422, code="idempotency_key_reused")
    response = kept[1]
    headers = {name: response.headers[name] for name in KEPT}
    return Response(
        response.body, headers={**headers, "Idempotent-Replayed": "true"}, media_type="application/json"
    )
