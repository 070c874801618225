"""The rate sweep: what a server can do, and what happens around that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

SHARES = (0.3, 0.5, 0.7, 0.85, 0.95, 1.05, 1.2, 1.5)
"""Of the capacity: the knee lies between 0.7 and 1.2, and what lies beyond shows how a server bends."""
SLO_FACTOR = 5.0
"""Times the latency of a lone caller, unless an SLO is given."""
KEPT = 0.99
"""Share of requests that are answered within the SLO at every rate up to the knee."""
CALLERS = 32

Row = dict[str, Any]
Measure = Callable[[str, float, float | None], Awaitable[Row]]
"""(closed or open, callers or rate, SLO in seconds) -> one row of the report."""


async def sweep(measure: Measure, slo_seconds: float | None, images: int) -> dict[str, Any]:
    """One caller, `CALLERS` callers, then Poisson arrivals at shares of what those got.

    Args:
        slo_seconds: By default `SLO_FACTOR` times the median of the one caller.
        images: Of each request.

    Returns:
        `unloaded_ms`, `slo_ms`, `capacity_images_per_second`, `knee_requests_per_second` (None when
        even the lowest rate is past it) and `rows`.
    """
    alone = await measure("closed", 1, slo_seconds)
    unloaded = alone["latency_ms"].get("p50", 0.0)
    slo = slo_seconds or SLO_FACTOR * unloaded / 1000
    full = await measure("closed", CALLERS, slo)
    capacity = full["images_per_second"]
    rates = [float(f"{share * capacity / images:.3g}") for share in SHARES if capacity > 0]
    opened = [await measure("open", rate, slo) for rate in rates]
    return {
        "unloaded_ms": unloaded,
        "slo_ms": round(1000 * slo, 2),
        "capacity_images_per_second": capacity,
        "knee_requests_per_second": knee(opened),
        "rows": [alone, full, *opened],
    }


def knee(rows: Sequence[Row]) -> float | None:
    """The highest rate up to which every rate was served: `KEPT` of the requests within the SLO."""
    highest = None
    for row in sorted(rows, key=lambda row: row["rate"]):
        if row["within_slo"] < KEPT * row["requests"]:
            break
        highest = row["rate"]
    return highest
