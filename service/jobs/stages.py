"""A job as the commands that anybody could type, one after the other; each leaves a folder or a file."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .attend import LOG
from .gate import BY_NETWORKS, Gate

FEWSTEP = (sys.executable, "-m", "fewstep")
RECIPE = "recipe.yaml"
DISTILL, EVALUATE, EXPORT, COMPARE = "distill", "evaluate", "export", "compare"
SAID = 4096
"""Bytes at the end of a log in which a command's last words are looked for."""


@dataclass(frozen=True)
class Yardsticks:
    """The published networks that pictures are measured with; on shapes none are needed."""

    clip: str | None = None
    fid_features: str | None = None
    fid_statistics: str | None = None

    @property
    def flags(self) -> list[str]:
        named = {
            "--clip": self.clip,
            "--fid-features": self.fid_features,
            "--reference-statistics": self.fid_statistics,
        }
        return [word for flag, value in named.items() if value for word in (flag, value)]


@dataclass(frozen=True)
class Plan:
    """What is to be done in the folder of one job.

    Attributes:
        folder: Everything of the job lies there.
        name: Of the student, and of its bundle.
        recipe: Its keys; JSON is YAML.
        gate: What is measured; None: nothing is, for nothing will be served.
        serving: Finds the bundle that is served when the student is to be compared with it, if one is.
        prompts: What published networks measure on; with `yardsticks`.
        precision: Of the bundle.
        device: None leaves it to the command.
        fewstep: The command line's beginning.
    """

    folder: Path
    name: str
    recipe: Mapping[str, Any]
    gate: Gate | None = None
    serving: Callable[[], Path | None] = lambda: None
    prompts: str | None = None
    yardsticks: Yardsticks = Yardsticks()
    precision: str = "fp32"
    device: str | None = None
    fewstep: tuple[str, ...] = FEWSTEP

    @property
    def student(self) -> Path:
        return self.folder / "student" / self.name

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle" / self.name

    @property
    def stages(self) -> Iterator[str]:
        yield DISTILL
        if self.gate is not None:
            yield EVALUATE
        yield EXPORT
        if self.gate is not None and self.gate.worse_by and self.serving() is not None:
            yield COMPARE

    def prepare(self) -> None:
        """Writes what the first command reads."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / RECIPE).write_text(json.dumps(dict(self.recipe), indent=2) + "\n")

    def command(self, stage: str) -> tuple[str, ...]:
        """The command line of a stage; a distillation that has a checkpoint goes on from it."""
        makers: dict[str, Callable[[], list[object]]] = {
            DISTILL: self._distill,
            EVALUATE: lambda: self._evaluate(self.student, "--card"),
            EXPORT: self._export,
            COMPARE: lambda: self._evaluate(self.serving()),
        }
        return (*self.fewstep, *map(str, makers[stage]()))

    def _distill(self) -> list[object]:
        checkpoints = self.student / "run" / "checkpoints"
        going_on = any(checkpoints.glob("[0-9]*"))
        if not going_on:
            shutil.rmtree(self.student, ignore_errors=True)  # of a run that ended before its first checkpoint
        resume = ["--resume"] if going_on else []
        return ["distill", self.folder / RECIPE, "--out", self.student, *resume, *self._device]

    def _evaluate(self, model: Path | None, *flags: str) -> list[object]:
        assert self.gate is not None
        gate = self.gate
        wanted: list[object] = ["--images", gate.images, "--seeds", ",".join(map(str, gate.seeds))]
        if gate.steps:
            wanted += ["--steps", ",".join(map(str, gate.steps))]
        if gate.measures & set(BY_NETWORKS):
            wanted += ["--prompts", self.prompts or "", *self.yardsticks.flags]
        return ["evaluate", model, "--json", *wanted, *flags, *self._device]

    def _export(self) -> list[object]:
        return ["export", self.student, "--out", self.bundle, "--precision", self.precision]

    @property
    def _device(self) -> list[object]:
        return ["--device", self.device] if self.device else []

    def printed(self, stage: str) -> dict[str, Any]:
        """The JSON that a stage has printed."""
        content: dict[str, Any] = json.loads((self.folder / f"{stage}.out").read_text())
        return content

    def last_words(self) -> str:
        """The last line of the log: a command that fails says there why."""
        try:
            with (self.folder / LOG).open("rb") as log:
                log.seek(0, 2)
                log.seek(max(0, log.tell() - SAID))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except FileNotFoundError:
            lines = []
        return lines[-1].strip() if lines else "it said nothing"
