"""What a load came to: percentiles, goodput, shed share, steps, phases."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .load import Answer, Run

PERCENTILES = (50, 95, 99)
SHED = (429, 503)


def summary(run: Run, slo_seconds: float | None, images: int) -> dict[str, Any]:
    """Figures of one run.

    Args:
        slo_seconds: Answers within it are goodput; by default all are.
        images: Of each request.
    """
    good = [answer for answer in run.answers if answer.status == 200]
    within = [answer for answer in good if slo_seconds is None or answer.seconds <= slo_seconds]
    shed = [answer for answer in run.answers if answer.status in SHED]
    failed = len(run.answers) - len(good) - len(shed)
    return {
        "loop": run.kind,
        "rate" if run.kind == "open" else "concurrency": run.setting,
        "seconds": round(run.seconds, 3),
        "requests": len(run.answers),
        "ok": len(good),
        "shed": len(shed),
        "failed": failed,
        "within_slo": len(within),
        "shed_share": round(len(shed) / max(1, len(run.answers)), 4),
        "images_per_second": round(images * len(good) / run.seconds, 2),
        "goodput_images_per_second": round(images * len(within) / run.seconds, 2),
        "latency_ms": _percentiles(good),
        "shed_ms": _percentiles(shed),
        "steps": {str(steps): count for steps, count in sorted(Counter(a.steps for a in good).items())},
        "phases_ms": _mean_phases(good),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` percent of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(share / 100 * len(values)) - 1)]


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    head = [
        "load",
        "ok",
        "shed",
        "failed",
        "images/s",
        "goodput",
        *(f"p{p} ms" for p in PERCENTILES),
        "steps",
        "mean batch",
        "ms by phase",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(_cells(row)) + " |" for row in rows)])


def headline(found: dict[str, Any]) -> str:
    """What a sweep found, in a sentence."""
    knee = found["knee_requests_per_second"]
    return (
        f"One caller {found['unloaded_ms']:.1f} ms, SLO {found['slo_ms']:.1f} ms; at most"
        f" {found['capacity_images_per_second']:.1f} images/s; knee at "
        + (f"{knee:g} requests/s." if knee is not None else "less than the lowest rate tried.")
    )


def _cells(row: dict[str, Any]) -> list[str]:
    load = f"{row['rate']:g}/s" if row["loop"] == "open" else f"{row['concurrency']:g} callers"
    latency, denoise = row["latency_ms"], row.get("batches", {}).get("denoise")
    return [
        load,
        *(str(row[name]) for name in ("ok", "shed", "failed")),
        f"{row['images_per_second']:.1f}",
        f"{row['goodput_images_per_second']:.1f}",
        *(f"{latency[f'p{p}']:.1f}" if latency else "-" for p in PERCENTILES),
        ", ".join(f"{steps}: {count}" for steps, count in row["steps"].items()) or "-",
        f"{denoise['mean_batch']:.1f}" if denoise else "-",
        ", ".join(f"{name} {spent:.1f}" for name, spent in row["phases_ms"].items()) or "-",
    ]


def _percentiles(answers: Sequence[Answer]) -> dict[str, float]:
    milliseconds = [1000 * answer.seconds for answer in answers]
    return {f"p{p}": round(percentile(milliseconds, p), 2) for p in PERCENTILES} if milliseconds else {}


def _mean_phases(answers: Sequence[Answer]) -> dict[str, float]:
    names = dict.fromkeys(name for answer in answers for name in answer.phases)
    return {
        name: round(sum(answer.phases.get(name, 0.0) for answer in answers) / len(answers), 2)
        for name in names
    }
