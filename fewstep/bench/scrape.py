"""What a server counted while a load ran: the difference of two readings of its metrics."""

from __future__ import annotations

from typing import Any

STAGES = ("encode", "denoise", "decode", "file")
PREFIX = "fewstep_"

Reading = dict[tuple[str, str], float]
"""(metric, stage) -> value, summed over all other labels."""


def read(text: str) -> Reading:
    """Samples of Prometheus' text form that are the server's own."""
    from prometheus_client.parser import text_string_to_metric_families

    found: Reading = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(PREFIX) and "le" not in sample.labels:
                key = sample.name.removeprefix(PREFIX), sample.labels.get("stage", "")
                found[key] = found.get(key, 0.0) + sample.value
    return found


def batches(before: Reading, after: Reading) -> dict[str, Any]:
    """By stage: batches, their mean size, padded places, and the seconds spent in them.

    Stages without a batch are left out, and so is everything if the server keeps no such metrics.
    """

    def grown(metric: str, stage: str) -> float:
        return after.get((metric, stage), 0.0) - before.get((metric, stage), 0.0)

    counts = {stage: grown("batch_size_count", stage) for stage in STAGES}
    return {
        stage: {
            "batches": int(count),
            "mean_batch": round(grown("batch_size_sum", stage) / count, 2),
            "padded": int(grown("padded_images_total", stage)),
            "seconds": round(grown("stage_duration_seconds_sum", stage), 3),
        }
        for stage, count in counts.items()
        if count > 0
    }
