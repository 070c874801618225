"""Figures for people: means with their spread, and Markdown tables of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Summary = Mapping[str, float]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean and spread (largest minus smallest) of one figure over several seeds."""
    return {"mean": round(float(np.mean(values)), 4), "spread": round(float(np.ptp(values)), 4)}


def cell(figure: Summary, digits: int) -> str:
    """`mean ± half the spread`."""
    return f"{figure['mean']:.{digits}f} ± {figure['spread'] / 2:.{digits}f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
