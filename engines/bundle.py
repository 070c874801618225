"""A bundle: one generator as graphs, tokenizers and a manifest that vouches for every byte.

`bundle.json` holds the sampler's settings, each graph's inputs and outputs, the digest of every
file, the parity certificate and where it all came from. A bundle is identified by the digest of its
manifest, so two equal bundles have the same name wherever they lie.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import EngineError

MANIFEST = "bundle.json"
PARTS = ("text_encoder", "denoiser", "decoder")
SHIPPED = Path(__file__).parent / "shipped"

PrecisionName = Literal["fp32", "fp16", "bf16", "int8", "int8-qdq", "fp8-qdq"]
"""What graphs compute in, as the exporter names it. Runtimes decide by it what they can run."""
Size = tuple[int, int]
"""Width and height in pixels."""


class Tensor(BaseModel):
    """An input or output of a graph; a string in `shape` names a dynamic axis."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Graph(BaseModel):
    """One ONNX file of the bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class TextSpec(BaseModel):
    """How one tokenizer is fed; the fields are those of the student's `generator.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokenizer: str
    max_length: int
    template: str
    lowercase: bool
    kept: int | None = None

    def apply(self, prompt: str) -> str:
        if self.lowercase:
            prompt = prompt.lower().strip()
        return self.template.replace("{prompt}", prompt)


class SamplerSpec(BaseModel):
    """What the runtimes use of the student's `generator.json` (unknown keys are of no concern here)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    family: str
    levels: dict[int, tuple[float, ...]]
    sampler: Literal["sid", "euler"] = "sid"
    """The loop asks `renoise` alone: an Euler step is re-noising by `ddim`."""
    renoise: Literal["fresh", "fixed", "ddim"]
    time_scale: float
    text: tuple[TextSpec, ...]
    guidance_embedding: float | None
    latent_channels: int
    downsampling: int
    default_size: Size

    def latent_shape(self, size: Size) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of a picture of `size`."""
        width, height = size
        return self.latent_channels, height // self.downsampling, width // self.downsampling


class Parity(BaseModel):
    """How far the graphs are from PyTorch at one batch size."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    part: str
    """`text_encoder`, `denoiser`, `decoder`, `picture` for the whole sampler; `batch`: how far the
    graphs' latents and picture of an image in a batch are from those of the same image alone; `fused`:
    how far pictures of the fused graphs are from those of step calls; `torch`: how far conditioning,
    velocities and pictures of the `.pt2` programs are from PyTorch's."""
    batch_size: int
    max_abs: float
    relative: float
    """Largest difference over the largest reference value."""
    psnr_db: float | None = None
    """Of final pictures, against PyTorch; at least 40 dB is invisible. Equal pictures count as 100."""


class Certificate(BaseModel):
    """Proof, made at export, that the graphs do what the student does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: str
    """What was compared with, e.g. `torch 2.13.0 float32`."""
    runtime: str
    tolerance: dict[str, float]
    """Bounds that had to hold: part -> largest relative difference; `picture` -> smallest PSNR in dB."""
    measurements: tuple[Parity, ...] = Field(min_length=1)

    def failures(self) -> list[str]:
        """The bounds that do not hold, in words; a part without a measurement is a failure."""
        measured = {measurement.part for measurement in self.measurements}
        missing = [f"{part} was not measured" for part in (*PARTS, "picture") if part not in measured]
        return missing + [broken for one in self.measurements if (broken := self._broken(one))]

    def _broken(self, measurement: Parity) -> str | None:
        part, where = measurement.part, f"{measurement.part} at batch size {measurement.batch_size}"
        if part not in self.tolerance:
            return f"{where} has no bound"
        bound = self.tolerance[part]
        if part == "picture":
            psnr = -math.inf if measurement.psnr_db is None else measurement.psnr_db
            return None if psnr >= bound else f"{where} has {psnr} dB, at least {bound} needed"
        holds = measurement.relative <= bound  # false for NaN too
        return None if holds else f"{where} is off by {measurement.relative}, at most {bound} allowed"


class Manifest(BaseModel):
    """The content of `bundle.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    name: str
    spec: dict[str, Any]
    """The student's `generator.json`, whole."""
    precision: PrecisionName
    opset: int
    graphs: dict[str, Graph]
    """`text_encoder`, `denoiser`, `decoder`."""
    batch_sizes: tuple[int, ...] = Field(min_length=1)
    sizes: tuple[Size, ...] = Field(min_length=1)
    files: dict[str, str]
    """Relative path -> SHA-256 of every file but the manifest."""
    certificate: Certificate
    quality: dict[str, Any] | None = None
    """The student's quality card, if it has one."""
    fused: dict[int, Graph] = Field(default={}, exclude_if=lambda graphs: not graphs)
    """Step count -> the whole generator after the text encoder as one graph, for bundles that have them."""
    programs: dict[str, tuple[str, ...]] = Field(default={}, exclude_if=lambda programs: not programs)
    """Of a bundle that has `<part>.pt2`: the names of each program's inputs, in their order."""
    islands: dict[str, tuple[str, ...]] = Field(default={}, exclude_if=lambda islands: not islands)
    """Of a bundle in half precision: the layers of each part that compute in float32."""
    provenance: dict[str, str]


class Bundle:
    """A bundle on disk whose digests have been checked.

    Attributes:
        path: The folder.
        manifest: The content of `bundle.json`.
        digest: SHA-256 of `bundle.json`, as `sha256:...`.
        spec: The sampler's settings.
    """

    def __init__(self, path: Path, manifest: Manifest, digest: str) -> None:
        self.path, self.manifest, self.digest = path, manifest, digest

    @cached_property
    def spec(self) -> SamplerSpec:
        return SamplerSpec.model_validate(self.manifest.spec)

    @classmethod
    def load(cls, path: Path) -> Bundle:
        """Opens a bundle and checks every file against its digest.

        Raises:
            EngineError: not a bundle, a file is missing or altered, or there is no certificate.
        """
        file = path / MANIFEST
        if not file.is_file():
            raise EngineError(f"{path} is not a bundle: it has no {MANIFEST}; make one with `fewstep export`")
        content = file.read_bytes()
        bundle = cls(path, _parse(file, content), "sha256:" + hashlib.sha256(content).hexdigest())
        bundle._check_manifest()
        bundle._check_files()
        return bundle

    def _check_manifest(self) -> None:
        try:
            text = self.spec.text
        except ValidationError as error:
            raise EngineError(f"{self.path / MANIFEST}: spec.{_first(error)}") from error
        graphs = (*self.manifest.graphs.values(), *self.manifest.fused.values())
        needed = [graph.file for graph in graphs]
        needed += [f"{one.tokenizer}/tokenizer.json" for one in text]
        for problem in (
            *(f"graph {part} is missing" for part in PARTS if part not in self.manifest.graphs),
            *(f"{file!r} leads out of the bundle" for file in self.manifest.files if leads_out(file)),
            *(f"{file} has no digest" for file in needed if file not in self.manifest.files),
        ):
            raise EngineError(f"{self.path / MANIFEST}: {problem}; export the student again")
        for failure in self.manifest.certificate.failures():
            raise EngineError(f"{self.path / MANIFEST}: certificate: {failure}; export the student again")

    def _check_files(self) -> None:
        for name, expected in self.manifest.files.items():
            file = self.path / name
            if not file.is_file():
                raise EngineError(f"bundle {self.path}: {name} is missing; fetch or export it again")
            if sha256(file) != expected:
                raise EngineError(
                    f"bundle {self.path}: {name} does not match its digest; fetch or export it again"
                )


def leads_out(file: str) -> bool:
    """Whether a manifest's path is of a file outside of its folder: the manifest may be anybody's."""
    path = PurePosixPath(file)
    return path.is_absolute() or ".." in path.parts or "\\" in file


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _parse(file: Path, content: bytes) -> Manifest:
    try:
        return Manifest.model_validate(json.loads(content))
    except ValidationError as error:
        raise EngineError(f"{file}: {_first(error)}") from error
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{file} is not valid JSON: {error}") from error


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "file"
    return f"{where}: {first['msg']}"
