"""Student folders: stock diffusers samples them right, and they are whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler, SanaPipeline

from distill.pictures import to_images
from distill.pipeline import Pipeline, folder_digest, load_pipeline
from distill.recipe import Recipe
from distill.sampler import guided_network, rollout
from distill.spec import FILE_NAME, GeneratorSpec, Renoise
from distill.student import QUALITY_CARD, new_spec, replace_student, save_student

PROMPTS = ["a red circle on a white background", "a blue star above a green square on a pink background"]


@pytest.fixture(scope="module")
def student(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    teacher = load_pipeline(str(tiny_teacher))
    out = tmp_path_factory.mktemp("student") / "tiny-sid"
    weights = {name: value + 0.01 for name, value in teacher.transformer.state_dict().items()}
    save_student(teacher, weights, new_spec(teacher, Recipe(teacher=str(tiny_teacher))), out)
    return out


def test_the_folder_is_a_stock_pipeline(student: Path) -> None:
    pipeline = SanaPipeline.from_pretrained(student)
    assert isinstance(pipeline.scheduler, FlowMatchLCMScheduler)
    assert pipeline.scheduler.config.shift == 1
    assert pipeline.transformer.dtype == torch.float32
    card = (student / "README.md").read_text()
    assert "sigmas=[1.0, 0.75, 0.5, 0.25],  # 4 steps" in card
    assert "1 is `sigmas=[1.0]`, 2 is `sigmas=[1.0, 0.5]`" in card


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_stock_diffusers_and_our_sampler_draw_the_same_picture(student: Path, steps: int) -> None:
    """The stock scheduler draws its noises from a torch generator; ours are handed the same ones."""
    ours = load_pipeline(str(student))
    assert ours.spec is not None
    stock = SanaPipeline.from_pretrained(student)
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        PROMPTS,
        sigmas=list(ours.spec.levels[steps]),
        num_inference_steps=steps,
        guidance_scale=1,
        generator=torch.Generator().manual_seed(7),
        height=64,
        width=64,
        max_sequence_length=ours.text[0].max_length,
        use_resolution_binning=False,
        complex_human_instruction=None,
        output_type="np",
    ).images
    source = torch.Generator().manual_seed(7)
    noises = [torch.randn(2, *ours.latent_shape(), generator=source) for _ in range(steps)]
    got = draw(ours, noises, steps)
    assert np.abs(got.astype(float) - (expected * 255).round()).max() <= 1


@torch.no_grad()
def draw(pipeline: Pipeline, noises: list[torch.Tensor], steps: int, renoise: Renoise = "fresh") -> Any:
    network = guided_network(pipeline.transformer, pipeline.family, 1000.0, pipeline.embed(PROMPTS))
    assert pipeline.spec is not None
    latents = rollout(network, pipeline.spec.levels[steps], noises.__getitem__, renoise)
    return to_images(pipeline.decode(latents))


def test_a_student_that_implies_its_noise_is_stepped_by_eulers_scheduler(
    tiny_teacher: Path, tmp_path: Path
) -> None:
    teacher = load_pipeline(str(tiny_teacher))
    weights = {name: value + 0.01 for name, value in teacher.transformer.state_dict().items()}
    recipe = Recipe(teacher=str(tiny_teacher), renoise="ddim")
    save_student(teacher, weights, new_spec(teacher, recipe), tmp_path / "s", torch.float32)
    ours, stock = load_pipeline(str(tmp_path / "s")), SanaPipeline.from_pretrained(tmp_path / "s")
    stock.set_progress_bar_config(disable=True)
    assert isinstance(stock.scheduler, FlowMatchEulerDiscreteScheduler)
    noise = torch.randn(2, *ours.latent_shape(), generator=torch.Generator().manual_seed(7))
    expected = stock(
        PROMPTS,
        sigmas=[1.0, 0.75, 0.5, 0.25],
        guidance_scale=1,
        latents=noise,
        height=64,
        width=64,
        max_sequence_length=ours.text[0].max_length,
        use_resolution_binning=False,
        complex_human_instruction=None,
        output_type="np",
    ).images
    got = draw(ours, [noise], 4, "ddim")
    assert np.abs(got.astype(float) - (expected * 255).round()).max() <= 1


def test_parts_that_training_left_alone_are_kept_exactly(student: Path, tiny_teacher: Path) -> None:
    teacher, copy = load_pipeline(str(tiny_teacher)), load_pipeline(str(student))
    for part in ("vae", "text_encoder"):
        pairs = zip(
            getattr(teacher.modules, part).parameters(), getattr(copy.modules, part).parameters(), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs)


def test_no_path_of_the_machine_is_left_in_the_folder(student: Path, tiny_teacher: Path) -> None:
    for path in student.rglob("*.json"):
        assert str(tiny_teacher.parent) not in path.read_text(), path


def test_whoever_may_read_the_card_may_read_the_weights(student: Path) -> None:
    modes = {path.stat().st_mode for path in student.rglob("*") if path.is_file() and "run" not in path.parts}
    assert modes == {(student / "README.md").stat().st_mode}


def test_the_spec_names_its_teacher_and_recipe(student: Path, tiny_teacher: Path) -> None:
    spec = GeneratorSpec.load(student)
    assert spec.teacher == tiny_teacher.name
    assert spec.teacher_digest == folder_digest(tiny_teacher)
    assert spec.recipe_digest.startswith("sha256:")
    assert (spec.default_size, spec.latent_shape()) == ((64, 64), (8, 8, 8))
    assert spec.text[0].max_length == 32


def test_a_digest_changes_with_any_weight(student: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    replace_student(student, copy)
    assert folder_digest(copy) == folder_digest(student)
    (copy / "README.md").write_text("other words")
    assert folder_digest(copy) == folder_digest(student)
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert folder_digest(copy) != folder_digest(student)


def test_a_save_that_fails_leaves_nothing(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    teacher = load_pipeline(str(tiny_teacher))
    monkeypatch.setattr(GeneratorSpec, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save_student(
            teacher, teacher.transformer.state_dict(), new_spec(teacher, Recipe(teacher="t")), tmp_path / "s"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_student_replaces_an_older_one_and_leaves_the_record(student: Path, tmp_path: Path) -> None:
    out = tmp_path / "s"
    (out / "run").mkdir(parents=True)
    (out / FILE_NAME).write_text("old")
    replace_student(student, out)
    assert GeneratorSpec.load(out) == GeneratorSpec.load(student)
    assert (out / "run").is_dir()


def test_a_quality_card_goes_with_its_student(student: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    """It is not taken for that of the next student in the same folder."""
    teacher = load_pipeline(str(tiny_teacher))
    wanted = (
        teacher,
        teacher.transformer.state_dict(),
        new_spec(teacher, Recipe(teacher="t")),
        tmp_path / "s",
    )
    save_student(*wanted, quality={"score": 1.0})
    assert (tmp_path / "s" / QUALITY_CARD).is_file()
    save_student(*wanted)
    assert not (tmp_path / "s" / QUALITY_CARD).exists()
    save_student(*wanted, quality={"score": 2.0})
    replace_student(student, tmp_path / "s")
    assert not (tmp_path / "s" / QUALITY_CARD).exists()
