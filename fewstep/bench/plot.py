"""The rows of a load as a picture: latency and goodput over rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from service.errors import ServiceError

from .report import PERCENTILES

Row = dict[str, Any]


def check_plot(file: Path) -> None:
    """Before the load, so that nobody waits for a picture that cannot be made.

    Raises:
        ServiceError: matplotlib is missing or writes no such file.
    """
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError as error:
        raise ServiceError("--plot needs matplotlib: pip install 'fewstep[plot]'") from error
    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if file.suffix.lstrip(".") not in known:
        raise ServiceError(f"--plot {file}: expected a name that ends in one of {', '.join(known)}")
    if not file.absolute().parent.is_dir():
        raise ServiceError(f"--plot {file}: there is no folder {file.absolute().parent}")


def plot(rows: Sequence[Row], file: Path, slo_ms: float | None = None, knee: float | None = None) -> None:
    """Writes `file`: left latency, right images a second, over the rate or, without any, the callers."""
    from matplotlib.figure import Figure

    kind = "open" if any(row["loop"] == "open" for row in rows) else "closed"
    setting = "rate" if kind == "open" else "concurrency"
    rows = sorted((row for row in rows if row["loop"] == kind), key=lambda row: row[setting])
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _latency(left, rows, setting, slo_ms)
    _throughput(right, rows, setting)
    for axes in (left, right):
        axes.set_xlabel("requests a second" if kind == "open" else "callers")
        axes.grid(alpha=0.3)
        if knee is not None:
            axes.axvline(knee, color="grey", linestyle=":", label=f"knee, {knee:g}/s")
        axes.legend()
    staged = file.with_name(f".{file.stem}.part{file.suffix}")
    try:
        figure.savefig(staged, dpi=120)
        staged.replace(file)
    finally:
        staged.unlink(missing_ok=True)


def _latency(axes: Any, rows: Sequence[Row], setting: str, slo_ms: float | None) -> None:
    drawn = [row for row in rows if row["latency_ms"]]
    for share in PERCENTILES:
        values = [row["latency_ms"][f"p{share}"] for row in drawn]
        axes.plot([row[setting] for row in drawn], values, marker="o", label=f"p{share}")
    if slo_ms is not None:
        axes.axhline(slo_ms, color="red", linestyle="--", label="SLO")
    axes.set_ylabel("latency of answers with pictures, ms")
    axes.set_yscale("log")


def _throughput(axes: Any, rows: Sequence[Row], setting: str) -> None:
    where = [row[setting] for row in rows]
    axes.plot(where, [row["goodput_images_per_second"] for row in rows], marker="o", label="goodput")
    axes.plot(where, [row["images_per_second"] for row in rows], marker=".", label="all pictures")
    shed = [100 * row["shed"] / max(1, row["requests"]) for row in rows]
    axes.set_ylabel("images a second")
    axes.set_ylim(bottom=0)
    beside = axes.twinx()
    beside.fill_between(where, shed, alpha=0.15, color="red")
    beside.set_ylim(0, 100)
    beside.set_ylabel("refused, %")
