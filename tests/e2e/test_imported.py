"""A few-step model of others, all the way: imported, exported with its certificate, served."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.pictures import to_images
from distill.pipeline import load_pipeline
from distill.sampler import sample_student
from engines.bundle import Bundle
from engines.export import export_student
from engines.runtime import load_runtime
from fewstep.cli import main
from service.settings import Settings

from ..distill.published import published
from ..service.running import run_server

Tiny = Callable[[str], Path]

PROMPT = "a red circle on a white background"


def exported(tiny: Tiny, home: Path, architecture: str, name: str, *flags: str) -> tuple[Path, Bundle]:
    """The student that `fewstep import` makes, and its bundle."""
    source, student = published(tiny, architecture, home / name), home / "student"
    assert main(["import", str(source), "--out", str(student), "--size", "64x64", *flags]) == 0
    return student, export_student(student, home / "bundle", batch_sizes=(1,), say=lambda line: None)


def check(student: Path, bundle: Bundle, steps: int, data_dir: Path) -> None:
    assert bundle.manifest.certificate.failures() == []
    expected = to_images(sample_student(load_pipeline(str(student)), [PROMPT], [7], steps))[0]
    with run_server(Settings(data_dir=data_dir, log_level="warning"), {"m": load_runtime(bundle)}) as server:
        answer = server.generate(prompt=PROMPT, seed=7, num_inference_steps=steps)
        assert answer.status_code == 200, answer.text
    content = base64.b64decode(answer.json()["data"][0]["b64_json"])
    found = np.asarray(Image.open(io.BytesIO(content)))
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert found.std() > 1


@pytest.mark.slow
def test_a_model_that_is_said_to_be_eulers_is_imported_exported_and_served(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--sampler", "euler", "--steps", "4,2", "--no-instruction")
    student, bundle = exported(tiny, tmp_path, "sana", "my-few-step-sana", *flags)
    said = capsys.readouterr().out.splitlines()[0]
    assert said == f"{student} my-few-step-sana, sampler euler, steps 2, 4"
    assert (bundle.spec.sampler, bundle.spec.renoise) == ("euler", "ddim")
    check(student, bundle, 4, tmp_path / "data")


@pytest.mark.slow
def test_sana_sprint_keeps_its_guidance_input_and_its_levels(tiny: Tiny, tmp_path: Path) -> None:
    name = "Sana_Sprint_0.6B_1024px_diffusers"
    student, bundle = exported(tiny, tmp_path, "sana-sprint-few-step", name, "--no-instruction")
    assert bundle.spec.guidance_embedding == 4.5
    assert bundle.spec.levels[2][1] == pytest.approx(0.783, abs=1e-3)
    check(student, bundle, 2, tmp_path / "data")


@pytest.mark.slow
def test_schnell_is_imported_exported_and_served(tiny: Tiny, tmp_path: Path) -> None:
    student, bundle = exported(tiny, tmp_path, "flux-schnell", "FLUX.1-schnell", "--text-length", "24")
    assert sorted(bundle.spec.levels) == [1, 2, 4]
    check(student, bundle, 4, tmp_path / "data")
