"""Every way to ask wrongly, and the OpenAI error that says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.models import Models
from service.settings import Settings

from .fake_runtime import FakeRuntime
from .running import Running, run_server, wait_until

ROUTE = "/v1/images/generations"
JSON = {"content-type": "application/json"}
INVALID = "invalid_request_error"


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert body["error"]["message"]
    assert response.headers["x-request-id"].startswith("req_")
    assert response.headers["content-type"] == "application/json"
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("fields", "param", "code", "says"),
    [
        ({"prompt": ""}, "prompt", "invalid_value", "visible"),
        ({"prompt": " \n\t"}, "prompt", "invalid_value", "visible"),
        ({"prompt": None}, "prompt", "invalid_type", "string"),
        ({"prompt": 3}, "prompt", "invalid_type", "string"),
        ({"prompt": ["a"]}, "prompt", "invalid_type", "string"),
        ({"prompt": "a\x00b"}, "prompt", "invalid_value", "U+0000 at position 1"),
        ({"prompt": "a\x1bb"}, "prompt", "invalid_value", "U+001B"),
        ({"prompt": "a\x85b"}, "prompt", "invalid_value", "U+0085"),
        ({"prompt": "a\ud800"}, "prompt", "invalid_value", "U+D800"),
        ({"prompt": "x" * 4001}, "prompt", "invalid_value", "4000"),
        ({"n": 0}, "n", "invalid_value", "1"),
        ({"n": 11}, "n", "invalid_value", "10"),
        ({"n": "2"}, "n", "invalid_type", "integer"),
        ({"n": 1.5}, "n", "invalid_type", "integer"),
        ({"n": True}, "n", "invalid_type", "integer"),
        ({"size": "128x128"}, "size", "invalid_value", "64x64, 64x32"),
        ({"size": "banana"}, "size", "invalid_value", "64x64, 64x32"),
        ({"size": 64}, "size", "invalid_type", "string"),
        ({"quality": "ultra"}, "quality", "invalid_value", "'low'"),
        ({"output_format": "gif"}, "output_format", "invalid_value", "'webp'"),
        ({"output_compression": 101}, "output_compression", "invalid_value", "100"),
        ({"output_compression": -1}, "output_compression", "invalid_value", "0"),
        ({"output_compression": 50}, "output_compression", "invalid_value", "jpeg"),
        ({"response_format": "file"}, "response_format", "invalid_value", "'url'"),
        ({"background": "transparent"}, "background", "unsupported_value", "opaque"),
        ({"background": "green"}, "background", "invalid_value", "'opaque'"),
        ({"stream": 1}, "stream", "invalid_type", "boolean"),
        ({"partial_images": 2}, "partial_images", "invalid_value", "only with stream"),
        ({"partial_images": 4, "stream": True}, "partial_images", "invalid_value", "3"),
        ({"stream": True, "response_format": "url"}, "response_format", "invalid_value", "b64_json"),
        ({"moderation": "off"}, "moderation", "invalid_value", "'low'"),
        ({"style": "noir"}, "style", "invalid_value", "'vivid'"),
        ({"user": 1}, "user", "invalid_type", "string"),
        ({"user": "a\ud800"}, "user", "invalid_value", "lone surrogates"),
        ({"user": "a\x00"}, "user", "invalid_value", "NUL"),
        ({"seed": -1}, "seed", "invalid_value", "0"),
        ({"seed": 2**63}, "seed", "invalid_value", str(2**63 - 1)),
        ({"seed": 2**63 - 1, "n": 2}, "seed", "invalid_value", str(2**63 - 1)),
        ({"seed": "7"}, "seed", "invalid_type", "integer"),
        ({"seed": 10**400}, "seed", "invalid_value", ""),
        ({"num_inference_steps": 3}, "num_inference_steps", "invalid_value", "1, 2, 4"),
        ({"num_inference_steps": 0}, "num_inference_steps", "invalid_value", "1"),
        ({"num_inference_steps": 50, "quality": "low"}, "num_inference_steps", "invalid_value", "1, 2, 4"),
        ({"deadline_ms": 0}, "deadline_ms", "invalid_value", "1"),
        ({"deadline_ms": "soon"}, "deadline_ms", "invalid_type", "integer"),
        ({"guidance_scale": 3}, "guidance_scale", "unknown_parameter", "guidance_scale"),
        ({"\ud800": 3}, None, "invalid_body", "Unicode"),
        ({"k" * 5000: 3}, "k" * 200, "unknown_parameter", "kkk"),
    ],
)
def test_bad_field(shared: Running, fields: dict[str, Any], param: str | None, code: str, says: str) -> None:
    body = json.dumps({"prompt": "a red circle", **fields})
    response = shared.client.post(ROUTE, content=body, headers=JSON)
    error = error_of(response)
    assert (response.status_code, error["type"], error["param"]) == (400, INVALID, param)
    assert error["code"] == code
    assert says in error["message"]


@pytest.mark.parametrize(
    ("content", "headers", "code"),
    [
        (b"", JSON, None),
        (b"{", JSON, "invalid_json"),
        (b"not json", JSON, "invalid_json"),
        (b'{"prompt": "\xff\xfe"}', JSON, "invalid_json"),
        (b"[" * 15_000, JSON, "invalid_json"),
        (b'{"seed": ' + b"9" * 6000 + b"}", JSON, "invalid_json"),
        (b"[]", JSON, "invalid_body"),
        (b'"prompt"', JSON, "invalid_body"),
        (b"null", JSON, None),
        (b'{"prompt": "a"}', {"content-type": "text/plain"}, "invalid_body"),
    ],
)
def test_bad_body(shared: Running, content: bytes, headers: dict[str, str], code: str | None) -> None:
    response = shared.client.post(ROUTE, content=content, headers=headers)
    error = error_of(response)
    assert (response.status_code, error["type"]) == (400, INVALID)
    assert code in (None, error["code"])


@pytest.mark.parametrize("path", [ROUTE, "/v1/files", "/v1/batches"])
@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "x" * 5000])
def test_a_packed_body(shared: Running, path: str, encoding: str) -> None:
    """Even one that is not packed at all: what it says of itself is wrong, then."""
    headers = JSON | {"content-encoding": encoding}
    response = shared.client.post(path, content=b'{"prompt": "a"}', headers=headers)
    assert (response.status_code, error_of(response)["code"]) == (415, "unsupported_encoding")
    assert response.headers["accept-encoding"] == "identity"
    assert encoding[:200] in error_of(response)["message"]
    assert len(response.content) < 500


def test_a_body_that_says_that_it_is_not_packed(shared: Running) -> None:
    headers = JSON | {"content-encoding": "Identity"}
    assert shared.client.post(ROUTE, content=b'{"prompt": "a"}', headers=headers).status_code == 200


def test_missing_prompt(shared: Running) -> None:
    error = error_of(shared.client.post(ROUTE, json={}))
    assert (error["param"], error["code"]) == ("prompt", "missing_required_parameter")


def chunks(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b" " * 1000


@pytest.mark.parametrize("content", [b" " * 20_001, chunks(1000)], ids=["declared", "chunked"])
def test_body_too_large(shared: Running, content: Any) -> None:
    with httpx.Client(base_url=shared.url) as client:
        response = client.post(ROUTE, content=content, headers=JSON)
    error = error_of(response)
    assert (response.status_code, error["type"], error["code"]) == (413, INVALID, "body_too_large")
    assert "20000" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/v1/images/edits", 404, "not_found"),
        ("GET", ROUTE, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/gpt-image-1", 404, "model_not_found"),
    ],
)
def test_bad_address(shared: Running, method: str, path: str, status: int, code: str) -> None:
    response = shared.client.request(method, path)
    assert (response.status_code, error_of(response)["code"]) == (status, code)
    assert ("allow" in response.headers) == (status == 405)


def test_unknown_model(shared: Running) -> None:
    response = shared.generate(model="gpt-image-1")
    error = error_of(response)
    assert (response.status_code, error["param"], error["code"]) == (404, "model", "model_not_found")
    assert "fake, other" in error["message"]


def test_model_still_loading(settings: Settings) -> None:
    slow = FakeRuntime()
    slow.gate.clear()
    with run_server(settings, {"fake": slow}, ready=False) as running:
        response = running.generate()
        assert (response.status_code, error_of(response)["code"]) == (503, "model_loading")
        assert response.headers["retry-after"] == "1"
        assert running.client.get("/health/ready").json() == {
            "status": "starting",
            "models": {"fake": "loading"},
        }
        slow.gate.set()
        wait_until(lambda: running.client.get("/health/ready").status_code == 200)
        assert running.generate().status_code == 200


def test_unexpected_failure_is_an_error_object_with_an_id_in_the_log(
    shared: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(self: Models, name: str | None, key: str) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(Models, "use", explode)
    response = shared.generate()
    error = error_of(response)
    assert (response.status_code, error["type"], error["code"]) == (500, "server_error", "internal_error")
    assert "secret" not in response.text
    logged = [record for record in caplog.records if response.headers["x-request-id"] in record.getMessage()]
    assert any(record.exc_info for record in logged)


@pytest.mark.parametrize("path", ["/", "/docs", "/health/live", "/health/ready", "/metrics", "/v1/models"])
def test_head_is_get_without_the_body(shared: Running, path: str) -> None:
    head, full = shared.client.head(path), shared.client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == full.headers["content-type"]


def test_head_of_what_is_only_posted(shared: Running) -> None:
    assert shared.client.head(ROUTE).status_code == 405


def test_an_address_with_a_slash_too_many_is_an_error_like_any_other(shared: Running) -> None:
    response = shared.client.post(ROUTE + "/", json={"prompt": "a"})
    assert (response.status_code, error_of(response)["code"]) == (404, "not_found")


def test_a_field_without_a_name(shared: Running) -> None:
    error = error_of(shared.client.post(ROUTE, json={"prompt": "a", "": 1}))
    assert (error["param"], error["code"]) == ("", "unknown_parameter")


@pytest.mark.parametrize("prompt", ["\u200b", " \u2060\n", "\ufeff"])
def test_a_prompt_that_nobody_can_see(shared: Running, prompt: str) -> None:
    response = shared.generate(prompt=prompt)
    assert (response.status_code, error_of(response)["param"]) == (400, "prompt")


def test_more_images_than_the_queue_can_ever_hold(settings: Settings) -> None:
    small = settings.model_copy(update={"queue_limit": 4})
    with run_server(small, {"fake": FakeRuntime()}) as running:
        assert error_of(running.generate(n=5))["param"] == "n"
        assert running.generate(n=4).status_code == 200


def test_log_has_one_line_per_request_and_no_prompts(
    shared: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    response = shared.generate(prompt="confidential")

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name.startswith("service")]

    def about_it() -> list[str]:
        return [line for line in lines() if response.headers["x-request-id"] in line]

    wait_until(about_it)  # the line follows the last byte of the response
    (line,) = about_it()
    assert f"method=POST route={ROUTE} status=200 model=fake ms=" in line
    assert not any("confidential" in line for line in lines())


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/models/aliases", b'{"alias": "a", "alias": "b", "model": "fake"}', "alias"),
        ("/v1/models/fake/load", b'{"bundle": null, "bundle": null}', "bundle"),
        ("/v1/models/fake/versions", b'{"bundle": "x", "gate": {"a": 1, "a": 2}}', "a"),
        ("/v1/batches", b'{"endpoint": "/v1/x", "endpoint": "/v1/y"}', "endpoint"),
        ("/v1/fine_tuning/jobs", b'{"model": "a", "model": "b", "training_file": "c"}', "model"),
    ],
)
def test_a_field_given_twice_on_other_routes(shared: Running, path: str, body: bytes, param: str) -> None:
    response = shared.client.post(path, content=body, headers=JSON)
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (400, "duplicate_parameter", param)
    assert shared.client.get("/v1/models/aliases").json()["data"] == []


@pytest.mark.parametrize("content", [b"", b"no json", b"[" * 15_000])
def test_a_body_that_nobody_asked_for_does_no_harm(shared: Running, content: bytes) -> None:
    assert shared.client.request("GET", "/v1/models", content=content, headers=JSON).status_code == 200
    assert shared.client.post("/v1/models/fake/promote", content=content).status_code == 409


@pytest.mark.parametrize("name", ["мод", "a b", "a@1", "é", "a/b/c", ""])
def test_names_of_models_fit_into_a_header(shared: Running, name: str) -> None:
    response = shared.client.post(
        "/v1/models/aliases", json={"alias": f"x{name}" * bool(name), "model": "fake"}
    )
    assert (response.status_code, error_of(response)["param"]) == (400, "alias")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"prompt": "a", "prompt": "b"}', "prompt"),
        ('{"prompt": "a", "n": 1, "n": 1}'.encode("utf-16"), "n"),
    ],
)
def test_a_field_given_twice(body: bytes, param: str, settings: Settings) -> None:
    """Of which a parser takes one or the other, so that nobody knows what was asked for."""
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        response = running.client.post(ROUTE, content=body, headers=JSON)
        error = error_of(response)
        assert running.generate().status_code == 200
    assert (response.status_code, error["code"], error["param"]) == (400, "duplicate_parameter", param)
    assert error["message"] == f"Parameter '{param}' is given more than once."
