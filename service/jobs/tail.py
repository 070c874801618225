"""What a distillation says about itself while it runs, from the files of its run."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TOTAL = re.compile(r"^iterations: (\d+)$", re.MULTILINE)
SHOWN = ("images_per_second", "eta_seconds")


@dataclass
class Progress:
    """Where a job is; what is not known yet is None or empty.

    Attributes:
        stage: `distill`, `evaluate`, `export`, `compare`, `publish`.
        percent: 0 ... 100, of the distillation.
        images: Seen by the student so far.
        losses: By name without `loss_`; of SiD, whose losses say nothing about quality.
        quality: The newest figures of the quality curve.
        sample: The newest grid, as a path inside the run's folder.
    """

    stage: str = "distill"
    percent: float = 0.0
    iteration: int = 0
    iterations: int | None = None
    images: int = 0
    images_per_second: float | None = None
    eta_seconds: float | None = None
    losses: dict[str, float] = field(default_factory=dict)
    quality: dict[str, float] = field(default_factory=dict)
    sample: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Checkpoint:
    """A state of the run.

    Attributes:
        metrics: The figures of that time.
        sample: The newest grid of what the student draws, as a path inside the job's folder; None: none yet.
    """

    step: int
    metrics: dict[str, float]
    sample: str | None


@dataclass(frozen=True)
class News:
    """What has come since the last look."""

    quality: list[dict[str, Any]]
    checkpoints: list[Checkpoint]


class Tail:
    """The whole lines that have come to a file since the last look; a file that was replaced is read anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode, self._offset = -1, 0

    def read(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                inode = self.path.stat().st_ino
                if inode != self._inode:
                    self._inode, self._offset = inode, 0
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode(errors="replace").splitlines()


class Follower:
    """Follows the run in the student folder `out`.

    Attributes:
        progress: Where the run is.
    """

    def __init__(self, out: Path, progress: Progress | None = None) -> None:
        """
        Args:
            progress: What had been seen before, by a follower of another process.
        """
        self.folder = out / "run"
        self.progress = progress or Progress()
        self._events = Tail(self.folder / "events.jsonl")
        self._measured = self._last_quality()
        self._saved: set[int] = set()

    def look(self) -> News:
        """Takes in what is new."""
        measured = []
        for line in self._events.read():
            event = _parsed(line)
            if event is None:
                continue
            if event["type"] == "quality" and event["iteration"] > self._measured:
                self._measured = event["iteration"]
                measured.append(event)
            self._take(event)
        self._look_around()
        return News(measured, self._new_checkpoints())

    def _new_checkpoints(self) -> list[Checkpoint]:
        """Those of a run that went back and came here again are new again."""
        there = {int(path.name) for path in (self.folder / "checkpoints").glob("[0-9]*")}
        new, self._saved = sorted(there - self._saved), there
        progress = self.progress
        metrics = {**progress.losses, **progress.quality}
        sample = f"student/{self.folder.parent.name}/run/{progress.sample}" if progress.sample else None
        return [Checkpoint(step, metrics, sample) for step in new]

    def _take(self, event: dict[str, Any]) -> None:
        """A resumed run goes back to its checkpoint, and so does its progress."""
        progress = self.progress
        figures = {name: value for name, value in event.items() if _is_figure(value)}
        if event["type"] == "quality":
            progress.quality = {
                name: value for name, value in figures.items() if name not in ("iteration", "images")
            }
            return
        progress.iteration, progress.images = event["iteration"], event.get("images", 0)
        losses = {n.removeprefix("loss_"): value for n, value in figures.items() if n.startswith("loss_")}
        progress.losses |= losses
        for name in SHOWN:
            setattr(progress, name, figures.get(name))

    def _look_around(self) -> None:
        progress = self.progress
        if progress.iterations is None:
            progress.iterations = self._total()
        if progress.iterations:
            progress.percent = round(100 * min(1.0, progress.iteration / progress.iterations), 2)
        grids = sorted((self.folder / "samples").glob("[0-9]*.png"))
        if grids:
            progress.sample = f"samples/{grids[-1].name}"

    def _total(self) -> int | None:
        try:
            found = TOTAL.search((self.folder / "recipe.yaml").read_text())
        except FileNotFoundError:
            return None
        return int(found[1]) if found else None

    def _last_quality(self) -> int:
        return self.progress.iteration if self.progress.quality else -1


def _parsed(line: str) -> dict[str, Any] | None:
    """None for a line that a full disk or a crash has cut."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(event, dict) and isinstance(event.get("iteration"), int) and "type" in event
    return event if whole else None


def _is_figure(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
