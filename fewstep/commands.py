"""What each command does; rooms are imported inside, so that a command loads only what it needs."""

from __future__ import annotations

import argparse
import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .evaluate import evaluate
from .models import default_device, open_model
from .serve import OF_SERVER, OF_WORKER, add_key, add_settings, serve, work

if TYPE_CHECKING:
    from distill.recipe import Recipe

__all__ = [
    "OF_SERVER",
    "OF_WORKER",
    "add_key",
    "add_settings",
    "bench",
    "build",
    "distill",
    "doctor",
    "evaluate",
    "export",
    "import_pipeline",
    "jobs",
    "plan",
    "sample",
    "serve",
    "work",
]

CALIBRATION_PROMPTS = 64


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Takes SIGTERM for Ctrl-C, so that a folder which is not whole yet is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield  # which alone may be told of signals
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt(f"ended by {signal.Signals(number).name}; nothing was kept")


def distill(options: argparse.Namespace) -> None:
    from distill.cluster import distill_on_cluster
    from distill.distillation import distill as run
    from distill.launch import distill_on_ranks
    from distill.parallel import joined
    from distill.recipe import load_recipe

    overrides = [*options.set, *([f"parallel={options.parallel}"] if options.parallel else [])]
    recipe = load_recipe(options.recipe, overrides)
    if options.dry_run:
        return _dry_run(recipe, options.nproc or 1 if recipe.parallel == "fsdp" else 1)
    out = options.out or Path("runs") / Path(options.recipe).stem
    if options.ray:
        workers = (options.ray, options.nproc, options.device)
        print(distill_on_cluster(recipe, out, options.resume, *workers))
        return
    device = options.device or default_device()
    if options.nproc and options.nproc > 1:
        print(distill_on_ranks(recipe, out, options.resume, device, options.nproc))
        return
    with joined(device) as (ranks, own):
        run(recipe, out, options.resume, own, ranks)
    if ranks.first:
        print(out)


def _dry_run(recipe: Recipe, gpus: int) -> None:
    import yaml

    from distill.errors import DistillError
    from distill.planning.plan import Mode, make_plan
    from distill.prompts import load_prompts

    from .planning import as_text, gpu_named

    shown = as_text(make_plan(recipe, Mode.of(recipe, gpus)), gpu_named("H100"))
    print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    print(shown)
    try:
        load_prompts(recipe.prompts)
    except DistillError as error:
        print(f"\nBefore it can run: {error}")


def plan(options: argparse.Namespace) -> None:
    from distill.planning.plan import UTILISATION, Mode, make_plan
    from distill.recipe import is_recipe, load_recipe, teacher_recipe

    from .planning import as_json, as_text, gpu_named

    gpu = gpu_named(options.gpu)
    changes = [*options.set, *([f"precision={options.precision}"] if options.precision else [])]
    read = load_recipe if is_recipe(options.teacher) else teacher_recipe
    recipe = read(options.teacher, changes)
    mode = Mode.of(recipe, options.gpus, options.adapter)
    made = make_plan(recipe, mode, options.utilisation or UTILISATION)
    print(json.dumps(as_json(made, gpu), indent=2) if options.json else as_text(made, gpu))


def bench(options: argparse.Namespace) -> int:
    from .bench.command import bench as run

    return run(options)


def jobs(task: str) -> Callable[[argparse.Namespace], int]:
    """The function of that name of `fewstep.jobs.command`, loaded when it runs."""

    def run(options: argparse.Namespace) -> int:
        from .jobs import command

        return int(getattr(command, task)(options))

    return run


def doctor(options: argparse.Namespace) -> int:
    from .doctor import as_json, as_text, can_serve, examine

    findings = examine()
    print(json.dumps(as_json(findings), indent=2) if options.json else as_text(findings))
    return 0 if can_serve(findings) else 1


def sample(options: argparse.Namespace) -> None:
    if options.picture is not None:
        from .redraw import redraw

        redraw(options.picture, options.model, options.out)
        print(options.out)
        return
    _draw(options)


def _draw(options: argparse.Namespace) -> None:
    from distill.errors import DistillError
    from distill.pictures import save_grid
    from distill.prompts import check_prompt

    if options.model is None or not options.prompt:
        raise DistillError("expected MODEL and PROMPT, or --from PICTURE")
    numbered = enumerate(options.prompt, start=1)
    prompts = [check_prompt(prompt, f"prompt {number}") for number, prompt in numbered]
    model = open_model(options.model, options.device, backend=options.backend)
    steps = options.steps or model.default_steps
    images = model.draw(prompts, range(options.seed, options.seed + len(prompts)), steps, options.guidance)
    save_grid([images], options.out, options.zoom)
    print(options.out)


@ending_cleanly()
def export(options: argparse.Namespace) -> None:
    from distill.pipeline import find_pipeline
    from distill.prompts import load_prompts
    from engines.export import export_student

    from .grading import judge_of

    prompts = load_prompts(options.prompts)[:CALIBRATION_PROMPTS] if options.prompts else ()
    bundle = export_student(
        find_pipeline(options.student),
        options.out,
        sizes=options.size,
        precision=options.precision,
        min_psnr=options.min_psnr,
        prompts=prompts,
        fuse=options.fuse,
        torch=options.torch,
        judge=judge_of(options.judge, options.clip, prompts),
    )
    print(f"{bundle.path} {bundle.digest}")


@ending_cleanly()
def build(options: argparse.Namespace) -> None:
    from engines.store import find_bundle
    from engines.tensorrt.add import add_plans

    made = add_plans(
        find_bundle(options.bundle),
        options.backend,
        out=options.out,
        refittable=options.refittable,
        refit_from=find_bundle(options.refit_from) if options.refit_from else None,
    )
    print(made.path)


def import_pipeline(options: argparse.Namespace) -> None:
    from distill.importing import import_student

    spec = import_student(
        options.pipeline,
        options.out,
        sampler=options.sampler,
        steps=tuple(options.steps) if options.steps else None,
        guidance=options.guidance,
        text_length=options.text_length,
        instruction=options.instruction,
        size=options.size,
    )
    print(f"{options.out} {spec.teacher}, sampler {spec.sampler}, steps {', '.join(map(str, spec.levels))}")


def shapes_render(options: argparse.Namespace) -> None:
    import numpy as np
    from PIL import Image

    from distill.pictures import save_picture
    from distill.shapes.render import render
    from distill.shapes.scenes import SceneSet

    rng = np.random.default_rng(options.seed)
    for number, scene in enumerate(SceneSet(options.split).draw(rng, options.count)):
        save_picture(Image.fromarray(render(scene, rng)), options.out / f"{number:05d}.png")
        (options.out / f"{number:05d}.txt").write_text(scene.caption + "\n")
    print(options.out)


def shapes_train_judge(options: argparse.Namespace) -> None:
    from distill.shapes.judge import SCHEDULE, train_judge

    train_judge(options.out, options.seed, _length(SCHEDULE, options.steps))
    print(options.out)


def shapes_train_autoencoder(options: argparse.Namespace) -> None:
    from distill.shapes.architectures import ARCHITECTURES
    from distill.shapes.autoencoder import KINDS, train_autoencoder

    kind = ARCHITECTURES[options.family].autoencoder
    train_autoencoder(options.out, options.seed, _length(KINDS[kind].schedule, options.steps), kind)
    print(options.out)


def shapes_train_teacher(options: argparse.Namespace) -> None:
    from distill.shapes.architectures import ARCHITECTURES
    from distill.shapes.teacher import train_teacher

    schedule = _length(ARCHITECTURES[options.family].schedule, options.steps)
    if options.rate:
        schedule = replace(schedule, lr=options.rate)
    train_teacher(options.family, options.autoencoder, options.out, options.seed, schedule, options.init)
    print(options.out)


def _length(schedule: Any, steps: int | None) -> Any:
    return replace(schedule, steps=steps) if steps else schedule
