"""A whole distillation: recipe in, student folder out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import RunFailed
from .evaluation import evaluate
from .parallel import ALONE, Ranks
from .pictures import Images
from .pipeline import load_pipeline
from .prompts import load_prompts
from .recipe import Recipe
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
    teacher = load_pipeline(recipe.teacher, loaded_on, recipe.text, recipe.time_scale)
    run = Run(out, recipe, new_spec(teacher, recipe), _quality(recipe), ranks)
    trainer = Trainer(recipe, teacher, prompts, run, torch.device(device))
    run.prepare(resume)
    if resume:
        run.checkpoints.load(trainer.state)
    with run.recording(trainer.state.iteration):
        try:
            trainer.train()
        except RunFailed as failure:
            kept = ranks.once(lambda: _keep_best(run))
            raise RunFailed(f"{failure}; {kept}") from failure
    if ranks.once(lambda: not (run.folder / "best").is_dir()):
        run.save(trainer, run.folder / "best")
    ranks.once(lambda: _keep_best(run))
    if recipe.keep == "both":
        run.save(trainer, run.folder / "live", trainer.state.generator)
    return out


def _keep_best(run: Run) -> str:
    """Copies the best student so far to the student folder; says where it is."""
    best = run.folder / "best"
    if not best.is_dir():
        return "no student has been measured yet, none is kept"
    replace_student(best, run.out)
    return f"the best student so far is in {run.out}"


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
