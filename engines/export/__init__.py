"""Student folder -> bundle: graphs, tokenizers, and the proof that they do what the student does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from tokenizers import Tokenizer

from ..bundle import MANIFEST, Bundle, Graph, Manifest, SamplerSpec, Size, sha256
from ..errors import EngineError
from ..runtime.onnx import OnnxNetworks
from .certificate import certify
from .folder import check_target, whole_folder
from .graphs import parts_of
from .reference import TorchNetworks
from .student import Student, load_student
from .trace import OPSET, export_part

PRECISIONS = ("fp32",)
BATCH_SIZES = (1, 2, 4, 8, 16)
EXPORTERS = ("torch", "diffusers", "transformers", "onnx", "onnxscript")

__all__ = ["BATCH_SIZES", "PRECISIONS", "export_student"]


def export_student(
    student: Path,
    out: Path,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    sizes: Sequence[Size] | None = None,
    precision: str = "fp32",
    say: Callable[[str], None] = print,
) -> Bundle:
    """Writes the bundle of a student to `out`; the same student always gives the same bundle.

    Args:
        student: A diffusers pipeline folder with `generator.json`.
        out: The bundle's folder; a bundle that was there before is replaced.
        batch_sizes: Batch sizes to certify.
        sizes: Picture sizes (width, height) to certify; by default the student's own.
        precision: Arithmetic of the graphs, one of `PRECISIONS`.
        say: Is told what is being done, one line at a time.

    Raises:
        EngineError: not a student, an impossible precision, size or target, a graph that breaks a
            rule, or a certificate whose bounds do not hold. Nothing is left behind then.
    """
    if precision not in PRECISIONS:
        raise EngineError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
    if not batch_sizes or min(batch_sizes) < 1:
        raise EngineError(f"batch sizes {list(batch_sizes)}: expected at least one, all positive")
    check_target(out)
    say(f"loading {student}")
    loaded = load_student(student)
    checked = loaded.check_sizes(tuple(sizes) if sizes else None)
    with whole_folder(out) as folder:
        graphs = _write_graphs(loaded, folder, say)
        manifest = _certified(
            loaded, folder, graphs, tuple(sorted(set(batch_sizes))), checked, precision, say
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return Bundle.load(out)


def _write_graphs(student: Student, folder: Path, say: Callable[[str], None]) -> dict[str, Graph]:
    for text in student.spec.text:
        _write_tokenizer(getattr(student.pipeline, text.tokenizer), text.max_length, folder / text.tokenizer)
    graphs = {}
    for part in parts_of(student.family, student.spec, student.pipeline):
        say(f"exporting {part.name}")
        graphs[part.name] = export_part(part, folder)
    return graphs


def _write_tokenizer(tokenizer: object, max_length: int, folder: Path) -> None:
    """`tokenizer.json` with padding and truncation set, so that it needs no further settings to run."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    pad, pad_id = tokenizer.pad_token, tokenizer.pad_token_id  # type: ignore[attr-defined]
    backend.enable_truncation(max_length)
    backend.enable_padding(direction="right", length=max_length, pad_token=pad, pad_id=pad_id)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")


def _certified(
    student: Student,
    folder: Path,
    graphs: dict[str, Graph],
    batch_sizes: tuple[int, ...],
    sizes: tuple[Size, ...],
    precision: str,
    say: Callable[[str], None],
) -> Manifest:
    content = student.spec.model_dump(mode="json")
    spec = SamplerSpec.model_validate(content)
    reference = TorchNetworks(student.family, student.spec, student.pipeline)
    certificate = certify(reference, OnnxNetworks(folder, spec), spec, batch_sizes, sizes, say)
    if failures := certificate.failures():
        raise EngineError(f"{student.name}: the graphs do not match PyTorch: {'; '.join(failures)}")
    return Manifest(
        name=student.name,
        spec=content,
        precision=precision,
        opset=OPSET,
        graphs=graphs,
        batch_sizes=batch_sizes,
        sizes=sizes,
        files=_digests(folder),
        certificate=certificate,
        quality=student.quality,
        provenance=_provenance(student),
    )


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _provenance(student: Student) -> dict[str, str]:
    """No time and no path: the digest of a bundle says what it is, not when or where it was made."""
    spec = student.spec
    versions = {package: version(package) for package in EXPORTERS}
    origin = {
        "teacher": spec.teacher,
        "teacher_digest": spec.teacher_digest,
        "recipe_digest": spec.recipe_digest,
    }
    return {**origin, "student_digest": student.digest, **versions}
