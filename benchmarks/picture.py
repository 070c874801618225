"""The ratios of `benchmarks.serving` as bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.subjects import STOCK


def draw(report: dict[str, Any], file: Path) -> None:
    from matplotlib.figure import Figure

    names = [name for name in report["subjects"] if name not in STOCK]  # beside theirs no bar would be seen
    found = [report["subjects"][name] for name in names]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    shown = [
        ("images_per_second", "images a second, 32 callers"),
        ("p95_ms_at_70_percent", "p95 at 70 % of that, ms"),
        ("lone_p50_ms", "p50 of one caller, ms"),
    ]
    for axes, (key, title) in zip(figure.subplots(1, 3), shown):
        bars = axes.bar(
            names, [each[key] for each in found], color=["#2a6f4e", *["#b0b7bd"] * (len(names) - 1)]
        )
        axes.bar_label(bars, fmt="%.0f")
        axes.margins(y=0.12)  # for the label of the tallest
        axes.set_title(title, fontsize=10)
        axes.tick_params(axis="x", labelrotation=30)
    engine = report["engine"]["images_per_second"]
    figure.axes[0].axhline(engine, linestyle="--", color="grey", label="engine alone, best batch")
    figure.axes[0].legend(fontsize=8)
    figure.suptitle(
        f"{report['date']}, {report['machine']}, engine on {report['engine_threads']} thread", fontsize=9
    )
    figure.savefig(file, dpi=120)
