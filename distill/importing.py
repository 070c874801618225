"""Few-step models that others have distilled, wrapped as student folders: not one weight changes.

The folder is copied as it is; `generator.json` and the card say how it is sampled, and the stock
pipeline class and scheduler become those that sample it so.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from . import hub
from .errors import DistillError
from .files import atomic_folder
from .flow import level_of_angle
from .pipeline import Pipeline, family_of, find_pipeline, forget_paths, load_pipeline, read_json
from .recipe import Text
from .releases import INDEX, SPRINT, Candidate, Sampling, Size, parts, sampling_of
from .sampler import scheduled_levels
from .spec import FILE_NAME, GeneratorSpec, Sampler, uniform_levels
from .student import model_card, stock_scheduler

PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
HOW = {"sid": "re-noised between steps", "euler": "stepped by Euler's rule"}


def import_student(source: str, out: Path, **wishes: Any) -> GeneratorSpec:
    """Writes the student folder `out` around a few-step checkpoint.

    Args:
        source: A diffusers pipeline folder, or its id on the hub.
        out: A new or empty folder.
        wishes: Fields of `Sampling` that are to be otherwise than published; `sampler` is needed for a
            model that is in no line of `RELEASES`.

    Raises:
        DistillError: not a few-step pipeline that can be told or loaded, an incomplete or pickled one,
            impossible wishes, or `out` holds something. Nothing is left behind then.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DistillError(f"{out} exists and is not an empty folder: give a new one")
    found = examine(source)
    sampling = sampling_of(found, {name: value for name, value in wishes.items() if value is not None})
    pipeline = _load(found, sampling)
    spec = _spec(found, pipeline, sampling)
    with atomic_folder(out) as staged:
        _copy(found, pipeline, spec, staged)
        spec.save(staged)
    return spec


def examine(source: str) -> Candidate:
    """Reads the configuration of a pipeline folder.

    Raises:
        DistillError: it is a single file, pickled, incomplete, or a student already.
    """
    path = Path(source)
    if path.is_file():
        _refuse_pickles([path])
        raise DistillError(f"{path} is a file: a whole diffusers pipeline folder is needed")
    if path.is_dir() and not (path / INDEX).is_file():
        _refuse_pickles(path.iterdir())
    folder = find_pipeline(source)
    if (folder / FILE_NAME).is_file():
        raise DistillError(f"{folder} is a student folder already: `fewstep export` takes it as it is")
    for part in parts(folder):
        if not (folder / part).is_dir():
            raise DistillError(f"{folder}: no {part}, which {INDEX} names; is the download complete?")
        _refuse_pickles((folder / part).iterdir())
    configs = [folder / "transformer" / "config.json", folder / "scheduler" / "scheduler_config.json"]
    return Candidate(folder, hub.name_of(folder.resolve()), family_of(folder), *map(read_json, configs))


def sprint_levels(steps: int) -> tuple[float, ...]:
    """The levels that the angles of SANA-Sprint's stock pipeline stand for (`families/sana.py`).

    The first angle, 1.5708, is a right one rounded up.
    """
    from diffusers import SCMScheduler

    scheduler = SCMScheduler()
    scheduler.set_timesteps(steps, **_middle(steps))
    return (1.0, *level_of_angle(scheduler.timesteps.double())[1:-1].tolist())


def _middle(steps: int) -> dict[str, None]:
    """Angles lie evenly but for two steps, where the stock pipeline has one of its own in the middle."""
    return {} if steps == 2 else {"intermediate_timesteps": None}


def _refuse_pickles(files: Iterable[Path]) -> None:
    """Pickled weights are refused where there are no others."""
    files = sorted(files)
    pickles = [file for file in files if file.suffix in PICKLES]
    if pickles and not any(file.suffix == ".safetensors" for file in files):
        raise DistillError(
            f"{pickles[0]} is a pickle, which can run code when it is opened: convert it to safetensors where "
            "you trust it, by loading it (a SiD snapshot keeps its generator under `ema`) into the transformer "
            "of its teacher's pipeline and saving that with save_pretrained"
        )


def _load(found: Candidate, sampling: Sampling) -> Pipeline:
    """The pipeline, only to see that it is whole: its files are what is copied."""
    instruction = sampling.instruction and found.family.instruction is not None
    return load_pipeline(
        str(found.folder),
        text=Text(length=sampling.text_length, instruction=instruction),
        time_scale=1.0 if found.sprint or SPRINT.search(found.name) else None,
        dtype=torch.bfloat16,
        few_step=True,
    )


def _spec(found: Candidate, pipeline: Pipeline, sampling: Sampling) -> GeneratorSpec:
    size = sampling.size or pipeline.default_size
    channels = pipeline.latent_shape(size)[0]
    try:
        return GeneratorSpec(
            family=found.family.name,
            levels={n: _levels(found, pipeline, sampling.sampler, n, size) for n in sorted(sampling.steps)},
            sampler=sampling.sampler,
            renoise="ddim" if sampling.sampler == "euler" else "fresh",
            time_scale=pipeline.time_scale,
            text=pipeline.text,
            guidance_embedding=sampling.guidance if found.guidance_input else None,
            latent_channels=channels,
            downsampling=pipeline.downsampling,
            default_size=size,
            teacher=found.name,
            teacher_digest=pipeline.digest(),
        )
    except ValidationError as error:
        raise DistillError(f"{found.name}: levels of its scheduler: {error.errors()[0]['msg']}") from error


def _levels(
    found: Candidate, pipeline: Pipeline, sampler: Sampler, steps: int, size: Size
) -> tuple[float, ...]:
    if sampler == "sid":
        return sprint_levels(steps) if found.sprint else uniform_levels(steps)
    kind = found.scheduler.get("_class_name")
    if kind != "FlowMatchEulerDiscreteScheduler" or found.scheduler.get("stochastic_sampling"):
        raise DistillError(
            f"{found.name}: sampler euler takes its levels from a FlowMatchEulerDiscreteScheduler that adds "
            f"no noise, and this has a {kind}"
        )
    return scheduled_levels(pipeline, steps, size)


def _copy(found: Candidate, pipeline: Pipeline, spec: GeneratorSpec, staged: Path) -> None:
    """The pipeline's files, with the stock pipeline and scheduler that sample as `spec` says."""
    safe = shutil.ignore_patterns(*(f"*{ending}" for ending in PICKLES))
    for part in parts(found.folder):
        shutil.copytree(found.folder / part, staged / part, ignore=safe)
    index = read_json(found.folder / INDEX)
    stock, schedule = "SanaSprintPipeline", None
    if found.sprint:
        steps = max(spec.levels)
        schedule = {"num_inference_steps": steps, **_middle(steps)}
    else:
        stock, scheduler = found.family.pipeline, stock_scheduler(spec)
        scheduler.save_pretrained(staged / "scheduler")
        index["scheduler"] = ["diffusers", type(scheduler).__name__]
        _tell_time_scale(pipeline, spec, staged / "transformer" / "config.json")
    (staged / INDEX).write_text(json.dumps({**index, "_class_name": stock}, indent=2) + "\n")
    forget_paths(staged)
    title = f"{spec.teacher} in {max(spec.levels)} step{'s' if max(spec.levels) > 1 else ''}"
    about = f"The published weights, unchanged; {HOW[spec.sampler]}."
    (staged / "README.md").write_text(model_card(pipeline, spec, title, about, stock, schedule))


def _tell_time_scale(pipeline: Pipeline, spec: GeneratorSpec, config: Path) -> None:
    """`SanaPipeline` reads there what the network is told of its scheduler's 1000 t."""
    if "timestep_scale" in pipeline.modules.transformer.config:
        content = {**read_json(config), "timestep_scale": spec.time_scale / 1000}
        config.write_text(json.dumps(content, indent=2) + "\n")
