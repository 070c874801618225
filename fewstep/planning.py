"""`fewstep plan` and `fewstep distill --dry-run`: a plan as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from distill.errors import DistillError
from distill.planning.gpus import GIB, GPUS, Gpu
from distill.planning.plan import RESERVE, Estimate, Memory, Plan
from distill.planning.remedies import remedies

NOTE = (
    "Memory was counted by running the training code on tensors without memory; {reserve:.0f} GiB are kept free for\n"
    "CUDA itself. Times are estimates: operations over {share:.0%} of the GPU's dense rate, without communication,\n"
    "sample grids and loading. On an H100 peaks were as predicted within 3%; small batches took 2 to 13 times the time."
)


def gpu_named(name: str) -> Gpu:
    """
    Raises:
        DistillError: it is not in the table.
    """
    for gpu in GPUS.values():
        if gpu.name.lower() == name.lower():
            return gpu
    raise DistillError(f"--gpu {name}: expected one of {', '.join(GPUS)}")


def as_json(plan: Plan, gpu: Gpu) -> dict[str, Any]:
    """Bytes, seconds and operations; `remedies` are for `gpu`."""
    return {
        "teacher": plan.recipe.teacher,
        "mode": asdict(plan.plain.mode),
        "precision": plan.recipe.precision,
        "sizes": asdict(plan.sizes),
        "images_at_a_time": plan.images,
        "parts": plan.parts,
        "passes_per_image": asdict(plan.passes),
        "utilisation": plan.utilisation,
        "reserve": RESERVE,
        "plain": _estimate_json(plan, plan.plain),
        "checkpointed": _estimate_json(plan, plan.checkpointed),
        "gpu": gpu.name,
        "remedies": remedies(plan, gpu),
    }


def _estimate_json(plan: Plan, estimate: Estimate) -> dict[str, Any]:
    return {
        "memory": {**asdict(estimate.memory), "total": estimate.memory.total},
        "peak": estimate.stage,
        "flops_per_iteration": estimate.flops,
        "gpus": {
            gpu.name: {
                "fits": estimate.fits(gpu),
                "seconds_per_iteration": plan.seconds(estimate, gpu),
                "hours": _hours(plan, estimate, gpu),
            }
            for gpu in GPUS.values()
        },
    }


def as_text(plan: Plan, gpu: Gpu) -> str:
    parts = (_heading(plan), _memory(plan), _gpus(plan), _advice(plan, gpu))
    note = NOTE.format(reserve=RESERVE / GIB, share=plan.utilisation)
    if plan.recipe.data is not None:
        note += " What real images add is not counted."
    return "\n\n".join((*parts, note))


def _heading(plan: Plan) -> str:
    recipe, mode, passes = plan.recipe, plan.plain.mode, plan.passes
    gpus = "one GPU" if mode.gpus == 1 else f"each of {mode.gpus} GPUs (parallel: fsdp)"
    trained = f"adapters of {plan.sizes.adapters / 1e6:.0f} M" if mode.adapter else "all weights"
    return (
        f"{recipe.teacher}: {plan.sizes.network / 1e9:.2f} B parameters, {trained} trained, "
        f"{recipe.precision}\n"
        f"batch {recipe.batch}: {_count(plan.parts, 'part')} of {_count(plan.images, 'image')} on {gpus}\n"
        f"network passes for an image, expected: {passes.no_graph:g} forward only, {passes.weights:g} with backward "
        f"to the weights, {passes.inputs:g} with backward to the inputs"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _memory(plan: Plan) -> str:
    columns = [plan.plain.memory, plan.checkpointed.memory]
    rows = [
        _memory_row(name.replace("_", " "), [getattr(memory, name) for memory in columns])
        for name in Memory.__dataclass_fields__
        if any(getattr(memory, name) for memory in columns)
    ]
    peaks = [estimate.stage.replace("_", " ") for estimate in (plan.plain, plan.checkpointed)]
    return "\n".join(
        [
            f"{'GiB on each GPU':<20}{'kept':>12}{'checkpointed':>16}",
            *rows,
            _memory_row("total", [memory.total for memory in columns]),
            f"peak: in {peaks[0]}, with activation checkpointing in {peaks[1]}",
        ]
    )


def _memory_row(name: str, sizes: list[int]) -> str:
    return f"{name:<20}{sizes[0] / GIB:>12.2f}{sizes[1] / GIB:>16.2f}"


def _gpus(plan: Plan) -> str:
    head = f"{'GPU':<12}{'GiB':>5}  {'activations kept':<34}{'checkpointed'}"
    rows = [
        f"{gpu.name:<12}{gpu.gib:>5.0f}  {_time(plan, plan.plain, gpu):<34}{_time(plan, plan.checkpointed, gpu)}"
        for gpu in GPUS.values()
    ]
    return "\n".join([head, *rows])


def _time(plan: Plan, estimate: Estimate, gpu: Gpu) -> str:
    if not estimate.fits(gpu):
        return "does not fit"
    seconds, hours = plan.seconds(estimate, gpu), _hours(plan, estimate, gpu)
    return f"~{seconds:.3g} s/iteration, ~{hours:.2g} h"


def _hours(plan: Plan, estimate: Estimate, gpu: Gpu) -> float:
    return plan.seconds(estimate, gpu) * plan.recipe.iterations / 3600


def _advice(plan: Plan, gpu: Gpu) -> str:
    if plan.plain.fits(gpu):
        return f"It fits on {gpu.name}."
    found = remedies(plan, gpu)
    if not found:
        return f"Nothing that is planned here makes it fit on {gpu.name}: take a larger GPU."
    return "\n".join([f"To fit on {gpu.name}, any of:", *(f"  {line}" for line in found)])
