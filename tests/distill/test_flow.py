"""The identities of flow matching, for any tensors and any noise level."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from distill import flow

from .toy import MEANS, STD, draw, exact_velocity

levels = st.floats(0.01, 1.0)
seeds = st.integers(0, 2**31)


def _example(seed: int, level: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x0, eps, t_B and x_t, in double precision."""
    source = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 3, 4, 5, 6, generator=source, dtype=torch.float64)
    t_B = torch.full((3,), level, dtype=torch.float64)
    return x0, eps, t_B, flow.add_noise(x0, eps, t_B)


@given(seeds, levels)
def test_x0_and_eps_come_back_from_the_velocity(seed: int, level: float) -> None:
    x0, eps, t_B, x_t = _example(seed, level)
    v = flow.velocity(x0, eps)
    assert_close(flow.x0_from_velocity(x_t, v, t_B), x0)
    assert_close(flow.eps_from_velocity(x_t, v, t_B), eps)


@given(seeds, levels)
def test_velocity_from_x0_is_the_inverse(seed: int, level: float) -> None:
    x0, eps, t_B, x_t = _example(seed, level)
    assert_close(flow.velocity_from_x0(x_t, x0, t_B), flow.velocity(x0, eps))


@given(seeds, levels)
def test_both_forms_of_the_score_agree(seed: int, level: float) -> None:
    x0, eps, t_B, x_t = _example(seed, level)
    score = flow.score_from_velocity(x_t, flow.velocity(x0, eps), t_B)
    t = flow.per_image(t_B, x_t)
    assert_close(score, -eps / t)
    assert_close(score, ((1 - t) * x0 - x_t) / t**2)


@given(seeds, levels)
def test_differences_of_x0_and_score_are_those_of_velocity_scaled(seed: int, level: float) -> None:
    x0, eps, t_B, x_t = _example(seed, level)
    v_phi, v_psi = x0, eps  # any two fields will do
    t = flow.per_image(t_B, x_t)
    difference = flow.x0_from_velocity(x_t, v_phi, t_B) - flow.x0_from_velocity(x_t, v_psi, t_B)
    assert_close(difference, -t * (v_phi - v_psi))
    scores = flow.score_from_velocity(x_t, v_phi, t_B) - flow.score_from_velocity(x_t, v_psi, t_B)
    assert_close(scores, (1 - t) / t**2 * difference, rtol=1e-6, atol=1e-7)


def test_score_of_a_gaussian_is_the_known_one() -> None:
    """For x0 ~ N(m, s^2) the score of x_t is -(x_t - (1 - t) m) / ((1 - t)^2 s^2 + t^2)."""
    mean, std, t_B = 1.5, 0.7, torch.tensor([0.3])
    x_t = torch.linspace(-3, 3, 7).reshape(1, 7)
    variance = 0.7**2 * std**2 + 0.3**2
    x0 = mean + 0.7 * std**2 / variance * (x_t - 0.7 * mean)
    score = flow.score_from_velocity(x_t, flow.velocity_from_x0(x_t, x0, t_B), t_B)
    assert_close(score, -(x_t - 0.7 * mean) / variance)


def test_score_matches_the_gradient_of_the_log_density() -> None:
    t_B = torch.tensor([0.4, 0.8], dtype=torch.float64)
    x_t = torch.tensor([[0.5, -1.0], [1.0, 0.2]], dtype=torch.float64, requires_grad=True)
    variance = ((1 - t_B) ** 2 * STD**2 + t_B**2)[:, None]
    offset = x_t[:, None] - (1 - t_B)[:, None, None] * MEANS.double()
    log_density = torch.logsumexp(-(offset**2).sum(-1) / (2 * variance), dim=1)
    (gradient,) = torch.autograd.grad(log_density.sum(), x_t)
    score = flow.score_from_velocity(x_t, exact_velocity(x_t, t_B), t_B)
    assert_close(score, gradient, check_dtype=False, rtol=1e-5, atol=1e-6)


@given(seeds, st.floats(0.01, 1.56))
def test_trigflow_is_the_same_path_at_equal_snr(seed: int, angle: float) -> None:
    cos, sin = math.cos(angle), math.sin(angle)
    level = float(flow.level_of_angle(torch.tensor(angle, dtype=torch.float64)))
    x0, eps, t_B, x_t = _example(seed, level)
    assert_close(x_t * (cos + sin), cos * x0 + sin * eps)
    assert_close(flow.snr(t_B), torch.full_like(t_B, (cos / sin) ** 2), rtol=1e-6, atol=0)


def test_guidance_scales() -> None:
    u, v = torch.tensor([1.0]), torch.tensor([3.0])
    assert flow.guided(u, v, 1) == v
    assert flow.guided(u, v, 0) == u
    assert flow.guided(u, v, 4.5) == 10
    assert flow.guided(u, v, -1) == -1


def test_noise_levels_follow_the_published_law() -> None:
    t = flow.logit_normal(200_000, torch.Generator().manual_seed(0))
    assert t.dtype == torch.float32
    assert t.min() > 0
    assert t.max() <= 1
    logits = torch.logit(t.double().clamp(max=1 - 1e-7))
    assert float(t.median()) == pytest.approx(2 / 3, abs=0.003)
    assert float(logits.mean()) == pytest.approx(math.log(2), abs=0.02)
    assert float(logits.std()) == pytest.approx(1.6, abs=0.02)


def test_the_toy_field_moves_noise_onto_the_mixture() -> None:
    """The reference of other tests is itself checked: 100 Euler steps land on the modes."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(500, 2, generator=source)
    for i in range(100, 0, -1):
        x = x - 0.01 * exact_velocity(x, torch.full((500,), i / 100))
    nearest = torch.cdist(x, MEANS).min(1).values
    assert float(nearest.mean()) == pytest.approx(
        float(torch.cdist(draw(500, source), MEANS).min(1).values.mean()), abs=0.1
    )
