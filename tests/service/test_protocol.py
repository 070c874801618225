"""What comes over a socket and is no good HTTP: answered in OpenAI's form, and in bounded time and memory."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Any

import httpx
import pytest

from service.protocol import Protocol
from service.settings import Settings

from .fake_runtime import FakeRuntime
from .running import Running, run_server, wait_until

BODY = b'{"prompt": "a", "num_inference_steps": 1}'
HEAD = b"POST /v1/images/generations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
ALIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


class Impatient(Protocol):
    head_seconds = 0.3
    stuck_seconds = 0.5


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), log_level="warning")
    with run_server(settings, {"fake": FakeRuntime()}, protocol=Impatient) as running:
        yield running


@pytest.fixture
def locked(settings: Settings, tmp_path: Path) -> Settings:
    """Of a server that refuses whoever brings no key, before their body has come."""
    keys = tmp_path / "keys.jsonl"
    keys.write_text('{"name": "a", "sha256": "' + "0" * 64 + '"}\n')
    return settings.model_copy(update={"api_keys": keys})


def connect(server: Running) -> socket.socket:
    address = httpx.URL(server.url)
    return socket.create_connection((address.host, address.port), 10)


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    received = b""
    with suppress(ConnectionResetError):  # it ended while this side was still sending
        while part := connection.recv(1 << 16):
            received += part
    return received


def told(received: bytes) -> tuple[int, dict[str, Any]]:
    """Status and error of the only answer."""
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    assert b"x-request-id: req_" in head
    assert b"x-content-type-options: nosniff" in head
    assert b"connection: close" in head
    error = json.loads(body)["error"]
    assert list(error) == ["message", "type", "param", "code"]
    status = int(head.removeprefix(b"HTTP/1.1 ").split()[0])
    assert error["type"] == ("rate_limit_error" if status == 429 else "invalid_request_error")
    return status, error


def answers(connection: socket.socket) -> list[bytes]:
    """All that come, each from its status on."""
    return re.split(rb"HTTP/1\.1 (?=\d{3} )", rest_of(connection))[1:]


def exchange(server: Running, sent: bytes) -> bytes:
    with connect(server) as connection:
        with suppress(OSError):  # refused before all of it was sent
            connection.sendall(sent)
        return rest_of(connection)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"FOO / HTTP/1.1\r\n\r\n",
        b"GET /\xd0\xb6 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\nHost: x\n\n",
        HEAD + b"Content-Length: -5\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
        HEAD + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: nonsense\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\n\r\n",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /health/live HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_no_http(server: Running, sent: bytes) -> None:
    status, error = told(exchange(server, sent))
    assert (status, error["code"]) == (400, "invalid_http")


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "has one Host header; this one has 0"),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n", "b'gzip, chunked'"),
    ],
)
def test_it_says_what_is_wrong(server: Running, sent: bytes, words: str) -> None:
    assert words in told(exchange(server, sent))[1]["message"]


def test_the_first_version_of_http_knew_no_host(server: Running) -> None:
    assert exchange(server, b"GET /health/live HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_no_proxy(server: Running) -> None:
    status, error = told(exchange(server, b"CONNECT example.org:80 HTTP/1.1\r\nHost: x\r\n\r\n"))
    assert (status, error["code"]) == (405, "method_not_allowed")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 1_000_000,
        ALIVE[:-2] + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
        ALIVE[:-2] + b"X: " + b"y" * 1_000_000,
        ALIVE[:-2] + b"".join(b"X-%d: y\r\n" % number for number in range(100_000)),
    ],
    ids=["line", "endless line", "header", "endless header", "many headers"],
)
def test_a_head_that_is_too_large(server: Running, sent: bytes) -> None:
    status, error = told(exchange(server, sent))
    assert (status, error["code"]) == (431, "headers_too_large")
    assert "65536" in error["message"]


def test_a_head_within_the_limit_is_read(server: Running) -> None:
    large = ALIVE[:-2] + b"Connection: close\r\nX: " + b"y" * 60_000 + b"\r\n\r\n"
    assert exchange(server, large).startswith(b"HTTP/1.1 200 ")


def test_a_body_does_not_count_as_head(server: Running) -> None:
    body = BODY + b" " * 300_000
    sent = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    assert exchange(server, sent).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("before", [b"", ALIVE], ids=["first", "second"])
def test_a_head_that_comes_drop_by_drop(server: Running, before: bytes) -> None:
    """The second request of a connection, too: uvicorn forgets its own clock at the first byte."""
    with connect(server) as connection:
        connection.sendall(before)
        began = time.monotonic()
        for byte in HEAD:
            try:
                connection.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(0.02)
            assert time.monotonic() - began < 5
        received = rest_of(connection)
    if before:
        answer, received = received.split(b'"models":{}}')
        assert answer.startswith(b"HTTP/1.1 200 ")
    status, error = told(received)
    assert (status, error["code"]) == (408, "headers_timeout")


@pytest.mark.parametrize(
    "sent", [b"", HEAD + LENGTH.replace(b"41", b"4100") + b"\r\n"], ids=["nothing", "no body"]
)
def test_a_connection_on_which_nothing_comes_is_closed(locked: Settings, sent: bytes) -> None:
    """Without a word when nothing was asked; or after an answer that the rest of its request outlasts."""
    with run_server(locked, {"fake": FakeRuntime()}, protocol=Impatient) as running:
        received = exchange(running, sent)
    assert received[:13] == (b"HTTP/1.1 401 " if sent else b"")
    assert received.count(b"HTTP/1.1") == bool(sent)


def test_a_slow_answer_is_no_slow_head(settings: Settings) -> None:
    """The clock stands while a request is at work."""
    runtime = FakeRuntime()
    with run_server(settings, {"fake": runtime}, protocol=Impatient) as slow:
        runtime.gate.clear()
        Timer(2 * Impatient.head_seconds, runtime.gate.set).start()
        received = exchange(slow, HEAD + LENGTH + b"Connection: close\r\n\r\n" + BODY)
    assert received.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"anything"])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_request_that_offers_another_protocol_is_answered_in_this_one(
    server: Running, protocol: bytes, parts: int
) -> None:
    """With its body, which uvicorn loses: the JDK's client asks like this by default."""
    offer = (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + protocol + b"\r\nHTTP2-Settings: AAMAAABk\r\n"
    )
    sent = HEAD + LENGTH + offer + b"\r\n" + BODY
    with connect(server) as connection:
        connection.sendall(sent[: -20 * (parts - 1) or None])
        if parts == 2:
            time.sleep(0.05)
            connection.sendall(sent[-20:])
        connection.sendall(ALIVE)
        received = rest_of(connection)
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"x-model-version: fake@1" in received
    assert received.count(b"HTTP/1.1 200 ") == 2, "the connection is of no use any more"


def test_a_large_body_with_the_next_request_behind_it(server: Running) -> None:
    """Comes in pieces that hold the end of the one and the beginning of the other."""
    body = BODY + b" " * 900_000
    large = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    received = exchange(server, large * 2 + ALIVE[:-2] + b"Connection: close\r\n\r\n")
    assert received.count(b"HTTP/1.1 200 ") == 3


def kept_file(server: Running, size: int) -> bytes:
    """A request for a file that is larger than what the system takes in for a client that does not read."""
    data, files = {"purpose": "batch"}, {"file": ("a", b"x" * size)}
    id = server.client.post("/v1/files", data=data, files=files).json()["id"]
    return f"GET /v1/files/{id}/content HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()


def test_who_takes_nothing_of_an_answer_is_left(server: Running) -> None:
    request = kept_file(server, 30_000_000)
    with connect(server) as connection:
        connection.sendall(request)
        time.sleep(4 * Impatient.stuck_seconds)
        assert 100_000 < len(rest_of(connection)) < 30_000_000


def test_who_takes_an_answer_slowly_gets_it(server: Running) -> None:
    request, received, began = kept_file(server, 30_000_000), 0, time.monotonic()
    with connect(server) as connection:
        connection.sendall(request)
        while part := connection.recv(1 << 20):
            received += len(part)
            time.sleep(len(part) / 15e6)
    assert received > 30_000_000
    assert time.monotonic() - began > 2 * Impatient.stuck_seconds


def test_requests_in_a_row_without_waiting(server: Running) -> None:
    closing = ALIVE[:-2] + b"Connection: close\r\n\r\n"
    received = exchange(server, (HEAD + LENGTH + b"\r\n" + BODY) * 3 + closing)
    assert received.count(b"HTTP/1.1 200 ") == 4
    assert received.rindex(b"HTTP/1.1") == received.index(b"HTTP/1.1", received.rindex(b"x-model-version"))


@pytest.mark.parametrize(
    "wrong",
    [
        b"FOO / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["line", "head", "body"],
)
def test_what_is_wrong_is_told_after_the_answers_to_what_came_before(
    settings: Settings, wrong: bytes
) -> None:
    runtime = FakeRuntime()
    with run_server(settings, {"fake": runtime}) as slow, connect(slow) as connection:
        runtime.gate.clear()
        connection.sendall((HEAD + LENGTH + b"\r\n" + BODY) * 2 + wrong + ALIVE)
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(10)
        runtime.gate.set()
        *pictures, refused = answers(connection)
    assert [picture[:4] for picture in pictures] == [b"200 ", b"200 "]
    status, error = told(refused)
    assert (status, error["code"]) == (400, "invalid_http")


def test_a_body_that_goes_wrong_after_its_answer_gets_no_second_one(locked: Settings) -> None:
    with run_server(locked, {"fake": FakeRuntime()}) as running, connect(running) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        received = connection.recv(1 << 16)
        connection.sendall(b"zz\r\n")
        received += rest_of(connection)
    assert received.startswith(b"HTTP/1.1 401 ")
    assert received.count(b"HTTP/1.1 ") == 1


def test_requests_are_sent_ahead_up_to_a_limit(settings: Settings) -> None:
    runtime = FakeRuntime()
    with run_server(settings, {"fake": runtime}) as slow, connect(slow) as connection:
        runtime.gate.clear()
        Timer(0.3, runtime.gate.set).start()
        connection.sendall(HEAD + LENGTH + b"\r\n" + BODY + ALIVE * Protocol.requests_ahead)
        *before, refused = answers(connection)
    assert [answer[:4] for answer in before] == [b"200 "] * Protocol.requests_ahead
    status, error = told(refused)
    assert (status, error["code"]) == (429, "too_many_requests_ahead")


def test_who_has_sent_several_requests_and_leaves_frees_the_one_at_work(settings: Settings) -> None:
    long = BODY.replace(b": 1}", b": 4}")
    with run_server(settings, {"fake": FakeRuntime(call_seconds=0.05)}) as slow:
        with connect(slow) as connection:
            connection.sendall((HEAD + LENGTH + b"\r\n" + long) * 3)
            wait_until(lambda: slow.metric("fewstep_inflight_images") == 1)
        wait_until(lambda: slow.metric("fewstep_cancelled_images_total") == 1)
        assert slow.metric("fewstep_images_total") == slow.metric("fewstep_inflight_images") == 0
