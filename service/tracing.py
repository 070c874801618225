"""OpenTelemetry: a span for each generation request and one for each phase of its images.

Without the extra `otel` all of this does nothing. With it, spans go where the standard variables
`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`, ... say.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import ServiceError
from .image import Image

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

SPAN = "images.generate"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Tracing:
    """
    Args:
        provider: Of tracers; by default that of the process.
    """

    def __init__(self, provider: Any = None) -> None:
        self._tracer: Tracer | None = None
        self._of_process = provider is None
        try:
            from opentelemetry import trace
        except ImportError:
            return
        self._tracer = trace.get_tracer("fewstep", tracer_provider=provider)

    def record(
        self,
        headers: Mapping[str, str],
        images: Sequence[Image],
        started: float,
        attributes: Mapping[str, Any],
    ) -> None:
        """Spans of a request that is done, below the one that is open here, as newer versions of FastAPI open
        one, or else the one in the headers' `traceparent`, if any.

        Args:
            started: On the clock of `time.perf_counter`, as are the phases' times in the images.
        """
        if self._tracer is None:
            return
        from opentelemetry import trace
        from opentelemetry.propagate import extract

        if self._of_process and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
            return  # nobody has said where spans go

        offset = time.time() - time.perf_counter()

        def nanoseconds(moment: float) -> int:
            return int((moment + offset) * 1e9)

        inherited = trace.get_current_span().get_span_context().is_valid
        above = None if inherited else extract(dict(headers))
        parent = self._tracer.start_span(SPAN, above, attributes=attributes, start_time=nanoseconds(started))
        inside = trace.set_span_in_context(parent)
        for image in images if parent.is_recording() else ():  # not sampled, or sent nowhere
            for stage, begun, ended in image.intervals:
                child = self._tracer.start_span(
                    stage, inside, attributes={"seed": str(image.seed)}, start_time=nanoseconds(begun)
                )
                child.end(nanoseconds(ended))
        parent.end()


def export_spans() -> None:
    """Sends the spans of this process to the collector that the environment names, if it names one.

    Raises:
        ServiceError: it does, and the extra `otel` is not installed.
    """
    named = [name for name in ENDPOINTS if os.environ.get(name)]
    if not named:
        return
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ServiceError(f"{named[0]} needs the extra otel: pip install 'fewstep[otel]'") from error

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
