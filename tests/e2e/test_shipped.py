"""The shipped models belong together, fit the repository, and draw as well as the documents say."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
from diffusers import DiffusionPipeline

from distill.evaluation import evaluate
from distill.pipeline import SHIPPED, find_pipeline, folder_digest
from distill.spec import GeneratorSpec
from distill.student import QUALITY_CARD
from engines.bundle import Bundle
from engines.export.student import load_student
from engines.store import find_bundle
from fewstep.models import open_model

STUDENT = "shapes-sana-sid"


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(find_bundle(STUDENT))


def test_student_and_bundle_are_of_the_shipped_teacher(bundle: Bundle) -> None:
    student = find_pipeline(STUDENT)
    spec = GeneratorSpec.load(student)
    assert spec.teacher_digest == folder_digest(find_pipeline(spec.teacher))
    assert bundle.manifest.spec == spec.model_dump(mode="json")
    assert bundle.manifest.provenance["student_digest"] == load_student(student).digest
    assert bundle.manifest.quality == json.loads((student / QUALITY_CARD).read_text())


def test_the_certificate_holds(bundle: Bundle) -> None:
    measured = bundle.manifest.certificate.measurements
    assert bundle.manifest.certificate.failures() == []
    assert {m.batch_size for m in measured if m.part == "picture"} == set(bundle.manifest.batch_sizes)
    assert min(m.psnr_db for m in measured if m.psnr_db is not None) > 60


@pytest.mark.parametrize(("steps", "accuracy"), [(1, 0.85), (2, 0.92), (4, 0.95)])
def test_pictures_follow_their_prompts(bundle: Bundle, steps: int, accuracy: float) -> None:
    """The measured shares are in docs/quality.md; these bounds leave room for 200 pictures' chance."""
    model = open_model(str(bundle.path))
    measured = evaluate(lambda prompts, seeds: model.draw(prompts, seeds, steps, 1.0), count=200, seed=4)
    assert measured["accuracy"] >= accuracy


@pytest.mark.parametrize(("student", "accuracy"), [("shapes-sd3-sid", 0.95), ("shapes-flux-sid", 0.94)])
def test_students_of_the_other_families_follow_their_prompts(student: str, accuracy: float) -> None:
    model = open_model(student)
    assert GeneratorSpec.load(find_pipeline(student)).teacher_digest == folder_digest(
        find_pipeline(student.removesuffix("-sid"))
    )
    measured = evaluate(lambda prompts, seeds: model.draw(prompts, seeds, 4, 1.0), count=100, seed=4)
    assert measured["accuracy"] >= accuracy


@pytest.mark.parametrize(
    ("teacher", "classes"),
    [
        ("shapes-sana", {"SanaPipeline", "AutoencoderDC", "Gemma2Model"}),
        (
            "shapes-sd3",
            {"StableDiffusion3Pipeline", "AutoencoderKL", "CLIPTextModelWithProjection", "T5EncoderModel"},
        ),
        ("shapes-flux", {"FluxPipeline", "AutoencoderKL", "CLIPTextModel", "T5EncoderModel"}),
    ],
)
def test_teachers_are_stock_pipelines(teacher: str, classes: set[str]) -> None:
    pipeline = DiffusionPipeline.from_pretrained(find_pipeline(teacher))
    assert type(pipeline.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    found = {type(pipeline).__name__, *(type(part).__name__ for part in pipeline.components.values())}
    assert classes <= found


def test_all_weights_stay_under_40_megabytes_in_git(bundle: Bundle) -> None:
    """Which keeps equal files once, and compresses each."""
    folders = (SHIPPED, bundle.path.parent)
    contents = {path.read_bytes() for folder in folders for path in Path(folder).rglob("*") if path.is_file()}
    assert sum(len(zlib.compress(content)) for content in contents) < 40e6
