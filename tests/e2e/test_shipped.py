"""The shipped models belong together, fit the repository, and draw as well as the documents say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diffusers import SanaPipeline

from distill.evaluation import evaluate
from distill.pipeline import SHIPPED, find_pipeline, folder_digest
from distill.spec import GeneratorSpec
from distill.student import QUALITY_CARD
from engines.bundle import Bundle, find_bundle
from engines.export.student import load_student
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


def test_the_teacher_is_a_stock_pipeline() -> None:
    pipeline = SanaPipeline.from_pretrained(find_pipeline("shapes-sana"))
    assert type(pipeline.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert type(pipeline.text_encoder).__name__ == "Gemma2Model"
    assert type(pipeline.vae).__name__ == "AutoencoderDC"


def test_all_weights_stay_under_40_megabytes(bundle: Bundle) -> None:
    folders = (SHIPPED, bundle.path.parent)
    files = [path for folder in folders for path in Path(folder).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
