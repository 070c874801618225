"""Plans on disk: `tensorrt/<gpu>-<version>/` of a bundle, with a manifest that says what they are for.

A plan is a program for one GPU and one version, made from one graph with one set of weights. Its
identity is a digest over all of these. It is compared before a plan is loaded, so that none runs that
was made of something else; nor may one come from where a program would not be taken from.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..bundle import PARTS, Bundle, Parity, Tensor, sha256
from ..errors import EngineError
from .cuda import Gpu
from .profiles import Profile

FOLDER, MANIFEST = "tensorrt", "plans.json"
PORTABLE = "rtx"
"""In place of a GPU's name: TensorRT-RTX makes plans for several."""


class Target(BaseModel):
    """What a plan is made for and by: equal targets may share plans.

    Attributes:
        backend: `tensorrt` or `tensorrt-rtx`.
        version: Of the package.
        gpu: The name that the driver gives the GPU, or `rtx`.
        capabilities: Compute capabilities that the plans run on.
        flags: What the builder was told, by its own names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: str
    version: str
    gpu: str
    capabilities: tuple[str, ...]
    flags: tuple[str, ...]

    @property
    def folder(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.gpu.lower()).strip("-") + f"-{self.version}"


class Plan(BaseModel):
    """One part of the generator, compiled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    sha256: str
    identity: str
    structure: str
    """Digest of the graph without its weights: plans of one structure can be refitted."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    profiles: tuple[Profile, ...] = Field(min_length=1)


class Plans(BaseModel):
    """The content of `plans.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    target: Target
    plans: dict[str, Plan]
    parity: tuple[Parity, ...]
    """Against ONNX Runtime; empty where there was no GPU to run on."""


@dataclass(frozen=True)
class PlanFolder:
    """Plans that have been found to fit."""

    path: Path
    manifest: Plans

    def read(self, part: str) -> bytes:
        """The plan of a part.

        Raises:
            EngineError: it is missing or altered.
        """
        plan = self.manifest.plans[part]
        file = self.path / plan.file
        if not file.is_file():
            raise EngineError(f"{file} is missing; build the plans again")
        if sha256(file) != plan.sha256:
            raise EngineError(f"{file} does not match its digest; build the plans again")
        return file.read_bytes()


def identity(bundle: Bundle, part: str, target: Target, profiles: Sequence[Profile]) -> str:
    """Digest over graph, weights (also those in files beside it), profiles, flags, version and GPU."""
    graph = bundle.manifest.graphs[part].file
    files = {
        name: digest
        for name, digest in bundle.manifest.files.items()
        if name == graph or name.startswith(f"{graph}.")
    }
    shapes = [{name: span.model_dump() for name, span in profile.items()} for profile in profiles]
    # How the sampler's arithmetic is joined to the denoiser is part of what was compiled, too.
    content = {"part": part, "files": files, "profiles": shapes, "target": target.model_dump(), "step": 1}
    return "sha256:" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def find_plans(bundle: Bundle, backend: str, version: str, gpu: Gpu) -> PlanFolder:
    """The bundle's plans for this GPU and version.

    Raises:
        EngineError: there are none, or they were made from other graphs; says what there is and how to
            build what is missing.
    """
    there = [folder for folder in _folders(bundle) if folder.manifest.target.backend == backend]
    for folder in there:
        if not _mismatch(folder.manifest.target, version, gpu):
            _check_identities(bundle, folder)
            return folder
    found = "; ".join(_mismatch(folder.manifest.target, version, gpu) for folder in there) or "has none"
    raise EngineError(
        f"bundle {bundle.path} has no plans of {backend} {version} for {gpu.name} (compute capability"
        f" {gpu.capability}): {found}; make them with `{build_command(bundle, backend)}`"
    )


def has_plans(bundle: Bundle, backend: str) -> bool:
    return any(folder.manifest.target.backend == backend for folder in _folders(bundle))


def build_command(bundle: Bundle, backend: str) -> str:
    return f"fewstep build {bundle.path} --backend {backend}"


def _mismatch(target: Target, version: str, gpu: Gpu) -> str:
    """Why plans of `target` are not for this machine, in words; empty if they are."""
    if target.version != version:
        return f"those for {target.gpu} are of version {target.version}"
    if target.gpu not in (gpu.name, PORTABLE):
        return f"those of version {target.version} are for {target.gpu}"
    if gpu.capability not in target.capabilities:
        return f"those for {target.gpu} run on compute capability {', '.join(target.capabilities)}"
    return ""


def _check_identities(bundle: Bundle, folder: PlanFolder) -> None:
    manifest = folder.manifest
    for part in PARTS:
        plan = manifest.plans.get(part)
        if plan is None or plan.identity != identity(bundle, part, manifest.target, plan.profiles):
            raise EngineError(
                f"{folder.path}: the plan of {part} was made from another graph than the bundle's;"
                f" make it again with `{build_command(bundle, manifest.target.backend)}`"
            )


def _folders(bundle: Bundle) -> list[PlanFolder]:
    return [open_plans(file.parent) for file in sorted((bundle.path / FOLDER).glob(f"[!.]*/{MANIFEST}"))]


def open_plans(folder: Path) -> PlanFolder:
    """Reads `plans.json`.

    Raises:
        EngineError: it is not valid.
    """
    file = folder / MANIFEST
    try:
        return PlanFolder(folder, Plans.model_validate_json(file.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise EngineError(f"{file}: {where}: {first['msg']}; build the plans again") from error
