"""A small HTTP/1.1 client for load, so that the time of sending a request is not taken for the server's.

Connections are kept and used again. Answers need a length or chunks, as all servers send that keep connections.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import httptools
import uvicorn

from service.errors import ServiceError

T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """
    Attributes:
        headers: By lower-case name.
    """

    status: int
    headers: dict[str, str]
    body: bytes


class Connection(asyncio.Protocol):
    """One request after another, each with its answer.

    Attributes:
        reusable: Whether another request may be sent.
    """

    def __init__(self) -> None:
        self.reusable = True
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Reply] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    async def ask(self, request: bytes) -> Reply:
        """
        Raises:
            ConnectionError: the connection ended first, or what came is not HTTP.
        """
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._body = dict[str, str](), list[bytes]()
        self._answer, self.reusable = asyncio.get_running_loop().create_future(), False
        self._transport.write(request)
        try:
            return await self._answer
        finally:
            if not self.reusable:
                self.close()

    def close(self) -> None:
        self.reusable = False
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not an answer in HTTP: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        self.reusable = False
        self._fail("the connection ended before the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self.reusable = self._parser.should_keep_alive()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(
                Reply(self._parser.get_status_code(), self._headers, b"".join(self._body))
            )

    def _fail(self, why: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError(why))


class Http:
    """Requests to one server, over as many connections as are needed at once."""

    def __init__(self, url: str, headers: Mapping[str, str], timeout: float) -> None:
        """
        Raises:
            ServiceError: it is not the address of a server.
        """
        self._host, self._port, self._tls, self._base = _parts(url)
        self._headers = {"Host": urlsplit(url).netloc, "Accept": "*/*", **headers}
        self._timeout = timeout
        self._free: list[Connection] = []

    async def request(
        self, method: str, path: str, content: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Reply:
        """
        Raises:
            OSError: no connection, or it ended before the answer; `TimeoutError` is one.
        """
        sent = {**self._headers, **(headers or {}), "Content-Length": str(len(content))}
        lines = [
            f"{method} {self._base}{path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in sent.items()),
        ]
        async with asyncio.timeout(self._timeout):
            return await self._ask("\r\n".join([*lines, "", ""]).encode("latin-1") + content)

    async def close(self) -> None:
        for connection in self._free:
            connection.close()
        await asyncio.sleep(0)  # in which the transports close

    async def _ask(self, request: bytes) -> Reply:
        while True:
            kept = self._kept()
            connection = kept or await self._connect()
            try:
                reply = await connection.ask(request)
            except ConnectionError:
                if kept is None:
                    raise
                continue  # it had been idle for too long: the server closed it as the request left
            if connection.reusable:
                self._free.append(connection)
            return reply

    def _kept(self) -> Connection | None:
        while self._free:
            if (connection := self._free.pop()).reusable:
                return connection
        return None

    async def _connect(self) -> Connection:
        context = ssl.create_default_context() if self._tls else None
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Connection, self._host, self._port, ssl=context))[1]


def run(main: Coroutine[Any, Any, T]) -> T:
    """On the event loop that the server uses, too."""
    factory = uvicorn.Config(app="", log_config=None).get_loop_factory()
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def _parts(url: str) -> tuple[str, int, bool, str]:
    try:
        parts = urlsplit(url)
        host, port, tls = parts.hostname, parts.port, parts.scheme == "https"
    except ValueError as error:
        raise ServiceError(f"{url}: {error}; expected http://HOST:PORT") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ServiceError(f"{url} is no address of a server: expected http://HOST:PORT")
    return host, port or (443 if tls else 80), tls, parts.path.rstrip("/")
