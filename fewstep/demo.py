"""`make demo`: the whole line once, on the shipped teacher, then the server on the shipped student.

teacher ──distill──▶ demo/student ──export──▶ demo/bundle        demo/before-after.png
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from distill.distillation import distill
from distill.evaluation import Generator, evaluate
from distill.pictures import Images, grid, save_picture, to_images
from distill.pipeline import Pipeline, load_pipeline
from distill.recipe import Recipe, load_recipe
from distill.sampler import sample_student, sample_teacher
from distill.student import new_spec
from engines.export import export_student

from .cli import exit_code
from .models import TEACHER_STEPS, default_device

PROMPTS = (
    "a red circle on a white background",
    "a yellow star on a black background",
    "a blue square left of an orange triangle on a gray background",
    "a green star above a purple circle on a pink background",
    "an orange circle above a blue star on a white background",
    "a purple triangle left of a green square on a black background",
)
FEW, GUIDANCE, PICTURES = (1, 4), 2.0, 128


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", default="8000")
    parser.add_argument("--out", type=Path, default=Path("demo"))
    parser.add_argument("--recipe", default="shapes-sana-demo")
    parser.add_argument("--picture-of", metavar="STUDENT", help="only draw OUT/before-after.png of a student")
    options = parser.parse_args()
    return exit_code("demo", lambda: _demo(options))


def _demo(options: argparse.Namespace) -> None:
    if options.picture_of:
        return compare(load_recipe(options.recipe), options.picture_of, options.out)
    run(options.recipe, options.out)
    sys.stdout.flush()
    command = ["-m", "fewstep", "serve", "--port", options.port]
    os.execv(sys.executable, [sys.executable, *command])


def run(recipe_name: str, out: Path) -> None:
    """Distils, exports and draws; replaces what an earlier demo left in `out`, and nothing else."""
    for folder in ("student", "bundle"):
        shutil.rmtree(out / folder, ignore_errors=True)
    recipe, began = load_recipe(recipe_name), time.monotonic()
    distill(recipe, out / "student", device=default_device())
    seconds = time.monotonic() - began
    say(f"distilled {recipe.iterations} iterations of {recipe.batch} images in {seconds:.0f} s")
    bundle = export_student(out / "student", out / "bundle")
    worst = min(m.psnr_db for m in bundle.manifest.certificate.measurements if m.psnr_db is not None)
    say(f"exported {bundle.path}, pictures within {worst:.1f} dB of PyTorch, digest {bundle.digest[:19]}")
    compare(recipe, str(out / "student"), out)


def compare(recipe: Recipe, student: str, out: Path) -> None:
    """Draws and measures the teacher, the student at its start (the teacher's weights in few steps)
    and the student now, in one and in four steps."""
    teacher = load_pipeline(recipe.teacher, default_device())
    start = replace(teacher, spec=new_spec(teacher, recipe))
    now = load_pipeline(student, default_device())
    rows = {f"teacher, {TEACHER_STEPS} steps": by_teacher(teacher)}
    for steps in FEW:
        plural = "step" if steps == 1 else "steps"
        rows[f"student at its start, {steps} {plural}"] = by_student(start, steps)
        rows[f"student now, {steps} {plural}"] = by_student(now, steps)
    draw_rows(rows, out / "before-after.png")
    for name, generator in rows.items():
        say(summary(name, generator))


def by_teacher(pipeline: Pipeline) -> Generator:
    return lambda prompts, seeds: to_images(
        sample_teacher(pipeline, prompts, seeds, TEACHER_STEPS, guidance=GUIDANCE)
    )


def by_student(pipeline: Pipeline, steps: int) -> Generator:
    return lambda prompts, seeds: to_images(sample_student(pipeline, prompts, seeds, steps))


def draw_rows(rows: Mapping[str, Generator], path: Path) -> None:
    """One row of pictures for each generator, all of the same prompts and seeds."""
    images: list[Images] = [generator(PROMPTS, range(len(PROMPTS))) for generator in rows.values()]
    save_picture(grid(images, zoom=2), path)
    say(f"drew {path}, same prompts and seeds in each row: {'; '.join(rows)}")


def summary(name: str, generator: Generator) -> str:
    measured = evaluate(generator, count=PICTURES, label=name)
    return (
        f"{name}: {measured['accuracy']:.0%} of {PICTURES} held-out prompts right in every attribute, "
        f"Fréchet distance {measured['frechet_distance']:.1f}"
    )


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
