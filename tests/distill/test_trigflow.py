"""SANA-Sprint's teachers: the network behind the TrigFlow wrapper is a rectified-flow network.

`sid.md` 1.3 doubts whether rectified-flow formulas may be used on the raw transformer with no other
change than its time scale. They may: checked here on a field whose posterior is known, and on the
stock pipeline.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SanaSprintPipeline, SCMScheduler
from torch import Tensor
from torch.testing import assert_close

from distill import flow
from distill.errors import DistillError
from distill.families import FAMILIES
from distill.pipeline import load_pipeline
from distill.recipe import Recipe
from distill.sampler import sample_student, sample_teacher, seeded_noise
from distill.spec import GeneratorSpec
from distill.student import new_spec, save_student

from .. import tiny as tiny_pipelines
from .toy import MEANS, STD, draw, exact_velocity

Tiny = Callable[[str], Path]


def angles(count: int) -> Tensor:
    return torch.linspace(0.05, 1.5, count, dtype=torch.float64)


def time_of(theta_B: Tensor) -> Tensor:
    """t with tan(theta) = t / (1 - t): equal signal-to-noise ratios."""
    return theta_B.sin() / (theta_B.sin() + theta_B.cos())


def posterior(x_trig: Tensor, theta_B: Tensor) -> tuple[Tensor, Tensor]:
    """E[x0 | x] and E[z | x] for x = cos(theta) x0 + sin(theta) z over the toy's modes, by Bayes' rule."""
    cos, sin = theta_B.cos()[:, None, None], theta_B.sin()[:, None, None]
    variance = cos**2 * STD**2 + sin**2
    offset = x_trig[:, None] - cos * MEANS
    weights = torch.softmax(-(offset**2).sum(-1) / (2 * variance[..., 0]), dim=1)[..., None]
    x0 = (weights * (MEANS + cos * STD**2 / variance * offset)).sum(1)
    return x0, (x_trig - cos[:, 0] * x0) / sin[:, 0]


def wrapped(x_rf: Tensor, F: Tensor, t_B: Tensor) -> Tensor:
    """The wrapper's output as `SanaSprintPipeline` computes it from the raw network's F."""
    t = t_B[:, None]
    return ((1 - 2 * t) * x_rf + (1 - 2 * t + 2 * t**2) * F) / (t**2 + (1 - t) ** 2).sqrt()


def test_the_wrapper_around_a_rectified_flow_network_is_trigflow() -> None:
    source = torch.Generator().manual_seed(0)
    theta = angles(64)
    x0, z = draw(64, source).double(), torch.randn(64, 2, generator=source, dtype=torch.float64)
    x_trig = theta.cos()[:, None] * x0 + theta.sin()[:, None] * z
    t = time_of(theta)
    x_rf = x_trig * (t**2 + (1 - t) ** 2).sqrt()[:, None]
    assert_close(x_rf, flow.add_noise(x0, z, t))

    x0_hat, z_hat = posterior(x_trig, theta)
    trig_velocity = theta.cos()[:, None] * z_hat - theta.sin()[:, None] * x0_hat
    F = exact_velocity(x_rf, t)
    assert_close(wrapped(x_rf, F, t), trig_velocity)
    assert_close(flow.x0_from_velocity(x_rf, F, t), x0_hat)


def test_one_network_gives_one_clean_estimate_at_small_noise() -> None:
    """The check that `sid.md` asks for: x0 from x - t v is close to the data where t is small."""
    source = torch.Generator().manual_seed(0)
    x0, z = draw(256, source), torch.randn(256, 2, generator=source)
    t = torch.full((256,), 0.05)
    x_t = flow.add_noise(x0, z, t)
    error = flow.x0_from_velocity(x_t, exact_velocity(x_t, t), t) - x0
    assert float(error.square().mean().sqrt()) < 0.06


@torch.no_grad()
@pytest.mark.parametrize("theta", [0.4, 1.2, 1.5708])
def test_the_stock_sprint_pipeline_is_our_formula_with_time_scale_one(theta: float) -> None:
    """Its own few-step network, for the pipeline insists on a guidance input."""
    parts = tiny_pipelines.new_pipeline("sana-sprint").components
    network = parts["transformer"]
    torch.manual_seed(0)
    network = type(network).from_config(network.config, guidance_embeds=True).eval()
    stock = SanaSprintPipeline(**{**parts, "transformer": network})
    stock.set_progress_bar_config(disable=True)
    z = seeded_noise([5], (8, 8, 8))(0)
    states, mask = stock.encode_prompt("a red circle", max_sequence_length=8)
    expected = stock(
        prompt_embeds=states,
        prompt_attention_mask=mask,
        num_inference_steps=1,
        max_timesteps=theta,
        intermediate_timesteps=None,
        latents=z,
        guidance_scale=4.5,
        height=64,
        width=64,
        use_resolution_binning=False,
        output_type="latent",
    ).images
    angle = torch.tensor([theta])
    t = time_of(angle)
    x_rf = z * (t**2 + (1 - t) ** 2).sqrt()
    guidance = torch.full((1,), 4.5 * network.config.guidance_embeds_scale)
    v = network(x_rf, states, timestep=FAMILIES["sana-sprint"].time_scale * t, guidance=guidance,
                encoder_attention_mask=mask).sample  # fmt: skip
    assert_close(flow.x0_from_velocity(x_rf, v, t), expected, atol=1e-4, rtol=1e-4)


def test_a_sprint_teacher_is_told_by_its_scheduler(tiny: Tiny, tmp_path: Path) -> None:
    teacher = load_pipeline(str(tiny("sana-sprint")))
    assert (teacher.family.name, teacher.time_scale) == ("sana-sprint", 1.0)
    assert isinstance(teacher.modules.scheduler, FlowMatchEulerDiscreteScheduler)
    packed_as_sana = tiny_pipelines.new_pipeline("sana")
    packed_as_sana.register_modules(scheduler=SCMScheduler())
    packed_as_sana.save_pretrained(tmp_path)
    assert load_pipeline(str(tmp_path)).family.name == "sana-sprint"


def test_a_recipe_says_the_time_scale_of_a_teacher_that_does_not_tell(tiny: Tiny) -> None:
    assert load_pipeline(str(tiny("sana"))).time_scale == 1000.0
    assert load_pipeline(str(tiny("sana")), time_scale=1.0).time_scale == 1.0


def test_a_time_scale_in_the_transformers_configuration_counts(tiny: Tiny, tmp_path: Path) -> None:
    pipeline = tiny_pipelines.new_pipeline("sana")
    pipeline.transformer.register_to_config(timestep_scale=0.5)
    pipeline.save_pretrained(tmp_path)
    assert load_pipeline(str(tmp_path)).time_scale == 500.0


def test_the_network_hears_t_and_the_student_folder_says_so(tiny: Tiny, tmp_path: Path) -> None:
    teacher, heard = load_pipeline(str(tiny("sana-sprint"))), []
    spec = new_spec(teacher, Recipe(teacher="t"))
    save_student(teacher, teacher.transformer.state_dict(), spec, tmp_path / "s", torch.float32)
    student = load_pipeline(str(tmp_path / "s"))
    assert GeneratorSpec.load(tmp_path / "s").time_scale == 1.0
    index = json.loads((tmp_path / "s" / "model_index.json").read_text())
    assert index["_class_name"] == "SanaPipeline"  # its own pipeline steps angles
    assert student.modules.transformer.config.timestep_scale == 0.001
    for pipeline in (teacher, student):
        pipeline.transformer.register_forward_pre_hook(
            lambda module, args, inputs: heard.append(float(inputs["timestep"][0])), with_kwargs=True
        )
    sample_teacher(teacher, ["a"], [0], steps=2)
    sample_student(student, ["a"], [0], 4)
    assert heard[2:] == [1.0, 0.75, 0.5, 0.25]
    assert heard[0] == 1.0
    assert 0 < heard[1] < 1


def test_the_few_step_model_is_no_teacher(tiny: Tiny) -> None:
    """It maps noise to pictures in one step; its output is not the velocity that SiD needs."""
    with pytest.raises(DistillError, match="a few-step model; its teacher is meant"):
        load_pipeline(str(tiny("sana-sprint-few-step")))
