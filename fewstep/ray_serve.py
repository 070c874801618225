"""The server on a Ray cluster: an ingress in front of replicas, each of which is the whole application."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service.app import create_app
from service.errors import ServiceError, to_response
from service.models import Models
from service.settings import read_settings

log = logging.getLogger(__name__)

LOST = (ActorDiedError, ActorUnavailableError)
"""A replica that ended, or cannot be reached, with a request inside."""
BUSY = (BackPressureError, DeploymentUnavailableError)
TRIES = 4
REPEATABLE = ("/v1/images/generations",)
"""What may be asked for again though it is not a GET: to draw a picture changes nothing else."""

Message = MutableMapping[str, Any]


@dataclass(frozen=True)
class Forwarded:
    """A request on its way from the ingress to a replica."""

    method: str
    path: str
    query: bytes
    headers: list[tuple[bytes, bytes]]
    client: tuple[str, int] | None
    body: bytes

    @property
    def repeatable(self) -> bool:
        return self.method in ("GET", "HEAD", "OPTIONS") or self.path in REPEATABLE

    def scope(self) -> Message:
        """As an ASGI server would give it to the application."""
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": self.method,
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "query_string": self.query,
            "headers": self.headers,
            "client": self.client,
            "server": None,
        }


@dataclass(frozen=True)
class Head:
    """What an answer begins with; the rest of its body follows, piece by piece."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Engine:
    """One replica: models, phases, admission and routes of one server, without its socket."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._app = create_app(read_settings(**settings))
        self._models: Models = self._app.state.service.models

    async def answer(self, request: Forwarded) -> AsyncIterator[Head | bytes]:
        """A `Head`, then the rest of the body; whoever stops listening is a client that left."""
        await self._models.start()
        sent: asyncio.Queue[Message | None] = asyncio.Queue()
        gone, body = asyncio.Event(), [request.body]

        async def receive() -> Message:
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        running = asyncio.create_task(self._app(request.scope(), receive, sent.put))
        running.add_done_callback(lambda _: sent.put_nowait(None))
        try:
            start = await sent.get()
            while (message := await sent.get()) is not None:
                piece = message.get("body", b"")
                yield Head(start["status"], start["headers"], piece) if start else piece
                start = None
        finally:
            gone.set()
            with suppress(Exception):  # it has been logged, and there is nobody to tell
                await running

    async def check_health(self) -> None:
        """Asked by Ray before a replica gets requests and from then on; one that raises is replaced.

        Raises:
            ServiceError: a model cannot be served, or its engine does not draw.
        """
        await asyncio.shield(self._models.start())
        if self._models.status in ("failed", "stalled"):
            raise ServiceError(f"the replica is {self._models.status}", status=503)


class Ingress:
    """Hands each request to a replica, and to another one when that is lost before it answers."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine.options(stream=True)

    async def __call__(self, request: Request) -> Response:
        forwarded = Forwarded(
            request.method,
            request.url.path,
            request.scope["query_string"],
            list(request.headers.raw),
            (request.client.host, request.client.port) if request.client else None,
            await request.body(),
        )
        try:
            head, rest = await self._first(forwarded)
        except ServiceError as error:
            return to_response(error)
        if b"content-length" in dict(head.headers):
            response = Response(head.body, head.status)
        else:
            response = StreamingResponse(_whole(head, rest), head.status)
        response.raw_headers = head.headers
        return response

    async def _first(self, forwarded: Forwarded) -> tuple[Head, Any]:
        """
        Raises:
            ServiceError: 503, no replica has answered.
        """
        for attempt in range(1, TRIES + 1):
            rest = self._engine.answer.remote(forwarded)
            try:
                return await anext(rest), rest
            except LOST as error:
                log.warning("a replica was lost with %s %s: %s", forwarded.method, forwarded.path, error)
                if not forwarded.repeatable or attempt == TRIES:
                    break
            except BUSY as error:
                raise _unavailable("All replicas are busy.", "queue_full") from error
        raise _unavailable("The replica that had this request was lost.", "replica_lost")


async def _whole(head: Head, rest: Any) -> AsyncIterator[bytes]:
    """A stream; what comes after a loss is an error event, as some of it has been sent."""
    yield head.body
    try:
        async for piece in rest:
            yield piece
    except LOST:
        error = _unavailable("The replica that had this request was lost.", "replica_lost")
        content = bytes(to_response(error).body)
        yield b"event: error\ndata: " + json.dumps(json.loads(content)).encode() + b"\n\n"


def _unavailable(message: str, code: str) -> ServiceError:
    return ServiceError(message, status=503, code=code, headers={"Retry-After": "1"})


def build(arguments: dict[str, Any]) -> Any:
    """The Ray Serve application, for `serve run` and `serve deploy`.

    Args:
        arguments: `settings`: those of `fewstep serve`, the same for each replica. How many replicas and
            GPUs a replica are set under `deployments` of the same file.
    """
    settings = dict(arguments.get("settings") or {})
    read_settings(**settings)  # a wrong one ends the deployment here and not in each replica
    engine = serve.deployment(Engine, name="Engine", max_ongoing_requests=512)
    ingress = serve.deployment(Ingress, name="Ingress", max_ongoing_requests=2048)
    return ingress.bind(engine.bind(settings))
