"""Reads a student folder: the spec, the stock pipeline, and a digest of what both are made of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers import T5EncoderModel
from transformers.utils import logging as transformers_logging

from distill.errors import DistillError
from distill.families import Family, family_named
from distill.spec import GeneratorSpec

from ..bundle import Size, sha256
from ..errors import EngineError
from .graphs import patch_of

EAGER = (T5EncoderModel,)
"""Encoders whose fused attention cannot be traced; the plain one computes the same."""
QUALITY = "quality.json"


@dataclass(frozen=True)
class Student:
    """A student in memory, float32, on the CPU."""

    name: str
    spec: GeneratorSpec
    family: Family
    pipeline: Any
    digest: str
    quality: dict[str, Any] | None

    @property
    def weight_bytes(self) -> int:
        """Of all networks in memory, and so more than their graphs take on disk."""
        networks = (part for part in self.pipeline.components.values() if isinstance(part, torch.nn.Module))
        return sum(weight.nbytes for network in networks for weight in network.parameters())

    def check_sizes(self, sizes: tuple[Size, ...] | None) -> tuple[Size, ...]:
        """The sizes to certify: the student's own if none are given.

        Raises:
            EngineError: a side is not a multiple of what one patch covers.
        """
        multiple = self.spec.downsampling * patch_of(self.family, self.pipeline.transformer)
        for width, height in sizes or ():
            if min(width, height) < multiple or width % multiple or height % multiple:
                raise EngineError(
                    f"size {width}x{height}: width and height have to be multiples of {multiple}"
                )
        return sizes or (self.spec.default_size,)


def load_student(folder: Path) -> Student:
    """Loads a student with stock diffusers.

    Raises:
        EngineError: not a student folder, or a part of it cannot be read.
    """
    try:
        spec = GeneratorSpec.load(folder)
        family = family_named(spec.family)
    except DistillError as error:
        raise EngineError(str(error)) from error
    if not (folder / "model_index.json").is_file():
        raise EngineError(f"{folder} is not a student folder: it has no model_index.json")
    pipeline = _load_pipeline(folder, family)
    for encoder in family.encoders(pipeline):
        if isinstance(encoder, EAGER):
            encoder.set_attn_implementation("eager")
    quality = _json(folder / QUALITY) if (folder / QUALITY).is_file() else None
    return Student(folder.resolve().name, spec, family, pipeline, _digest(folder), quality)


def _load_pipeline(folder: Path, family: Family) -> Any:
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    absent = family.absent(_json(folder / "model_index.json"))
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, **absent
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise EngineError(f"diffusers cannot load {folder}: {error}") from error
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    return pipeline


def _digest(folder: Path) -> str:
    """Of the pipeline's files and the spec; run logs and samples beside them do not count."""
    index = _json(folder / "model_index.json")
    files = [folder / "generator.json", folder / "model_index.json"]
    files += [file for name in index for file in (folder / name).rglob("*") if file.is_file()]
    lines = sorted(f"{file.relative_to(folder).as_posix()} {sha256(file)}" for file in files)
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise EngineError(f"{file} is not valid JSON: {error}") from error
    return content
