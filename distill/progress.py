"""Progress for whatever takes longer than two seconds: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """Counts up to `total`; `update` shows where the work is and when it will be done.

    Without a label nothing is shown: work inside other work leaves the display to that.
    """

    def __init__(self, label: str, total: int, start: int = 0, stream: TextIO | None = None) -> None:
        self.label, self.total, self.done = label, total, start
        self._first, self._began = start, time.monotonic()
        self._stream = stream or sys.stderr
        self._last_line = self._began
        self._bar: Bar | None = None
        if label and self._stream.isatty():
            self._bar = _bar(self._stream)
            self._task = self._bar.add_task(label, total=total, completed=start, note="")
            self._bar.start()

    @property
    def seconds_left(self) -> float:
        """Estimate from the pace so far; infinite before the first update."""
        advanced = self.done - self._first
        if advanced == 0:
            return float("inf")
        return (time.monotonic() - self._began) / advanced * (self.total - self.done)

    def update(self, done: int, note: str = "") -> None:
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif self.label and self._line_is_due():
            self._last_line = time.monotonic()
            line = f"{self.label} {done}/{self.total} {note} ETA {clock(self.seconds_left)}"
            print(line, file=self._stream, flush=True)

    def _line_is_due(self) -> bool:
        return self.done >= self.total or time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES

    def say(self, message: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.console.print(message, highlight=False, markup=False)
        else:
            print(message, file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def progress(label: str, total: int, start: int = 0) -> Iterator[Progress]:
    shown = Progress(label, total, start)
    try:
        yield shown
    finally:
        shown.close()


def _bar(stream: TextIO) -> Bar:
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(file=stream),
    )


def clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
