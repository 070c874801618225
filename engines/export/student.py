"""Reads a student folder: the spec, the stock pipeline, and a digest of what both are made of.

Of a large student one part is in memory at a time: text encoders, denoiser or autoencoder.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError, safe_open
from transformers import T5EncoderModel
from transformers.utils import logging as transformers_logging

from distill.errors import DistillError
from distill.families import Family, family_named
from distill.spec import FILE_NAME as SPEC
from distill.spec import GeneratorSpec

from ..bundle import Size, sha256
from ..errors import EngineError
from .graphs import patch_of

EAGER = (T5EncoderModel,)
"""Encoders whose fused attention cannot be traced; the plain one computes the same."""
QUALITY = "quality.json"
LARGE = 2**31
"""Bytes of weights in float32; students with less are loaded at once."""


@dataclass(frozen=True)
class Student:
    """A student, float32, on the CPU.

    Attributes:
        pipeline: Its tokenizers, and its networks when they are asked for.
        weight_bytes: Of all networks in float32, and so more than their graphs take on disk.
        patch: Latent positions per token along each side.
        positions: Tokens along each side for which the denoiser has embeddings; None if any number.
    """

    name: str
    spec: GeneratorSpec
    family: Family
    pipeline: Any
    digest: str
    quality: dict[str, Any] | None
    weight_bytes: int
    patch: int
    positions: int | None

    @property
    def large(self) -> bool:
        return self.weight_bytes >= LARGE

    def check_sizes(self, sizes: tuple[Size, ...] | None) -> tuple[Size, ...]:
        """The sizes to certify: the student's own if none are given.

        Raises:
            EngineError: a side is not a multiple of what one patch covers, or longer than the denoiser's
                table of positions.
        """
        multiple = self.spec.downsampling * self.patch
        for width, height in sizes or ():
            if min(width, height) < multiple or width % multiple or height % multiple:
                raise EngineError(
                    f"size {width}x{height}: width and height have to be multiples of {multiple}"
                )
            if self.positions and max(width, height) > self.positions * multiple:
                raise EngineError(
                    f"size {width}x{height}: at most {self.positions * multiple} pixels a side, for which"
                    " the denoiser has positions"
                )
        return sizes or (self.spec.default_size,)


def load_student(folder: Path) -> Student:
    """Opens a student, to be loaded with stock diffusers: at once, or part by part if it is large.

    Raises:
        EngineError: not a student folder, or a part of it cannot be read.
    """
    try:
        spec = GeneratorSpec.load(folder)
        family = family_named(spec.family)
    except DistillError as error:
        raise EngineError(f"{error}{_advice(folder)}") from error
    if not (folder / "model_index.json").is_file():
        raise EngineError(f"{folder} is not a student folder: it has no model_index.json")
    weight_bytes = _weight_bytes(folder)
    pipeline = Parts(folder, family, apart=weight_bytes >= LARGE)
    config = _json(folder / "transformer" / "config.json")
    patch, positions = patch_of(family, config), config.get("pos_embed_max_size")
    quality = _json(folder / QUALITY) if (folder / QUALITY).is_file() else None
    name, digest = folder.resolve().name, _digest(folder)
    return Student(name, spec, family, pipeline, digest, quality, weight_bytes, patch, positions)


def _advice(folder: Path) -> str:
    """What to do with a pipeline that is no student."""
    if (folder / SPEC).is_file() or not (folder / "model_index.json").is_file():
        return ""
    return "; make one of it with `fewstep distill`, or with `fewstep import` if it is a few-step model"


class Parts:
    """A pipeline whose networks are loaded when they are asked for.

    Args:
        folder: Of the pipeline.
        family: What its networks are called.
        apart: Whether text encoders, denoiser and autoencoder make room for each other; else they are
            loaded together, here.

    Raises:
        EngineError: it cannot be loaded. Of networks that are apart only when they are asked for.
    """

    def __init__(self, folder: Path, family: Family, apart: bool) -> None:
        self._folder, self._family = folder, family
        self._groups: tuple[tuple[str, ...], ...] = (family.text_encoders, ("transformer",), ("vae",))
        self._base = _load_pipeline(folder, family, () if apart else _flat(self._groups))
        self._apart, self._held = apart, self._base
        self._holds: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        group = next((group for group in self._groups if name in group), ())
        if self._apart and group:
            self._hold(group)
        return getattr(self._held if group else self._base, name)

    def _hold(self, group: tuple[str, ...]) -> None:
        if group != self._holds:
            self._held, self._holds = None, ()
            gc.collect()
            self._held, self._holds = _load_pipeline(self._folder, self._family, group), group


def _load_pipeline(folder: Path, family: Family, networks: tuple[str, ...]) -> Any:
    """The pipeline with these networks alone."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # of image processors that no student uses
    absent = family.absent(_json(folder / "model_index.json"))
    absent |= {name: None for name in (*family.text_encoders, "transformer", "vae") if name not in networks}
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, **absent
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise EngineError(f"diffusers cannot load {folder}: {error}") from error
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
        if isinstance(component, EAGER):
            component.set_attn_implementation("eager")
    return pipeline


def _flat(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(name for group in groups for name in group)


def _weight_bytes(folder: Path) -> int:
    """In float32, of all networks; only the headers of their files are read.

    Raises:
        EngineError: a file is not in the format of safetensors.
    """
    count = 0
    for file in sorted(folder.glob("*/*.safetensors")):
        try:
            with safe_open(file, "pt") as weights:
                names = list(weights.keys())
                count += sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
        except SafetensorError as error:
            raise EngineError(f"cannot read {file}: {error}") from error
    return 4 * count


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
    except OSError as error:
        raise EngineError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise EngineError(f"{file} is not valid JSON: {error}") from error
    return content
