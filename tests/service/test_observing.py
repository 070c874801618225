"""What operators see: log lines, traces, headers, and origins that may call."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service.errors import ServiceError
from service.logs import JsonFormatter
from service.settings import Settings
from service.tracing import SPAN, Tracing, export_spans

from .fake_runtime import FakeRuntime
from .running import Running, run_server, wait_until


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    records = [record for record in caplog.records if record.name == "service.middleware"]
    return [json.loads(JsonFormatter().format(record)) for record in records]


@pytest.mark.parametrize("asked", [False, True])
def test_prompts_are_logged_only_when_asked(
    settings: Settings, caplog: pytest.LogCaptureFixture, asked: bool
) -> None:
    caplog.set_level("INFO")
    with run_server(settings.model_copy(update={"log_prompts": asked}), {"fake": FakeRuntime()}) as running:
        assert running.generate(prompt="confidential \n words").status_code == 200
        wait_until(lambda: any(line.get("status") == 200 for line in lines(caplog)))
    (line,) = [line for line in lines(caplog) if line["route"] == "/v1/images/generations"]
    assert (line["level"], line["method"], line["model"]) == ("info", "POST", "fake")
    assert str(line["id"]).startswith("req_")
    assert float(str(line["ms"])) > 0
    assert line.get("prompt") == ("confidential \n words" if asked else None)
    assert asked or "confidential" not in caplog.text


def test_a_json_line_is_one_line_with_the_exception() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.getLogger("x").makeRecord(
            "x", logging.ERROR, "f", 1, "it %s", ("broke",), __import__("sys").exc_info()
        )
    text = JsonFormatter().format(record)
    assert len(text.splitlines()) == 1
    entry = json.loads(text)
    assert (entry["message"], entry["level"], entry["logger"]) == ("it broke", "error", "x")
    assert "ValueError" in entry["exception"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_is_a_trace_with_a_span_per_phase(settings: Settings, stream: bool) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with run_server(settings, {"fake": FakeRuntime(call_seconds=0.005)}) as running:
        service = running.server.config.app.state.service  # type: ignore[union-attr]
        object.__setattr__(service, "tracing", Tracing(provider))
        trace = "0af7651916cd43dd8448eb211c80319c"
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        body = {"prompt": "a", "num_inference_steps": 4, "stream": stream}
        assert running.client.post("/v1/images/generations", json=body, headers=headers).status_code == 200
    *phases, parent = sorted(exporter.get_finished_spans(), key=lambda span: span.name == SPAN)
    assert [span.name for span in phases] == ["encode", *["denoise"] * 4, "decode", "file"]
    assert dict(parent.attributes or {}) == {"model": "fake", "steps": 4, "images": 1}
    assert format(parent.context.trace_id, "032x") == trace
    moments = [parent.start_time or 0]
    for span in phases:
        assert span.parent is not None
        assert span.parent.span_id == parent.context.span_id
        moments += [span.start_time or 0, span.end_time or 0]
    assert [*moments, parent.end_time or 0] == sorted([*moments, parent.end_time or 0])


def test_phases_belong_to_the_span_that_is_open_already() -> None:
    """As the framework opens one around each request; else a request would be two traces."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    strange = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    with provider.get_tracer("framework").start_as_current_span("POST") as around:
        Tracing(provider).record(strange, [], 0.0, {})
    (span, _) = exporter.get_finished_spans()
    assert span.parent is not None
    assert span.parent.span_id == around.get_span_context().span_id


def test_a_collector_without_the_exporter_is_said_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ServiceError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT .* pip install 'fewstep\[otel\]'"):
        export_spans()


def test_without_opentelemetry_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry", None)
    Tracing().record({}, [], 0.0, {})


def test_every_answer_has_security_headers(shared: Running) -> None:
    for path in ("/", "/docs", "/v1/models", "/nowhere", "/metrics"):
        headers = shared.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "access-control-allow-origin" not in headers


def test_other_origins_may_call_only_when_told(settings: Settings, tmp_path: Path) -> None:
    origin = {"Origin": "https://a.example"}
    preflight = origin | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    told = settings.model_copy(update={"cors_origins": ("https://a.example",)})
    with run_server(told, {"fake": FakeRuntime()}) as running:
        allowed = running.client.options("/v1/images/generations", headers=preflight)
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        answer = running.client.get("/v1/models", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "retry-after-ms", "x-should-retry", "x-model-version"} <= {*exposed}
        other = running.client.get("/v1/models", headers={"Origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers
