"""Every exception becomes an OpenAI error object, in one place and with the right status."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from service.errors import SHOWN, ServiceError, invalid, to_response
from service.metrics import Metrics
from service.middleware import RequestEnvelope, outcome

FOUR = ["message", "type", "param", "code"]


def body_of(error: Exception) -> dict[str, Any]:
    content = json.loads(bytes(to_response(error).body))
    assert list(content) == ["error"]
    assert list(content["error"]) == FOUR
    found: dict[str, Any] = content["error"]
    return found


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "invalid_request_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
        (504, "server_error"),
    ],
)
def test_the_type_follows_from_the_status(status: int, kind: str) -> None:
    error = ServiceError("m", status=status)
    assert to_response(error).status_code == status
    assert body_of(error)["type"] == kind


def test_headers_are_sent_along() -> None:
    response = to_response(ServiceError("m", status=429, headers={"Retry-After": "3"}))
    assert response.headers["retry-after"] == "3"
    assert response.headers["content-type"] == "application/json"


def test_an_invalid_field_is_named() -> None:
    assert body_of(invalid("size", "too large")) == {
        "message": "too large",
        "type": "invalid_request_error",
        "param": "size",
        "code": "invalid_value",
    }


@pytest.mark.parametrize("error", [ValueError("secret"), KeyError("secret"), MemoryError("secret")])
def test_nothing_of_an_unexpected_error_is_told(error: Exception) -> None:
    assert to_response(error).status_code == 500
    assert "secret" not in json.dumps(body_of(error))
    assert body_of(error)["code"] == "internal_error"


@given(st.integers(400, 599), st.text(max_size=50))
def test_any_http_error_has_the_form(status: int, detail: str) -> None:
    error = HTTPException(status, detail=detail, headers={"x-a": "b"})
    response = to_response(error)
    assert response.status_code == status
    assert response.headers["x-a"] == "b"
    assert body_of(error)["message"] or not detail


@given(st.text(alphabet=st.characters(), max_size=100))
def test_any_message_can_be_sent(text: str) -> None:
    """Lone surrogates have no UTF-8 form; ASCII with escapes carries them all the same."""
    error = ServiceError(text)
    bytes(to_response(error).body).decode("ascii")
    assert body_of(error)["message"] == text


def test_long_names_of_unknown_fields_are_cut() -> None:
    from fastapi.exceptions import RequestValidationError

    problem = {"type": "extra_forbidden", "loc": ("body", "k" * 10_000), "msg": "no", "input": 1}
    found = body_of(RequestValidationError([problem]))
    assert found["param"] == "k" * SHOWN
    assert len(found["message"]) < SHOWN + 50


@pytest.mark.parametrize(
    ("status", "label"),
    [
        (200, "ok"),
        (307, "ok"),
        (400, "invalid"),
        (404, "invalid"),
        (413, "invalid"),
        (429, "rejected"),
        (503, "rejected"),
        (504, "expired"),
        (500, "error"),
        (None, "cancelled"),
    ],
)
def test_outcomes_by_status(status: int | None, label: str) -> None:
    assert outcome(status) == label


class Exchange:
    """One request through the envelope, with the messages of the client given."""

    def __init__(
        self, *incoming: Message, limit: int = 100, seconds: float = 10, declared: int | None = None
    ) -> None:
        self.headers = [] if declared is None else [(b"content-length", b"%d" % declared)]
        self.incoming, self.sent, self.seen = list(incoming), [], b""
        self.metrics, self.limit, self.seconds = Metrics(), limit, seconds

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"fine"})

    def run(self, app: Any = None) -> list[Message]:
        async def receive() -> Message:
            if not self.incoming:
                await asyncio.sleep(60)
            return self.incoming.pop(0)

        async def send(message: Message) -> None:
            self.sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/x", "headers": self.headers}
        envelope = RequestEnvelope(app or self.app, self.metrics, self.limit, self.seconds)
        asyncio.run(envelope(scope, receive, send))
        return self.sent

    def counted(self, label: str) -> float:
        name, labels = "fewstep_requests_total", {"model": "", "route": "unmatched", "outcome": label}
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def part(body: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_in_parts_reaches_the_application_whole() -> None:
    exchange = Exchange(part(b"ab", True), part(b"", True), part(b"cd"))
    exchange.run()
    assert exchange.seen == b"abcd"
    assert exchange.counted("ok") == 1


def test_a_body_that_grows_too_large_is_not_read_to_its_end() -> None:
    exchange = Exchange(*[part(b"x" * 40, True)] * 50)
    sent = exchange.run()
    assert sent[0]["status"] == 413
    assert len(exchange.incoming) == 47
    assert exchange.seen == b""


def test_what_is_declared_too_large_is_taken_in_so_that_its_sender_hears_of_it() -> None:
    exchange = Exchange(*[part(b"x" * 40, True)] * 49, part(b"x" * 40), declared=2000)
    sent = exchange.run()
    assert (sent[0]["status"], len(exchange.incoming), exchange.seen) == (413, 0, b"")


def test_what_is_declared_far_too_large_is_not_taken_in() -> None:
    exchange = Exchange(part(b"x" * 40, True), declared=99_999_999_999)
    assert (exchange.run()[0]["status"], len(exchange.incoming)) == (413, 1)


def test_a_body_that_does_not_arrive_is_not_waited_for() -> None:
    exchange = Exchange(part(b"ab", True), seconds=0.05)
    sent = exchange.run()
    assert sent[0]["status"] == 408
    assert dict(sent[0]["headers"])[b"connection"] == b"close"
    assert b"body_timeout" in sent[1]["body"]
    assert exchange.counted("invalid") == 1


def test_a_client_that_leaves_while_sending_is_counted_and_not_answered() -> None:
    exchange = Exchange(part(b"ab", True), {"type": "http.disconnect"})
    assert exchange.run() == []
    assert exchange.counted("cancelled") == 1


def test_an_error_after_the_answer_began_is_not_answered_twice() -> None:
    async def half(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("too late")

    exchange = Exchange(part(b""))
    with pytest.raises(ValueError, match="too late"):
        exchange.run(half)
    assert [message["type"] for message in exchange.sent] == ["http.response.start"]
    assert exchange.counted("error") == 1


def test_an_answer_that_breaks_off_is_not_counted_as_a_good_one() -> None:
    async def leaving(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    exchange = Exchange(part(b""))
    exchange.run(leaving)
    assert (exchange.counted("cancelled"), exchange.counted("ok")) == (1, 0)


def test_every_answer_has_an_id_of_its_own() -> None:
    ids = {dict(Exchange(part(b"")).run()[0]["headers"])[b"x-request-id"] for _ in range(20)}
    assert len(ids) == 20
