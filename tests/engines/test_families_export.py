"""Students of the other architectures become bundles like SANA's, with nothing said about them here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import PatchEmbed
from diffusers.models.transformers.transformer_flux import FluxPosEmbed

from distill.pipeline import load_pipeline
from distill.sampler import sample_student
from engines.bundle import PARTS, Bundle
from engines.errors import EngineError
from engines.export.attention import exportable
from engines.export.graphs import parts_of
from engines.export.probe import probe
from engines.export.student import load_student
from engines.export.trace import trace_part
from engines.runtime import generate
from engines.runtime.graphs import to_images
from engines.runtime.onnx import OnnxRuntime

from .conftest import student_of

Tiny = Callable[[str], Path]

INPUTS = {
    "sd3.5": ("latents", "timestep", "prompt_embeds", "pooled_projections"),
    "flux": ("latents", "timestep", "prompt_embeds", "pooled_projections"),
    "sana": ("latents", "timestep", "prompt_embeds", "prompt_attention_mask"),
}
PROMPTS = ["a red circle, on a white background", ""]


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
def test_a_bundle_draws_the_students_pictures(
    family_bundle: Callable[[str], tuple[Path, Bundle]], name: str
) -> None:
    """The guidance of a FLUX student and the instruction of a SANA one are inside the graphs."""
    folder, bundle = family_bundle(name)
    assert bundle.manifest.certificate.failures() == []
    assert set(bundle.manifest.graphs) == set(PARTS)
    assert tuple(one.name for one in bundle.manifest.graphs["denoiser"].inputs) == INPUTS[name]
    student = load_pipeline(str(folder))
    expected = to_images(sample_student(student, PROMPTS, [3, 4], 4).numpy())
    found = generate(OnnxRuntime(bundle, threads=1), PROMPTS, [3, 4], 4)
    assert np.abs(expected.astype(int) - found).max() <= 1


def test_sizes_are_multiples_of_what_a_token_covers(tiny: Tiny, tmp_path: Path) -> None:
    student = load_student(student_of(tiny, "flux", tmp_path / "s"))
    assert student.check_sizes(((96, 64),)) == ((96, 64),)
    with pytest.raises(EngineError, match="size 72x64: width and height have to be multiples of 16"):
        student.check_sizes(((72, 64),))


def test_a_student_without_t5_is_loaded(tiny: Tiny, tmp_path: Path) -> None:
    student = load_student(student_of(tiny, "sd3-without-t5", tmp_path / "s"))
    assert len(student.family.encoders(student.pipeline)) == len(student.spec.text) == 2


def test_rotary_angles_are_those_of_the_stock_module() -> None:
    stock = FluxPosEmbed(theta=10000, axes_dim=[16, 56, 56])
    ids = torch.tensor([[0, row, column] for row in (0, 1, 63) for column in (0, 5, 127)])
    for found, expected in zip(exportable(stock)(ids), stock(ids), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert found.dtype == torch.float32


@pytest.mark.parametrize("side", [12, 13])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (10, 8), (8, 14), (2, 24)])
def test_positions_are_cropped_as_by_the_stock_module(side: int, height: int, width: int) -> None:
    settings = {"height": 16, "width": 16, "patch_size": 2, "in_channels": 4, "embed_dim": 8}
    stock = PatchEmbed(**settings, pos_embed_max_size=side)
    latents = torch.randn(1, 4, height, width)
    assert torch.equal(exportable(stock)(latents), stock(latents))


@pytest.mark.slow
def test_a_graph_of_stable_diffusion_3_takes_an_odd_number_of_rows(tiny: Tiny, tmp_path: Path) -> None:
    """Stock, it fails at them: the probe found that."""
    student = load_student(student_of(tiny, "sd3.5", tmp_path / "s"))
    _, denoiser, _ = parts_of(student.family, student.spec, student.pipeline)
    probe(denoiser, trace_part(denoiser), 1e-4)
