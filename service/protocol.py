"""HTTP on the wire: uvicorn's, which by itself waits for any head, takes any size of it, and tells clients in plain
text what was wrong with it."""

from __future__ import annotations

import asyncio
import http
import logging
from collections import deque
from typing import ClassVar

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .errors import ServiceError, to_response
from .middleware import SECURITY, new_id

log = logging.getLogger(__name__)


class Protocol(HttpToolsProtocol):
    """One connection.

    Attributes:
        head_seconds: How long the next request's line and headers may take.
        head_bytes: How large they may be.
        stuck_seconds: How long a client may take nothing of what is ready for it.
        requests_ahead: How many requests may be sent before the first of them is answered.
    """

    head_seconds: ClassVar[float] = 30.0
    head_bytes: ClassVar[int] = 64 << 10
    stuck_seconds: ClassVar[float] = 60.0
    requests_ahead: ClassVar[int] = 32

    _clock: asyncio.TimerHandle | None = None
    _reader_clock: asyncio.TimerHandle | None = None
    _in_head, _in_body, _taken = False, False, 0
    _refused: ServiceError | None = None
    """What is wrong with the last that came, to be told when all before it is answered."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._unanswered: deque[RequestResponseCycle] = deque()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for clock in (self._clock, self._reader_clock):
            _stop(clock)
        for cycle in self._unanswered:  # uvicorn tells the last of them only
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused is not None:
            return
        self._unset_keepalive_if_required()
        inside = self._in_head
        try:
            self.parser.feed_data(data)
            self._taken += len(data) if inside and self._in_head else 0
            self._check_size(self._taken)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay(data[upgrade.args[0] :])
        except (httptools.HttpParserError, ServiceError) as error:
            self._refuse(_reason(error))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._in_head, self._taken = False, 0
        _stop(self._clock)
        self._check_size(len(self.url) + sum(len(name) + len(value) for name, value in self.headers))
        self._check_headers()
        self._check_ahead()
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before:
            self._unanswered.append(self.cycle)
        self._in_body = True

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._unanswered.popleft()
        super().on_response_complete()
        if self._refused is not None:
            self._refuse(self._refused)
        elif not self._unanswered:
            self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        _stop(self._reader_clock)

    def _should_upgrade(self) -> bool:
        """So that uvicorn leaves a request that asks for another protocol to `_stay`."""
        return True

    def _stay(self, rest: bytes) -> None:
        """Reads a request again without its wish for another protocol, which a server may overlook and a client must
        not take for an answer. The parser would take the body for that protocol and lose it."""
        method, headers = self.scope["method"].encode(), b""
        if method == b"CONNECT":
            self._refuse(ServiceError("This server is no proxy.", status=405, code="method_not_allowed"))
            return
        for name, value in self.headers:
            headers += b"" if name == b"upgrade" else name + b": " + value + b"\r\n"
        self.parser = httptools.HttpRequestParser(self)
        version = self.scope["http_version"].encode()
        self.data_received(
            method + b" " + self.url + b" HTTP/" + version + b"\r\n" + headers + b"\r\n" + rest
        )

    def _check_size(self, head: int) -> None:
        """
        Raises:
            ServiceError: 431, what has come of a head is too much.
        """
        if head > self.head_bytes:
            message = f"The request line and headers are larger than {self.head_bytes} bytes."
            raise ServiceError(message, status=431, code="headers_too_large")

    def _check_headers(self) -> None:
        """What the parser overlooks, and RFC 9112 (3.2, 6.1) does not: on what host and body a request is about,
        everybody on its way must agree.

        Raises:
            ServiceError: 400.
        """
        hosts = sum(name == b"host" for name, _ in self.headers)
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise _invalid(f"An HTTP/1.1 request has one Host header; this one has {hosts}.")
        for name, value in self.headers:
            if name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                raise _invalid(f"Transfer-Encoding is chunked or absent here; this one is {value!r:.100}.")

    def _check_ahead(self) -> None:
        """
        Raises:
            ServiceError: 429, so many before it wait for their answers that memory would not be bounded.
        """
        if len(self._unanswered) >= self.requests_ahead:
            message = f"More than {self.requests_ahead} requests were sent ahead of their answers."
            raise ServiceError(message, status=429, code="too_many_requests_ahead")

    def _await_head(self) -> None:
        _stop(self._clock)
        self._clock = self.loop.call_later(self.head_seconds, self._give_up)

    def _give_up(self) -> None:
        if not self._in_head:
            self.transport.close()  # nothing is being asked
            return
        message = f"The request line and headers did not arrive within {self.head_seconds:g} s."
        self._refuse(ServiceError(message, status=408, code="headers_timeout"))

    def _watch_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._reader_clock = self.loop.call_later(self.stuck_seconds, self._look_after, left)

    def _look_after(self, left: int) -> None:
        if self.transport.get_write_buffer_size() < left:
            self._watch_reader()
        else:
            self.transport.abort()  # closing would wait for it

    def _refuse(self, error: ServiceError) -> None:
        """Answers without the application, which has not been asked, and ends the connection; after the answers to
        what came before, as a client takes them in the order of its requests."""
        if self.transport.is_closing():
            return
        if len(self._unanswered) > self._in_body:
            self._refused = error
            return
        if self._in_body and not self._unanswered:
            self.transport.close()  # its request has had an answer, and needed no body for it
            return
        request_id = new_id()
        log.info("id=%s status=%d %s", request_id, error.status, error.message)
        response = to_response(error)
        response.headers.update({**SECURITY, "x-request-id": request_id, "connection": "close"})
        self.transport.write(_on_the_wire(response))
        self.transport.close()


def _stop(clock: asyncio.TimerHandle | None) -> None:
    if clock is not None:
        clock.cancel()


def _reason(error: Exception) -> ServiceError:
    """What a callback of the parser raised is the context of what the parser raises."""
    for known in (error, error.__context__):
        if isinstance(known, ServiceError):
            return known
    return _invalid("The request is not valid HTTP/1.1.")


def _invalid(message: str) -> ServiceError:
    return ServiceError(message, code="invalid_http")


def _on_the_wire(response: Response) -> bytes:
    phrase = http.HTTPStatus(response.status_code).phrase
    lines = [f"HTTP/1.1 {response.status_code} {phrase}".encode()]
    lines += [name + b": " + value for name, value in response.raw_headers]
    return b"\r\n".join([*lines, b"", bytes(response.body)])
