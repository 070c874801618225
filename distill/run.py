"""The record of a distillation: events, curves, sample grids, checkpoints, the best student so far.

DIR/                 the student folder, once the run is done
DIR/run/recipe.yaml  the recipe as resolved
DIR/run/data.sha256  what the real images were, in a data-aided run
DIR/run/events.jsonl one line per iteration and per quality check
DIR/run/samples/     grids of fixed prompts and seeds
DIR/run/checkpoints/ the last two states
DIR/run/best/        the best student so far, by the quality curve
DIR/run/tensorboard/ the same curves for TensorBoard
DIR/run/embeddings/  the prompts as encoded, if the recipe keeps them there
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from .checkpoint import Checkpoints
from .embeddings import EmbeddingCache
from .errors import DistillError, Interrupted
from .files import atomic_file
from .parallel import ALONE, Ranks
from .pictures import Images, save_grid
from .pipeline import Pipeline
from .progress import Progress
from .recipe import Recipe
from .report import Iteration
from .roles import merged
from .spec import GeneratorSpec
from .state import State
from .student import save_lora, save_student


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

    With several ranks each has one, all decide alike, and the first one writes.

    Attributes:
        out: The student folder to be.
        stopping: Set by SIGINT or SIGTERM; the run saves its state after the current iteration.
        out_of_time: Set when the recipe's `max_minutes` are over; that iteration is the last one.
    """

    def __init__(
        self,
        out: Path,
        recipe: Recipe,
        spec: GeneratorSpec,
        quality: Quality | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.out, self.folder, self.recipe, self.spec, self.quality = out, out / "run", recipe, spec, quality
        self.ranks = ranks
        self.checkpoints = Checkpoints(self.folder / "checkpoints", recipe, ranks)
        self.stopping = self.out_of_time = False
        self.last_quality: dict[str, Any] = {}

    def prepare(self, resume: bool) -> None:
        """Refuses to mix two runs in one folder; writes the resolved recipe of a new one.

        Raises:
            DistillError: there is a run already, or none to resume.
        """
        self.ranks.once(lambda: self._prepare(resume))

    def _prepare(self, resume: bool) -> None:
        there = self.checkpoints.latest() is not None
        if resume and not there:
            raise DistillError(f"nothing to resume: no checkpoint in {self.checkpoints.folder}")
        if resume:
            return
        foreign = self.folder.exists() and not (self.folder / "recipe.yaml").is_file()
        if there or foreign or (self.folder / "best").exists():
            raise DistillError(f"{self.out} already holds a run; go on with --resume or choose another --out")
        shutil.rmtree(self.folder, ignore_errors=True)  # of a run that ended before its first checkpoint
        with atomic_file(self.folder / "recipe.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False))

    @contextmanager
    def recording(self, start: int) -> Iterator[None]:
        """Opens the logs and the progress display, and listens for the wish that it stop."""
        self.began = time.monotonic()
        with self.ranks.listening(self._stop):
            if self.ranks.first:
                with self._records(start):
                    yield
            else:
                yield

    @contextmanager
    def _records(self, start: int) -> Iterator[None]:
        self._forget_after(start)
        self.progress = Progress("distilling", self.recipe.iterations, start)
        self.curves = SummaryWriter(str(self.folder / "tensorboard"))
        with (self.folder / "events.jsonl").open("a") as self.events:
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
        self.out_of_time = self.ranks.agree(self._minutes() >= (recipe.max_minutes or math.inf))
        last = done == recipe.iterations or self.out_of_time
        self.stopping = self.ranks.any(self.stopping)
        if self.ranks.first:
            self._record(done, iteration)
        if done % recipe.samples_every == 0 or last:
            self._draw(training)
        if self.quality is not None and (done % recipe.quality_every == 0 or last):
            self._measure(training)
        if done % recipe.checkpoint_every == 0 or last or self.stopping:
            self.checkpoints.save(training.state)
        if self.stopping and not last:
            raise Interrupted(f"stopped at iteration {done}; go on with --resume")

    def _minutes(self) -> float:
        return (time.monotonic() - self.began) / 60

    def stop_if_asked(self, training: Training) -> None:
        """For work before the first iteration.

        Raises:
            Interrupted: a signal asked for a stop; the state is saved.
        """
        self.stopping = self.ranks.any(self.stopping)
        if self.stopping:
            self.checkpoints.save(training.state)
            raise Interrupted(f"stopped at iteration {training.state.iteration}; go on with --resume")

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
        path = self.folder / "samples" / f"{training.state.iteration:06d}.png"
        self.ranks.once(lambda: save_grid(rows, path))

    def _measure(self, training: Training) -> None:
        assert self.quality is not None
        figures = self.last_quality = self.ranks.agree(self.quality(training))
        if self.ranks.first:
            self._show(training.state.iteration, figures)
        if figures["score"] < training.state.best_score:
            training.state.best_score = figures["score"]
            self.save(training, self.folder / "best")

    def _show(self, done: int, figures: dict[str, Any]) -> None:
        self._event("quality", done, figures)
        for name, value in figures.items():
            self.curves.add_scalar(f"quality/{name}", value, done)
        shown = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self.progress.say(f"quality at {done}: {shown}")

    def save(self, training: Training, out: Path, module: torch.nn.Module | None = None) -> None:
        """Writes the student as it is now to `out`."""
        role, adapter = module or training.student, self.recipe.adapter
        measured = self.last_quality if module is None else None  # which are of what is to be kept
        what = (self.spec, out, getattr(torch, self.recipe.save_dtype), measured or None)
        if adapter is not None and adapter.save == "lora":
            self.ranks.once(lambda: save_lora(training.teacher, role, *what))
        else:
            weights = self.ranks.whole(merged(role))
            self.ranks.once(lambda: save_student(training.teacher, weights, *what))

    def embeddings(self, teacher: Pipeline) -> EmbeddingCache:
        """The cache of prompt embeddings, where the recipe wants it."""
        where = self.recipe.embedding_cache
        folder = Path(where) if isinstance(where, str) else self.folder / "embeddings"
        return EmbeddingCache(teacher, folder, self.ranks)


def fixed_prompts(prompts: Sequence[str]) -> list[str]:
    """A few prompts spread over the set; the same at every call."""
    stride = max(1, len(prompts) // SAMPLE_PROMPTS)
    return list(prompts[stride // 2 :: stride][:SAMPLE_PROMPTS])
