"""Student folders: a complete diffusers pipeline that stock diffusers samples, plus `generator.json`."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler
from torch import Tensor

from .errors import DistillError
from .files import open_to_others, staging_folder, write_json
from .pipeline import Pipeline, forget_paths, quiet
from .recipe import Recipe
from .spec import FILE_NAME, GeneratorSpec

QUALITY_CARD = "quality.json"
DISTILLED = "Distilled with Score identity Distillation (arXiv 2509.25127)."

MODEL_CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
---
# {title}

{about} Samples without classifier-free guidance:

```python
{load}
image = pipe(
    "a red circle on a white background",
    {schedule},  # {steps} step{plural}
    guidance_scale={guidance},
    height={height},
    width={width},{extra}
).images[0]
```
{others}"""

OTHER_STEPS = """
Other step counts: {levels}.
A bare `num_inference_steps` makes the scheduler choose levels of its own, which the student was never trained at.
"""

LOAD = """from diffusers import {pipeline}

pipe = {pipeline}.from_pretrained("this folder")"""
LOAD_LORA = """from diffusers import FlowMatchLCMScheduler, {pipeline}

pipe = {pipeline}.from_pretrained("{teacher}")
pipe.scheduler = FlowMatchLCMScheduler(shift=1.0)
pipe.load_lora_weights("this folder")"""


def new_spec(teacher: Pipeline, recipe: Recipe) -> GeneratorSpec:
    """The spec of a student of `teacher` made by `recipe`.

    Raises:
        DistillError: the recipe asks for a LoRA, and the student needs another configuration than the teacher.
    """
    if recipe.adapter and recipe.adapter.save == "lora" and teacher.family.trigflow:
        raise DistillError(
            f"recipe: adapter.save: a LoRA cannot carry the time scale of a {teacher.family.name} student; "
            "use merged"
        )
    return GeneratorSpec(
        family=teacher.family.name,
        levels=recipe.levels,
        renoise=recipe.renoise,
        time_scale=teacher.time_scale,
        text=teacher.text,
        guidance_embedding=recipe.guidance.student_embed if teacher.guidance_input else None,
        latent_channels=teacher.latent_shape()[0],
        downsampling=teacher.downsampling,
        default_size=recipe.size or teacher.default_size,
        teacher=teacher.name,
        teacher_digest=teacher.digest(),
        recipe_digest=recipe.digest,
    )


def save_student(
    teacher: Pipeline,
    weights: dict[str, Tensor],
    spec: GeneratorSpec,
    out: Path,
    dtype: torch.dtype = torch.float16,
    quality: dict[str, Any] | None = None,
) -> None:
    """Writes the student folder `out`: the teacher's pipeline with `weights` in its transformer.

    The folder is written beside `out` and moved into place part by part, `generator.json` last: a
    folder that has one is whole. What else lies in `out` (the run's logs) stays.
    """
    quiet()
    with staging_folder(out) as staged:
        _assembled(teacher, weights, spec, dtype).save_pretrained(staged)
        forget_paths(staged)
        _describe(staged, teacher, spec, LOAD, quality)
        _move_in(staged, out)


def save_lora(
    teacher: Pipeline,
    role: torch.nn.Module,
    spec: GeneratorSpec,
    out: Path,
    dtype: torch.dtype = torch.float16,
    quality: dict[str, Any] | None = None,
) -> None:
    """Writes `role`'s adapter to the folder `out` for diffusers' `load_lora_weights`, as `save_student` does.

    The folder needs the teacher beside it, so no other command takes it.
    """
    from peft import get_peft_model_state_dict

    layers = {name: value.to(dtype).contiguous() for name, value in get_peft_model_state_dict(role).items()}
    settings = role.peft_config["default"].to_dict()  # type: ignore[index,union-attr]
    with staging_folder(out) as staged:
        type(teacher.modules).save_lora_weights(
            staged, transformer_lora_layers=layers, transformer_lora_adapter_metadata=settings
        )
        _describe(staged, teacher, spec, LOAD_LORA, quality)
        _move_in(staged, out)


def replace_student(source: Path, out: Path) -> None:
    """Makes `out` the student that `source` is."""
    with staging_folder(out) as staged:
        shutil.copytree(source, staged, dirs_exist_ok=True)
        _move_in(staged, out)


def _assembled(teacher: Pipeline, weights: dict[str, Tensor], spec: GeneratorSpec, dtype: torch.dtype) -> Any:
    """The teacher's pipeline with the student's transformer and scheduler."""
    modules = copy.copy(teacher.modules)
    with torch.device("meta"):
        transformer: Any = teacher.new_transformer()
    transformer.load_state_dict(weights, assign=True)
    if "timestep_scale" in transformer.config:  # of the scheduler's 1000 t
        transformer.register_to_config(timestep_scale=spec.time_scale / 1000)
    modules.register_modules(
        transformer=transformer.to(dtype),
        vae=_smaller_if_exact(modules.vae, dtype),
        scheduler=stock_scheduler(spec),
    )
    return modules


def stock_scheduler(spec: GeneratorSpec) -> Any:
    """The scheduler with which stock diffusers follows `spec`; none keeps the first noise (`fixed`)."""
    kind = FlowMatchEulerDiscreteScheduler if spec.renoise == "ddim" else FlowMatchLCMScheduler
    return kind(shift=1.0)


def _smaller_if_exact(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """A copy in `dtype`, or float16 where a smaller one is wanted, if no weight changes by it (the teacher
    stored that part so), else as it is."""
    for wanted in (dtype, torch.float16) if dtype.itemsize == 2 else (dtype,):
        smaller = copy.deepcopy(module).to(wanted)
        pairs = zip(module.parameters(), smaller.parameters())
        if all(torch.equal(a, b.to(a.dtype)) for a, b in pairs):
            return smaller
    return module


def _describe(
    folder: Path, teacher: Pipeline, spec: GeneratorSpec, load: str, quality: dict[str, Any] | None
) -> None:
    title = f"{max(spec.levels)}-step student of {spec.teacher}"
    (folder / "README.md").write_text(model_card(teacher, spec, title, DISTILLED, load=load))
    if quality is not None:
        write_json(folder / QUALITY_CARD, quality)
    spec.save(folder)


def _move_in(staged: Path, out: Path) -> None:
    open_to_others(staged)
    out.mkdir(parents=True, exist_ok=True)
    for of_the_one_before in (FILE_NAME, QUALITY_CARD):
        (out / of_the_one_before).unlink(missing_ok=True)
    for part in sorted(staged.iterdir(), key=lambda path: path.name == FILE_NAME):
        target = out / part.name
        if target.is_dir():
            shutil.rmtree(target)
        part.replace(target)


def model_card(
    pipeline: Pipeline,
    spec: GeneratorSpec,
    title: str,
    about: str,
    stock: str | None = None,
    schedule: Mapping[str, object] | None = None,
    load: str = LOAD,
) -> str:
    """The `README.md` of a student folder, with the call that samples it in stock diffusers.

    Args:
        pipeline: What the student was made of.
        spec: Of the student.
        title: Its heading.
        about: A sentence on how it was made.
        stock: The pipeline class, if it is not the family's.
        schedule: What that class has to be told to run the levels, if it is not `sigmas`.
        load: How the folder is loaded.
    """
    steps = max(spec.levels)
    width, height = spec.default_size
    last = spec.text[-1]
    extra = {
        "max_sequence_length": last.kept or last.max_length,
        **pipeline.family.stock_arguments(spec.text),
    }
    return MODEL_CARD.format(
        title=title,
        about=about,
        steps=steps,
        plural="s" if steps > 1 else "",
        load=load.format(pipeline=stock or pipeline.family.pipeline, teacher=spec.teacher),
        schedule=", ".join(_arguments(schedule or {"sigmas": list(spec.levels[steps])})),
        guidance=1 if spec.guidance_embedding is None else spec.guidance_embedding,
        height=height,
        width=width,
        extra="".join(f"\n    {argument}," for argument in _arguments(extra)),
        others="" if schedule else _other_steps(spec),
    )


def _other_steps(spec: GeneratorSpec) -> str:
    *others, _ = sorted(spec.levels)
    levels = ", ".join(f"{steps} is `sigmas={list(spec.levels[steps])}`" for steps in others)
    return OTHER_STEPS.format(levels=levels or "none")


def _arguments(values: Mapping[str, object]) -> list[str]:
    return [f"{name}={value!r}" for name, value in values.items()]
