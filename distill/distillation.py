"""A whole distillation: recipe in, student folder out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .compiling import check_compiler
from .data import Latents, load_latents
from .errors import DistillError, RunFailed
from .evaluation import evaluate
from .files import atomic_file
from .parallel import ALONE, Ranks
from .pictures import Images
from .pipeline import Pipeline, find_pipeline, load_pipeline
from .planning.outline import published
from .planning.plan import Mode, refuse_if_too_small
from .prompts import load_prompts
from .recipe import Data, Recipe
from .run import Quality, Run, Training
from .student import new_spec, replace_student
from .trainer import Trainer


def distill(
    recipe: Recipe, out: Path, resume: bool = False, device: str = "cpu", ranks: Ranks = ALONE
) -> Path:
    """Distils the recipe's teacher into the student folder `out`; its record is in `out/run`.

    With a quality curve the student is the best one on it, else the last. With several ranks each
    calls this; the first one writes.

    Raises:
        DistillError: the request is wrong (teacher, prompts, folder); nothing has been written.
        RunFailed: the loss turned NaN or the pictures collapsed; the best student is in `out`.
        Interrupted: asked to stop; the state is saved.
    """
    prompts = load_prompts(recipe.prompts)  # first, for a teacher may have to be fetched
    loaded_on = "cpu" if recipe.parallel == "fsdp" else device
    _check_memory(recipe, device, ranks)
    if recipe.compile:
        check_compiler(device)
    teacher = load_pipeline(recipe.teacher, loaded_on, recipe.text, recipe.time_scale)
    start = _start(recipe.init, teacher) if recipe.init else None
    data = _real_images(recipe.data, recipe, teacher, ranks) if recipe.data else None
    run = Run(out, recipe, new_spec(teacher, recipe), _quality(recipe), ranks)
    trainer = Trainer(recipe, teacher, prompts, run, data, start, torch.device(device), ranks)
    run.prepare(resume)
    if data is not None:
        ranks.once(partial(_remember, data, run.folder / "data.sha256"))
    if resume:
        run.checkpoints.load(trainer.state)
    with run.recording(trainer.state.iteration):
        try:
            trainer.train()
        except RunFailed as failure:
            _rescue(run, trainer)
            kept = ranks.once(lambda: _keep_best(run))
            raise RunFailed(f"{failure}; {kept}") from failure
    if ranks.once(lambda: not (run.folder / "best").is_dir()):
        run.save(trainer, run.folder / "best")
    ranks.once(lambda: _keep_best(run))
    if recipe.keep == "both":
        run.save(trainer, run.folder / "live", trainer.state.generator)
    return out


def _start(init: str, teacher: Pipeline) -> nn.Module:
    """The transformer of the student that the generator is to start from.

    Raises:
        DistillError: it is no student, or its network is not the teacher's.
    """
    student = load_pipeline(init, str(teacher.device))
    if student.spec is None:
        raise DistillError(f"recipe: init: {init} is a teacher; give a student folder, or leave init out")
    if _shapes(student.transformer) != _shapes(teacher.transformer):
        raise DistillError(f"recipe: init: {init} has another network than the teacher {teacher.name}")
    if student.time_scale != teacher.time_scale:
        raise DistillError(
            f"recipe: init: {init} is told {student.time_scale:g} t, the teacher {teacher.time_scale:g} t"
        )
    return student.transformer


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}


def _remember(data: Latents, path: Path) -> None:
    """Refuses to go on with other real images than a run began with."""
    if path.exists() and path.read_text() != data.digest:
        raise DistillError(f"the real images have changed since {path.parents[1]} began; start another run")
    with atomic_file(path) as temporary:
        temporary.write_text(data.digest)


def _real_images(wanted: Data, recipe: Recipe, teacher: Pipeline, ranks: Ranks) -> Latents:
    """Encoded by one rank, then read by all."""
    load = partial(load_latents, wanted, teacher, recipe.size, recipe.batch)
    if ranks.size > 1:
        ranks.once(lambda: bool(load()))
    return load()


def _check_memory(recipe: Recipe, device: str, ranks: Ranks) -> None:
    """Refuses a GPU that is certainly too small, before anything is loaded."""
    if device.startswith("cuda") and torch.cuda.is_available():
        there = torch.cuda.get_device_properties(device)
        if recipe.teacher not in published():  # its folder says what it is, and may have to be fetched
            recipe = recipe.model_copy(update={"teacher": str(find_pipeline(recipe.teacher))})
        mode = Mode.of(recipe, gpus=ranks.size if recipe.parallel == "fsdp" else 1)
        refuse_if_too_small(recipe, there.total_memory, f"{device} ({there.name})", mode)


def _rescue(run: Run, trainer: Trainer) -> None:
    """Where none has been measured, the student of the newest checkpoint is the best that there is."""
    best = run.folder / "best"
    if run.ranks.once(lambda: not best.is_dir() and run.checkpoints.latest() is not None):
        run.checkpoints.load(trainer.state)
        run.save(trainer, best)


def _keep_best(run: Run) -> str:
    """Copies the best student so far to the student folder; says where it is."""
    best = run.folder / "best"
    if not best.is_dir():
        return "there is no checkpoint yet, so no student is kept"
    replace_student(best, run.out)
    known = "best student so far" if run.quality is not None else "student of the newest checkpoint"
    return f"the {known} is in {run.out}"


def _quality(recipe: Recipe) -> Quality | None:
    return _shapes_quality if recipe.quality == "shapes" else None


def _shapes_quality(training: Training) -> dict[str, Any]:
    """Accuracy and Fréchet distance at each step count on held-out prompts.

    The score, lower is better, is the product of mean error and mean distance, so that halving
    either counts the same; 0.01 keeps it from vanishing when no picture is wrong.
    """
    recipe = training.recipe
    figures: dict[str, Any] = {}
    for steps in sorted(recipe.levels):

        def draw(prompts: Sequence[str], seeds: Sequence[int], steps: int = steps) -> Images:
            return training.sample(prompts, seeds, steps)

        measured = evaluate(draw, count=recipe.quality_images, seed=recipe.seed)
        figures[f"accuracy_{steps}"] = round(measured["accuracy"], 4)
        figures[f"frechet_{steps}"] = round(measured["frechet_distance"], 4)
    error = 1 - np.mean([value for name, value in figures.items() if name.startswith("accuracy")])
    distance = np.mean([value for name, value in figures.items() if name.startswith("frechet")])
    return {"score": round(float((error + 0.01) * distance), 5), **figures}
