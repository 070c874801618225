"""The load's own HTTP client against sockets that answer well, badly and not at all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from fewstep.bench.http import Http, Reply, run
from service.errors import ServiceError

FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Which: a\r\n\r\nhi"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def whole_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(length)


async def against(serve: Serve, work: Callable[[Http], Awaitable[None]], timeout: float = 5.0) -> int:
    """Runs `work` with a client of a server; how many connections it made."""
    made = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal made
        made += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    client = Http(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base/", {"X-All": "1"}, timeout)
    try:
        await work(client)
    finally:
        await client.close()
        server.close()
    return made


def answering(*answers: bytes, seen: list[bytes] | None = None) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            request = await whole_request(reader)
            if seen is not None:
                seen.append(request)
            writer.write(answer)
        await writer.drain()

    return serve


def test_requests_and_answers_over_one_connection() -> None:
    seen: list[bytes] = []
    replies: list[Reply] = []

    async def work(client: Http) -> None:
        replies.append(await client.request("POST", "/a", b'{"x": 1}'))
        replies.append(await client.request("GET", "/b", headers={"Accept": "text/plain"}))

    assert run(against(answering(FINE, FINE, seen=seen), work)) == 1
    assert replies == [Reply(200, {"content-length": "2", "x-which": "a"}, b"hi")] * 2
    assert seen[0].startswith(b"POST /base/a HTTP/1.1\r\nHost: 127.0.0.1:")
    assert seen[0].endswith(b'Content-Length: 8\r\n\r\n{"x": 1}')
    assert (seen[0].count(b"X-All: 1"), seen[0].count(b"Accept: */*")) == (1, 1)
    assert (seen[1].count(b"Accept"), seen[1].count(b"Accept: text/plain")) == (1, 1)


@hypothesis_settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.integers(1, 30))
def test_answers_in_chunks_and_in_pieces(parts: list[bytes], piece: int) -> None:
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    answer = b"HTTP/1.1 429 Too Many\r\nTransfer-Encoding: chunked\r\n\r\n" + body

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await whole_request(reader)
        for begin in range(0, len(answer), piece):
            writer.write(answer[begin : begin + piece])
            await asyncio.sleep(0)
        await writer.drain()

    async def work(client: Http) -> None:
        reply = await client.request("GET", "/")
        assert (reply.status, reply.body) == (429, b"".join(parts))

    asyncio.run(against(serve, work))


def test_as_many_connections_as_are_needed_at_once() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await whole_request(reader)
            await asyncio.sleep(0.05)
            writer.write(FINE)

    async def work(client: Http) -> None:
        for _ in range(2):
            await asyncio.gather(*(client.request("GET", "/") for _ in range(5)))

    assert asyncio.run(against(serve, work)) == 5


def test_a_connection_that_the_server_gives_up_is_replaced() -> None:
    closing = FINE.replace(b"X-Which: a", b"Connection: close")

    async def work(client: Http) -> None:
        for _ in range(3):
            assert (await client.request("GET", "/")).body == b"hi"

    assert asyncio.run(against(answering(FINE), work)) == 3, "closed without a word"
    assert asyncio.run(against(answering(closing), work)) == 3, "closed as it said"


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", b"SSH-2.0\r\n\r\n"]
)
def test_answers_that_are_none(answer: bytes) -> None:
    async def work(client: Http) -> None:
        with pytest.raises(ConnectionError):
            await client.request("GET", "/")

    assert asyncio.run(against(answering(answer), work)) == 1


def test_a_silent_server_and_none() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def work(client: Http) -> None:
        with pytest.raises(TimeoutError):
            await client.request("GET", "/")

    asyncio.run(against(silent, work, timeout=0.1))
    with pytest.raises(OSError, match="9"):
        asyncio.run(Http("http://127.0.0.1:9", {}, 5).request("GET", "/"))


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://a", "http://", "http://a:b", "http://a:99999", ""])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ServiceError, match="http://HOST:PORT"):
        Http(url, {}, 5)
