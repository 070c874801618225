"""The record of a distillation: events, curves, sample grids, checkpoints, the best student so far.

DIR/                 the student folder, once the run is done
DIR/run/recipe.yaml  the recipe as resolved
DIR/run/data.sha256  what the real images were, in a data-aided run
DIR/run/events.jsonl one line per iteration and per quality check
DIR/run/samples/     grids of fixed prompts and seeds
DIR/run/checkpoints/ the last two states
DIR/run/best/        the best student so far, by the quality curve
DIR/run/tensorboard/ the same curves for TensorBoard
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from .checkpoint import Checkpoints
from .errors import DistillError, Interrupted
from .files import atomic_file
from .pictures import Images, save_grid
from .pipeline import Pipeline
from .progress import Progress
from .recipe import Recipe
from .report import Iteration
from .spec import GeneratorSpec
from .state import State
from .student import save_student


class Training(Protocol):
    """What a run asks of the training that it records."""

    recipe: Recipe
    teacher: Pipeline
    prompts: Sequence[str]
    state: State

    @property
    def student(self) -> torch.nn.Module:
        """The weights to be kept."""

    def sample(self, prompts: Sequence[str], seeds: Sequence[int], steps: int) -> Images:
        """Pictures of the student as it is now, uint8 [N, H, W, 3]."""


Quality = Callable[[Training], dict[str, Any]]
"""Measures the student: a flat dictionary with `score`, lower is better."""

SAMPLE_PROMPTS = 8


class Run:
    """Keeps the record of one run under `out/run` and decides when it stops.

    Attributes:
        out: The student folder to be.
        stopping: Set by SIGINT or SIGTERM; the run saves its state after the current iteration.
    """

    def __init__(
        self, out: Path, recipe: Recipe, spec: GeneratorSpec, quality: Quality | None = None
    ) -> None:
        self.out, self.folder, self.recipe, self.spec, self.quality = out, out / "run", recipe, spec, quality
        self.checkpoints = Checkpoints(self.folder / "checkpoints", recipe)
        self.stopping = False
        self.last_quality: dict[str, Any] = {}

    def prepare(self, resume: bool) -> None:
        """Refuses to mix two runs in one folder; writes the resolved recipe.

        Raises:
            DistillError: there is a run already, or none to resume.
        """
        latest = self.checkpoints.latest()
        if resume and latest is None:
            raise DistillError(f"nothing to resume: no checkpoint in {self.checkpoints.folder}")
        if not resume and self.folder.exists():
            raise DistillError(f"{self.out} already holds a run; go on with --resume or choose another --out")
        with atomic_file(self.folder / "recipe.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False))

    @contextmanager
    def recording(self, start: int) -> Iterator[None]:
        """Opens the logs and the progress display, and catches the signals that ask for a stop."""
        self._forget_after(start)
        self.progress = Progress("distilling", self.recipe.iterations, start)
        self.curves = SummaryWriter(str(self.folder / "tensorboard"))
        with _on_signals(self._stop), (self.folder / "events.jsonl").open("a") as self.events:
            try:
                yield
            finally:
                self.curves.close()
                self.progress.close()

    def _forget_after(self, start: int) -> None:
        """Drops events of iterations that a killed run did and a resumed one will do again."""
        path = self.folder / "events.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["iteration"] <= start]
        with atomic_file(path) as temporary:
            temporary.write_text("".join(kept))

    def _stop(self) -> None:
        self.stopping = True

    def after_iteration(self, training: Training, iteration: Iteration) -> None:
        """Records an iteration; measures, draws and saves when it is time to.

        Raises:
            Interrupted: a signal asked for a stop; the state is saved.
        """
        done, recipe = training.state.iteration, self.recipe
        last = done == recipe.iterations
        self._record(done, iteration)
        if done % recipe.samples_every == 0 or last:
            self._draw(training)
        if self.quality is not None and (done % recipe.quality_every == 0 or last):
            self._measure(training)
        if done % recipe.checkpoint_every == 0 or last or self.stopping:
            self.checkpoints.save(training.state)
        if self.stopping and not last:
            raise Interrupted(f"stopped at iteration {done}; go on with --resume")

    def _record(self, done: int, iteration: Iteration) -> None:
        figures = iteration.as_event()
        pace = self.recipe.batch / iteration.seconds
        names = [name for name in figures if name.startswith("loss")]
        losses = " ".join(f"{name.removeprefix('loss_')} {figures[name]:.3g}" for name in names)
        self.progress.update(done, f"{losses} {pace:.1f} images/s")
        left = {"images_per_second": round(pace, 2), "eta_seconds": round(self.progress.seconds_left, 1)}
        self._event("iteration", done, {**figures, **left})
        for name, value in figures.items():
            self.curves.add_scalar(f"train/{name}", value, done)
        if "loss_generator" in figures:
            self.curves.add_scalar(f"loss_generator/k={iteration.k}", figures["loss_generator"], done)

    def _event(self, kind: str, iteration: int, figures: dict[str, Any]) -> None:
        event = {"type": kind, "iteration": iteration, "images": iteration * self.recipe.batch, **figures}
        self.events.write(json.dumps(event) + "\n")
        self.events.flush()

    def _draw(self, training: Training) -> None:
        prompts = fixed_prompts(training.prompts)
        rows = [training.sample(prompts, range(len(prompts)), steps) for steps in sorted(self.spec.levels)]
        save_grid(rows, self.folder / "samples" / f"{training.state.iteration:06d}.png")

    def _measure(self, training: Training) -> None:
        assert self.quality is not None
        figures = self.last_quality = self.quality(training)
        self._event("quality", training.state.iteration, figures)
        for name, value in figures.items():
            self.curves.add_scalar(f"quality/{name}", value, training.state.iteration)
        shown = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self.progress.say(f"quality at {training.state.iteration}: {shown}")
        if figures["score"] < training.state.best_score:
            training.state.best_score = figures["score"]
            self.save(training, self.folder / "best")

    def save(self, training: Training, out: Path, module: torch.nn.Module | None = None) -> None:
        """Writes the student as it is now to `out`."""
        weights = (module or training.student).state_dict()
        dtype = getattr(torch, self.recipe.save_dtype)
        save_student(training.teacher, weights, self.spec, out, dtype, self.last_quality or None)


def fixed_prompts(prompts: Sequence[str]) -> list[str]:
    """A few prompts spread over the set; the same at every call."""
    stride = max(1, len(prompts) // SAMPLE_PROMPTS)
    return list(prompts[stride // 2 :: stride][:SAMPLE_PROMPTS])


@contextmanager
def _on_signals(stop: Callable[[], None]) -> Iterator[None]:
    def handler(_number: int, _frame: FrameType | None) -> None:
        stop()

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handler) for number in signals]
    try:
        yield
    finally:
        for number, old in zip(signals, before, strict=True):
            signal.signal(number, old)
