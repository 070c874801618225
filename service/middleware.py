"""Around every request: an id, a size limit, a log line, a count, and an answer whatever happens."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import SHOWN, ClientGoneError, ServiceError, to_response
from .keys import Keys
from .metrics import Metrics

log = logging.getLogger(__name__)

DISCARDED_BYTES = 16 << 20
"""Up to here a body that is too large is read and thrown away, so that its sender hears of it."""
QUIET = ("/health", "/metrics", "/static")
"""Polled paths: logged at debug level only."""


FILES = "/v1/images/files/"
"""Pictures under unguessable names: whoever has the address may see them."""
UPLOADS = "/v1/files"
SLOWEST = 16 << 10
"""Bytes of a file in each second that it takes beyond `body_seconds`."""
MULTIPART_BYTES = 64 << 10
"""What a form has beside its file."""
SECURITY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


SECURITY_PAIRS = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in SECURITY.items()]


class RequestEnvelope:
    """ASGI middleware; routes find `request_id`, `started` and `model` in `request.state`, and leave the status
    of what ended an answer that had begun as `failed`."""

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        max_body_bytes: int,
        body_seconds: float,
        keys: Keys | None = None,
        max_file_bytes: int = 64 << 20,
        log_prompts: bool = False,
    ) -> None:
        self._app, self._metrics, self._log_prompts = app, metrics, log_prompts
        self._keys = keys or Keys(None)
        self._max_file_bytes = max_file_bytes
        self._max_body_bytes, self._body_seconds = max_body_bytes, body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope, method = _head_as_get(scope), scope["method"]
        state = scope.setdefault("state", {})
        state |= {
            "request_id": new_id(),
            "started": time.perf_counter(),
            "model": "",
        }
        response = _Response(send, state["request_id"])
        try:
            self._identify(scope, state)
            body = await self._whole_body(scope, receive)
            await self._app(scope, body, response.send)
        except ClientGoneError:
            log.debug("id=%s the client left", state["request_id"])
        except Exception as error:
            if not isinstance(error, ServiceError):
                log.exception("id=%s failed", state["request_id"])
            if response.status is not None:
                state["failed"] = 500
                raise
            await to_response(error)(scope, receive, response.send)
        finally:
            self._account(scope, method, state.get("failed", response.told))

    async def _whole_body(self, scope: Scope, receive: Receive) -> Receive:
        """
        Raises:
            ServiceError: 415, the body is packed; 413, it is too large; 408, it does not come, or not before the
                server ends.
            ClientGoneError: the connection ended first.
        """
        _check_encoding(scope)
        try:
            if scope["path"] == UPLOADS:
                return self._bounded(scope, receive)
            async with asyncio.timeout(self._body_seconds):
                return await _whole_body(scope, receive, self._max_body_bytes)
        except (TimeoutError, asyncio.CancelledError) as error:
            raise _too_slow(self._body_seconds) from error

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Of a file, which may be large: passed on as it comes, as long as it comes at a bearable speed."""
        limit, began = self._max_file_bytes + MULTIPART_BYTES, time.perf_counter()
        _check_declared(scope, limit)
        taken, more = 0, True

        async def receive_some() -> Message:
            nonlocal taken, more
            left = began + self._body_seconds + taken / SLOWEST - time.perf_counter()
            try:
                async with asyncio.timeout(left if more else None):
                    message = await receive()
            except TimeoutError as error:
                raise _too_slow(self._body_seconds) from error
            taken, more = taken + len(message.get("body", b"")), message.get("more_body", False)
            if taken > limit:
                raise _too_large(limit)
            return message

        return receive_some

    def _identify(self, scope: Scope, state: dict[str, Any]) -> None:
        """Before the body is read, so that a stranger cannot make the server take it in.

        Raises:
            ServiceError: 401, the key is missing or wrong.
        """
        path = scope["path"]
        if path.startswith("/v1/") and not path.startswith(FILES) and scope["method"] != "OPTIONS":
            key = self._keys.check(Headers(scope=scope).get("authorization", ""))
            state |= {"key": key, "client": key.name if key else ""}

    def _account(self, scope: Scope, method: str, status: int | None) -> None:
        state: dict[str, Any] = scope["state"]
        route = _template(scope)
        if scope["path"].startswith("/v1/"):
            self._metrics.requests.labels(state["model"], route, outcome(status)).inc()
        if state.get("version"):
            model, _, number = state["version"].rpartition("@")
            self._metrics.version_requests.labels(model, number, outcome(status)).inc()
        fields = {
            "id": state["request_id"],
            "method": method,
            "route": route,
            "status": status,
            "model": state["model"] or "-",
            "ms": round(1000 * (time.perf_counter() - state["started"]), 1),
        }
        if state.get("client"):
            fields["client"] = state["client"]
        if self._log_prompts and "prompt" in state:
            fields["prompt"] = state["prompt"]
        log.log(
            logging.DEBUG if scope["path"].startswith(QUIET) else logging.INFO,
            " ".join(f"{name}=%s" for name in fields),
            *fields.values(),
            extra={"fields": fields},
        )


def new_id() -> str:
    return f"req_{random.getrandbits(128):032x}"


def _template(scope: Scope) -> str:
    """Of the path, as in the API's description; a route of an included router lacks the prefix of its router."""
    template: str = getattr(scope.get("route"), "path_format", "unmatched")
    if not template.startswith("/") or scope["path"].startswith(template.split("{")[0]):
        return template
    above = scope["path"].count("/") - template.count("/")
    return "/".join(scope["path"].split("/")[: above + 1]) + template


class _Response:
    """Passes a response on, with the request's id, and remembers its status.

    Attributes:
        status: Known once the answer begins.
        told: The same, once all of the answer has been sent.
    """

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._request_id = send, request_id
        self.status: int | None = None
        self.told: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = message.get("headers", ())
            present = {name.lower() for name, _ in headers}
            own = [pair for pair in SECURITY_PAIRS if pair[0] not in present]
            message["headers"] = [*headers, (b"x-request-id", self._request_id.encode("latin-1")), *own]
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.told = self.status


def _head_as_get(scope: Scope) -> Scope:
    """HEAD is answered as GET; the server itself leaves the body out."""
    return {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope


async def _whole_body(scope: Scope, receive: Receive, limit: int) -> Receive:
    """Reads the body, at most `limit` bytes of it, and returns a `receive` that yields it again."""
    if limit < _declared(scope) <= DISCARDED_BYTES:
        await _discard(receive)
    _check_declared(scope, limit)
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        more = message.get("more_body", False)
    replay: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def receive_again() -> Message:
        return replay.pop() if replay else await receive()

    return receive_again


async def _discard(receive: Receive) -> None:
    """Takes in the rest of a body: a connection that is closed on a client that still writes is reset, and
    what was answered is lost with it."""
    while (message := await receive())["type"] != "http.disconnect" and message.get("more_body", False):
        pass


def _too_slow(seconds: float) -> ServiceError:
    message = f"The body did not arrive within {seconds:g} s."
    return ServiceError(message, status=408, code="body_timeout", headers={"Connection": "close"})


def _check_encoding(scope: Scope) -> None:
    encoding = Headers(scope=scope).get("content-encoding", "")
    if encoding.strip().lower() not in ("", "identity"):
        message = f"A body in Content-Encoding '{encoding[:SHOWN]}' is not accepted; send it as it is."
        headers = {"Accept-Encoding": "identity"}
        raise ServiceError(message, status=415, code="unsupported_encoding", headers=headers)


def _check_declared(scope: Scope, limit: int) -> None:
    if _declared(scope) > limit:
        raise _too_large(limit)


def _declared(scope: Scope) -> int:
    """Bytes of the body, as its sender says; 0 if it does not."""
    declared = Headers(scope=scope).get("content-length", "")
    return int(declared) if declared.isdigit() else 0


def _too_large(limit: int) -> ServiceError:
    message = f"The body is larger than {limit} bytes."
    return ServiceError(message, status=413, code="body_too_large", headers={"Connection": "close"})


def outcome(status: int | None) -> str:
    """The label of `fewstep_requests_total`; no status means that the client left."""
    if status is None:
        return "cancelled"
    named = {429: "rejected", 503: "rejected", 504: "expired"}
    return named.get(status) or ("ok" if status < 400 else "invalid" if status < 500 else "error")
