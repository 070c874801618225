"""Models by name or folder: a teacher, a student or a bundle, all seen as one thing that draws."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engines.errors import EngineError

if TYPE_CHECKING:
    from distill.pipeline import Pipeline

Images = npt.NDArray[np.uint8]

TEACHER_STEPS = 28
FASTER_IN_ONE_GRAPH = {
    ("onnxruntime-cpu", precision) for precision in ("fp32", "int8", "int8-qdq", "fp8-qdq")
}
"""Backends and precisions for which it was measured (docs/benchmarks.md)."""


@dataclass(frozen=True)
class Model:
    """Something that draws.

    Attributes:
        kind: `teacher`, `student` or `bundle`.
        folder: Where it lies.
        step_counts: What a student or bundle offers; a teacher takes any count.
        draw: (prompts, seeds, steps, guidance) -> uint8 [N, H, W, 3].
        digest: SHA-256 of all that its pictures depend on; reads every file.
    """

    kind: str
    folder: Path
    step_counts: tuple[int, ...]
    draw: Callable[[Sequence[str], Sequence[int], int, float], Images]
    digest: Callable[[], str]

    @property
    def default_steps(self) -> int:
        return max(self.step_counts, default=TEACHER_STEPS)


def open_model(
    name_or_path: str, device: str | None = None, few_step: bool = False, backend: str = "auto"
) -> Model:
    """Loads a model given by folder, by shipped name, or by a bundle's name in the store.

    With `few_step` a teacher is run as the student that it is before any distillation. `backend` is what
    runs a bundle; teachers and students run on PyTorch.

    Raises:
        DistillError, EngineError: there is none, or it is damaged.
    """
    if (Path(name_or_path) / "bundle.json").is_file():
        return _bundle(Path(name_or_path), backend)
    if stored := _stored(name_or_path):
        return _bundle(stored, backend)
    if backend not in ("auto", "torch"):
        raise EngineError(f"backend {backend} runs bundles, and {name_or_path} is none; export it first")
    from distill.pipeline import load_pipeline

    pipeline = load_pipeline(name_or_path, device or default_device())
    return _pipeline(_as_student(pipeline) if few_step and pipeline.spec is None else pipeline)


def _stored(name: str) -> Path | None:
    from engines.store import Store
    from service.settings import read_settings

    return Store(read_settings().store).find(name)


def default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _as_student(teacher: Pipeline) -> Pipeline:
    from distill.recipe import Recipe
    from distill.student import new_spec

    return replace(teacher, spec=new_spec(teacher, Recipe(teacher=teacher.name)))


def _bundle(folder: Path, backend: str) -> Model:
    from engines.bundle import Bundle
    from engines.runtime import load_runtime
    from engines.runtime.fused import FusedGenerator
    from engines.runtime.sampler import generate

    runtime = load_runtime(Bundle.load(folder), backend)
    bundle = runtime.bundle
    fused = bundle.manifest.fused and (runtime.backend, bundle.manifest.precision) in FASTER_IN_ONE_GRAPH
    make = FusedGenerator(runtime).generate if fused else partial(generate, runtime)

    def draw(prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> Images:
        return make(prompts, seeds, steps)

    return Model("bundle", folder, tuple(sorted(bundle.spec.levels)), draw, lambda: bundle.digest)


def _pipeline(pipeline: Pipeline) -> Model:
    from distill.pictures import to_images
    from distill.sampler import sample_student, sample_teacher

    def draw(prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> Images:
        if pipeline.spec is not None:
            return to_images(sample_student(pipeline, prompts, seeds, steps))
        return to_images(sample_teacher(pipeline, prompts, seeds, steps, guidance))

    def digest() -> str:
        spec = pipeline.spec.model_dump_json() if pipeline.spec else ""
        return f"sha256:{hashlib.sha256((pipeline.digest() + spec).encode()).hexdigest()}"

    kind, counts = ("student", tuple(sorted(pipeline.spec.levels))) if pipeline.spec else ("teacher", ())
    return Model(kind, pipeline.folder, counts, draw, digest)
