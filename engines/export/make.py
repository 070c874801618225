"""One student in one precision -> the files of a bundle, certified."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto
from tokenizers import Tokenizer

from ..bundle import MANIFEST, Graph, Manifest, SamplerSpec, Size, sha256
from ..errors import EngineError
from ..runtime.base import Images
from ..runtime.fused import FusedGraphs
from ..runtime.onnx import OnnxGraph, OnnxNetworks
from ..runtime.sampler import sample
from ..runtime.torch import TorchPrograms
from ..widen import open_widened
from .certificate import certify
from .external import in_memory, is_external
from .float8 import in_float8
from .fuse import write_fused
from .graphs import Part, parts_of
from .half import in_half, islands_of
from .precision import PRECISIONS, Half, Precision
from .probe import probe
from .program import write_program
from .quantize import denoiser_feeds, with_dynamic_scales, with_fixed_scales
from .reference import TorchNetworks
from .staged import OneAtATime
from .student import Student
from .trace import BFLOAT16_OPSET, OPSET, trace_part, write_graph

EXPORTERS = ("torch", "diffusers", "transformers", "onnx", "onnxscript")

WIDENED = ", each operation in float32 and its result rounded to bfloat16"

Say = Callable[[str], None]
Draw = Callable[[Sequence[str], Sequence[int], int], Images]
"""(prompts, seeds, steps) -> pictures."""
Judge = Callable[[Draw, Sequence[int]], dict[str, Any]]
"""(what draws, step counts) -> figures, for the quality card."""


@dataclass(frozen=True)
class Wish:
    """What is wanted of a bundle besides its precision.

    Attributes:
        batch_sizes: To certify, rising.
        sizes: Of pictures, to certify.
        prompts: To calibrate on.
        fuse: Whether to write the whole generator as one graph too.
        torch: Whether to write each part as a program for PyTorch too.
        judge: What measures the graphs' pictures for the quality card.
        traced: Where given, graphs that have been traced, by part and type: precisions share them.
    """

    batch_sizes: tuple[int, ...]
    sizes: tuple[Size, ...]
    prompts: tuple[str, ...] = ()
    fuse: bool = False
    torch: bool = False
    judge: Judge | None = None
    traced: dict[tuple[str, Half], ModelProto] | None = None


def make_bundle(student: Student, folder: Path, wish: Wish, precision: Precision, say: Say) -> Manifest:
    """Writes all files of the bundle to `folder`.

    Raises:
        EngineError: a graph breaks a rule, a bound of the certificate does not hold, or programs for
            PyTorch are wanted in a precision that it does not compute in.
    """
    if wish.torch and precision.quantised:
        kinds = ", ".join(one.name for one in PRECISIONS.values() if not one.quantised)
        raise EngineError(f"precision {precision.name}: programs for PyTorch are in {kinds} (--torch)")
    graphs, islands, programs = write_graphs(student, folder, wish, precision, say)
    content = student.spec.model_dump(mode="json")
    spec = SamplerSpec.model_validate(content)
    reference = TorchNetworks(student.family, student.spec, student.pipeline)
    opened = OnnxGraph if precision.on_cpu else open_widened
    networks = OnnxNetworks(folder, spec, opened=OneAtATime(opened) if student.large else opened)
    fused = {steps: write_fused(folder, spec, steps) for steps in spec.levels} if wish.fuse else {}
    one_call = FusedGraphs(folder, spec, fused, opened=opened) if fused else None
    names = {part: (inputs, [one.name for one in graphs[part].outputs]) for part, inputs in programs.items()}
    certificate = certify(
        reference,
        networks,
        spec,
        wish.batch_sizes,
        wish.sizes,
        precision.tolerance,
        say,
        one_call,
        TorchPrograms(folder, spec, names) if names else None,
        "" if precision.on_cpu else WIDENED,
    )
    if failures := certificate.failures():
        raise EngineError(f"{student.name}: the graphs do not match PyTorch: {'; '.join(failures)}")
    manifest = Manifest(
        name=student.name,
        spec=content,
        precision=precision.name,
        opset=_opset(precision),
        graphs=graphs,
        batch_sizes=wish.batch_sizes,
        sizes=wish.sizes,
        files=_digests(folder),
        certificate=certificate,
        quality=_quality(student, networks, spec, wish),
        fused=fused,
        programs=programs,
        islands=islands,
        provenance=_provenance(student, wish, precision),
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return manifest


def _quality(
    student: Student, networks: OnnxNetworks, spec: SamplerSpec, wish: Wish
) -> dict[str, Any] | None:
    """The student's card; under `engine`, what the judge finds in pictures that the graphs have drawn."""
    if wish.judge is None:
        return student.quality

    def draw(prompts: Sequence[str], seeds: Sequence[int], steps: int) -> Images:
        limit = max(wish.batch_sizes)
        batches = [slice(start, start + limit) for start in range(0, len(prompts), limit)]
        latents = [sample(networks, spec, prompts[b], seeds[b], steps, wish.sizes[0]) for b in batches]
        return np.concatenate([networks.decode(batch) for batch in latents])

    return {**(student.quality or {}), "engine": wish.judge(draw, sorted(spec.levels))}


def write_graphs(
    student: Student, folder: Path, wish: Wish, precision: Precision, say: Say
) -> tuple[dict[str, Graph], dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """The graphs and tokenizers; the layers of each part in half precision that are not; inputs of programs."""
    for text in student.spec.text:
        _write_tokenizer(getattr(student.pipeline, text.tokenizer), text.max_length, folder / text.tokenizer)
    graphs, islands, programs = {}, {}, {}
    for part in parts_of(student.family, student.spec, student.pipeline):
        name = part.name
        say(f"exporting {name} in {precision.name}")
        if precision.half is not None:
            part = in_half(part, precision.half)
            islands[name] = islands_of(part)
        if wish.torch:
            programs[name] = write_program(part, folder)
        model = _traced(part, folder, wish, precision)
        del part  # its weights may go now
        if name in precision.quantised:
            model = _quantised(model, student, folder, wish, precision)
        graphs[name] = write_graph(name, model, folder)
    return graphs, islands, programs


def _traced(part: Part, folder: Path, wish: Wish, precision: Precision) -> ModelProto:
    """The part's graph, checked at several shapes."""
    key = (part.name, precision.half)
    if wish.traced is not None and key in wish.traced:
        return _copy(wish.traced[key])
    model = trace_part(part, folder, _opset(precision))
    bound = _unquantised(precision).tolerance[part.name]
    probe(part, model, bound, folder)
    if wish.traced is not None and not is_external(model):
        wish.traced[key] = _copy(model)
    return model


def _opset(precision: Precision) -> int:
    return OPSET if precision.on_cpu else BFLOAT16_OPSET


def _unquantised(precision: Precision) -> Precision:
    """The precision that parts are traced in."""
    return next(one for one in PRECISIONS.values() if one.half == precision.half)


def _copy(model: ModelProto) -> ModelProto:
    copied = ModelProto()
    copied.CopyFrom(model)
    return copied


def _quantised(
    model: ModelProto, student: Student, folder: Path, wish: Wish, precision: Precision
) -> ModelProto:
    model = in_memory(model, folder)
    if not precision.calibrated:
        return with_dynamic_scales(model)
    networks = TorchNetworks(student.family, student.spec, student.pipeline)
    spec = SamplerSpec.model_validate(student.spec.model_dump(mode="json"))
    feeds = denoiser_feeds(networks, spec, wish.prompts, wish.sizes[0])
    return (in_float8 if precision.scales == "fp8" else with_fixed_scales)(model, feeds)


def _write_tokenizer(tokenizer: object, max_length: int, folder: Path) -> None:
    """`tokenizer.json` with padding and truncation set, so that it needs no further settings to run."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    pad, pad_id = tokenizer.pad_token, tokenizer.pad_token_id  # type: ignore[attr-defined]
    backend.enable_truncation(max_length)
    backend.enable_padding(direction="right", length=max_length, pad_token=pad, pad_id=pad_id)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _provenance(student: Student, wish: Wish, precision: Precision) -> dict[str, str]:
    """No time and no path: the digest of a bundle says what it is, not when or where it was made."""
    spec = student.spec
    versions = {package: version(package) for package in EXPORTERS}
    origin = {
        "teacher": spec.teacher,
        "teacher_digest": spec.teacher_digest,
        "recipe_digest": spec.recipe_digest,
    }
    return {**origin, "student_digest": student.digest, **versions, **_calibration(wish, precision)}


def _calibration(wish: Wish, precision: Precision) -> dict[str, str]:
    if not precision.calibrated:
        return {}
    digest = hashlib.sha256("\n".join(wish.prompts).encode()).hexdigest()
    return {"calibration_prompts": str(len(wish.prompts)), "calibration_digest": f"sha256:{digest}"}
