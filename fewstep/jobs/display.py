"""A job on the screen: a table that lives on a terminal, a line every few seconds elsewhere, JSON on request."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any, Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from distill.progress import SECONDS_BETWEEN_LINES, clock

Json = dict[str, Any]

COLOURS = {
    "running": "cyan",
    "paused": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
}
LEVELS = {"warn": "yellow", "error": "red"}
BARS = "▁▂▃▄▅▆▇█"
REMEMBERED = 24
"""Values of a figure that its little curve shows."""


class View(Protocol):
    """What is told while a job is watched."""

    def job(self, job: Json) -> None:
        """The job has changed."""

    def event(self, event: Json) -> None:
        """Something has happened to it."""

    def gone(self, why: str) -> None:
        """The server is away and is looked for."""

    def back(self) -> None:
        """It answers again."""

    def sample(self, where: str) -> None:
        """Where the latest grid of what the student draws is to be found."""

    def close(self) -> None:
        """Nothing more will come."""


def make_view(as_json: bool, stream: TextIO | None = None) -> View:
    stream = stream or sys.stdout
    if as_json:
        return JsonView(stream)
    return TerminalView(stream) if stream.isatty() else PlainView(stream)


def figures(values: Json) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def line_of(job: Json) -> str:
    """How far a job is, in one line."""
    progress = job["progress"]
    parts = [job["status"] + (f", to {job['requested']}" if job.get("requested") else "")]
    if job["status"] == "running" and progress:
        parts += list(_parts(progress))
    return "  ".join(parts)


def _parts(progress: Json) -> Iterator[str]:
    yield f"{progress['stage']} {progress['percent']:.0f} %"
    if progress.get("iterations"):
        yield f"iteration {progress['iteration']}/{progress['iterations']}"
    if progress.get("images_per_second"):
        yield f"{progress['images_per_second']:.3g} images/s"
    if progress.get("eta_seconds") is not None:
        yield f"ETA {clock(progress['eta_seconds'])}"
    for name, values in (("losses", progress.get("losses")), ("quality", progress.get("quality"))):
        if values:
            yield f"{name}: {figures(values)}"


def tells_progress(event: Json) -> bool:
    """Whether it says only what the job itself says, too."""
    return event["type"] == "metrics" and "stage" in event["data"]


class PlainView:
    """What happens at once; how far the job is, every few seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._printed, self._status = stream, 0.0, ""

    def job(self, job: Json) -> None:
        status = f"{job['status']} {job.get('requested')}"
        if status != self._status or time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES:
            self._status, self._printed = status, time.monotonic()
            self._print(line_of(job))

    def event(self, event: Json) -> None:
        if not tells_progress(event):
            self._print(event["message"])

    def gone(self, why: str) -> None:
        self._print(f"{why}; looking for it again")

    def back(self) -> None:
        self._print("the server answers again")

    def sample(self, where: str) -> None:
        self._print(f"samples: {where}")

    def close(self) -> None:
        """All has been said."""

    def _print(self, line: str) -> None:
        print(time.strftime("%H:%M:%S"), line, file=self._stream, flush=True)


class JsonView(PlainView):
    """A line of JSON for each thing: `{"event": …}`, `{"job": …}`, `{"connection": …}`, `{"sample": …}`."""

    def job(self, job: Json) -> None:
        self._say("job", job)

    def event(self, event: Json) -> None:
        self._say("event", event)

    def gone(self, why: str) -> None:
        self._say("connection", why)

    def back(self) -> None:
        self._say("connection", "back")

    def sample(self, where: str) -> None:
        self._say("sample", where)

    def _say(self, kind: str, content: object) -> None:
        print(json.dumps({kind: content}), file=self._stream, flush=True)


class TerminalView:
    """A table with a bar that stays at the bottom; what happens scrolls by above it."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream)
        self._job: Json | None = None
        self._sample = self._trouble = ""
        self._curves: dict[str, list[float]] = {}
        self._live = Live(get_renderable=self._table, console=self._console, refresh_per_second=4)
        self._live.start()

    def job(self, job: Json) -> None:
        self._job = job
        progress = job["progress"]
        for name, value in {**progress.get("losses", {}), **progress.get("quality", {})}.items():
            curve = self._curves.setdefault(name, [])
            if not curve or curve[-1] != value:
                self._curves[name] = [*curve, value][-REMEMBERED:]

    def event(self, event: Json) -> None:
        if not tells_progress(event):
            at = time.strftime("%H:%M:%S", time.localtime(event["created_at"]))
            style = LEVELS.get(event["level"], "")
            self._console.print(f"[dim]{at}[/dim]", Text(event["message"], style=style), highlight=False)

    def gone(self, why: str) -> None:
        self._trouble = f"{why}; looking for it again"

    def back(self) -> None:
        self._trouble = ""

    def sample(self, where: str) -> None:
        self._sample = where

    def close(self) -> None:
        self._live.stop()

    def _table(self) -> Group:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column(overflow="fold")
        if self._job is not None:
            for name, shown in self._rows(self._job):
                table.add_row(name, shown)
        return Group(table, Text(self._trouble, style="red")) if self._trouble else Group(table)

    def _rows(self, job: Json) -> Iterator[tuple[str, Any]]:
        progress, colour = job["progress"], COLOURS.get(job["status"], "white")
        status = job["status"] + (f", to {job['requested']}" if job.get("requested") else "")
        yield "job", f"{escape(job['id'])}  [{colour}]{status}[/{colour}]"
        if not progress:
            return
        percent = 100 if job["status"] == "succeeded" else progress["percent"]
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=100, completed=percent, width=40), f"{percent:.0f} %")
        yield progress["stage"], bar
        for part in ("iteration", "rate"):
            if told := _told(part, progress):
                yield part, told
        for part in ("losses", "quality"):
            if values := progress.get(part):
                yield part, "   ".join(self._figure(name, value) for name, value in values.items())
        if self._sample:
            yield "samples", escape(self._sample)

    def _figure(self, name: str, value: float) -> str:
        return f"{escape(name)} [bold]{value:.4g}[/bold] [dim]{sparkline(self._curves.get(name, []))}[/dim]"


def _told(part: str, progress: Json) -> str:
    if part == "iteration" and progress.get("iterations"):
        return f"{progress['iteration']:,} of {progress['iterations']:,}, {progress['images']:,} images"
    rate, left = progress.get("images_per_second"), progress.get("eta_seconds")
    if part == "rate" and rate:
        return f"{rate:.3g} images/s" + (f", ETA {clock(left)}" if left is not None else "")
    return ""


def sparkline(values: list[float]) -> str:
    """One bar a value, the lowest the smallest; nothing for fewer than two."""
    if len(values) < 2:
        return ""
    low, span = min(values), max(values) - min(values)
    return "".join(BARS[round((value - low) / span * (len(BARS) - 1)) if span else 0] for value in values)
