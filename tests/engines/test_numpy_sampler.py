from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.sampler import rollout, seeded_noise
from engines.bundle import SamplerSpec
from engines.errors import EngineError
from engines.runtime.base import Conditioning, Floats, Images
from engines.runtime.sampler import (
    MAX_SEED,
    check_size,
    clean_estimate,
    noise,
    noisy_input,
    renoise,
    sample,
    step_levels,
)

SHAPE = (4, 3, 5)
SEEDS = st.integers(0, MAX_SEED)
STEPS = st.integers(0, 3)


def spec(rule: str = "fresh") -> SamplerSpec:
    return SamplerSpec(
        family="sana",
        levels={1: (1.0,), 2: (1.0, 0.5), 4: (1.0, 0.75, 0.5, 0.25)},
        renoise=rule,
        time_scale=1000,
        text=(),
        guidance_embedding=None,
        latent_channels=4,
        downsampling=8,
        default_size=(40, 24),
    )


class Linear:
    """Networks with v = 0.3 x + t + (length of the prompt) / 10."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return {"length": np.array([len(prompt) for prompt in prompts], np.float32)}

    def velocity(self, x_BCHW: Floats, t_B: Floats, conditioning: Conditioning) -> Floats:
        bias = t_B + conditioning["length"] / np.float32(10)
        return np.float32(0.3) * x_BCHW + bias[:, None, None, None]

    def decode(self, x0_BCHW: Floats) -> Images:
        raise NotImplementedError


@given(SEEDS, STEPS)
def test_noise_is_a_function_of_seed_and_step(seed, step):
    first = noise(seed, step, SHAPE)
    assert first.dtype == np.float32
    assert first.shape == SHAPE
    assert np.array_equal(first, noise(seed, step, SHAPE))


@given(SEEDS, SEEDS, STEPS, STEPS)
def test_noise_differs_between_seeds_and_steps(seed, other, step, later):
    same = seed == other and step == later
    assert np.array_equal(noise(seed, step, SHAPE), noise(other, later, SHAPE)) == same


@given(SEEDS)
@settings(max_examples=20)
def test_noise_is_standard_normal(seed):
    drawn = noise(seed, 0, (40_000,))
    assert abs(drawn.mean()) < 0.03
    assert abs(drawn.std() - 1) < 0.03


def test_noise_of_neighbouring_seeds_is_uncorrelated():
    rows = np.stack([noise(seed, step, (4096,)) for seed in range(8) for step in range(4)])
    correlation = np.corrcoef(rows) - np.eye(len(rows))
    assert np.abs(correlation).max() < 0.08


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(EngineError, match=f"seed {seed}: expected 0 ... {MAX_SEED}"):
        noise(seed, 0, SHAPE)


def test_unsupported_step_counts_list_the_supported_ones():
    assert step_levels(spec(), 2) == (1.0, 0.5)
    with pytest.raises(EngineError, match="3 steps: this model supports 1, 2, 4"):
        step_levels(spec(), 3)


def test_unknown_sizes_list_the_known_ones():
    assert check_size([(40, 24)], (40, 24)) == (40, 24)
    with pytest.raises(EngineError, match="size 24x40: this bundle has 40x24, 64x64"):
        check_size([(40, 24), (64, 64)], (24, 40))


def test_renoise_rules():
    x, D = noise(1, 9, SHAPE), noise(2, 9, SHAPE)
    assert np.array_equal(renoise(spec("fresh"), 7, 2, x, D, 0.75), noise(7, 2, SHAPE))
    assert np.array_equal(renoise(spec("fixed"), 7, 2, x, D, 0.75), noise(7, 0, SHAPE))
    implied = renoise(spec("ddim"), 7, 2, x, D, 0.75)
    assert np.allclose(0.25 * D + 0.75 * implied, x, atol=1e-6)


@pytest.mark.parametrize("rule", ["fresh", "fixed", "ddim"])
def test_first_input_is_pure_noise_and_later_ones_mix(rule):
    first = noisy_input(spec(rule), 4, 0, 7, None, None, SHAPE)
    assert np.array_equal(first, noise(7, 0, SHAPE))
    D = noise(3, 9, SHAPE)
    second = noisy_input(spec(rule), 4, 1, 7, first, D, SHAPE)
    expected = np.float32(0.25) * D + np.float32(0.75) * renoise(spec(rule), 7, 1, first, D, 1.0)
    assert second.dtype == np.float32
    assert np.array_equal(second, expected)


def test_clean_estimate_has_one_level_per_image():
    x, v = noise(1, 0, (2, *SHAPE)), noise(2, 0, (2, *SHAPE))
    D = clean_estimate(x, np.float32([1, 0.25]), v)
    assert D.dtype == np.float32
    assert np.array_equal(D[0], x[0] - v[0])
    assert np.array_equal(D[1], x[1] - np.float32(0.25) * v[1])


@pytest.mark.parametrize("rule", ["fresh", "fixed", "ddim"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_the_loop_agrees_with_that_of_training(rule, steps):
    seeds, prompts = [5, MAX_SEED, 0], ["a", "", "a long one"]
    found = sample(Linear(), spec(rule), prompts, seeds, steps, (40, 24))
    lengths = torch.tensor([float(len(prompt)) for prompt in prompts])

    def network(x: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        return 0.3 * x + (t_B + lengths / 10)[:, None, None, None]

    expected = rollout(network, spec(rule).levels[steps], seeded_noise(seeds, (4, 3, 5)), rule)
    assert np.allclose(found, expected.numpy(), atol=1e-5)


@given(SEEDS, st.lists(st.floats(0.01, 0.99), max_size=3, unique=True))
def test_an_euler_student_is_stepped_along_the_flow(seed, later):
    """x <- x + (t' - t) v from one noise, levels uneven as of a shifted scheduler, the last t' = 0."""
    levels = (1.0, *sorted(later, reverse=True))
    changes = {"sampler": "euler", "levels": {len(levels): levels}}
    found = sample(Linear(), spec("ddim").model_copy(update=changes), ["abc"], [seed], len(levels), (40, 24))
    x = noise(seed, 0, SHAPE).astype(np.float64)
    for t, following in zip(levels, (*levels[1:], 0.0), strict=True):
        x = x + (following - t) * (0.3 * x + t + 0.3)
    assert np.allclose(found[0], x, atol=1e-5)


@given(st.lists(st.tuples(SEEDS, st.text(max_size=5)), min_size=1, max_size=5), st.sampled_from([1, 2, 4]))
def test_an_image_does_not_depend_on_its_batch(images, steps):
    seeds, prompts = [seed for seed, _ in images], [prompt for _, prompt in images]
    together = sample(Linear(), spec(), prompts, seeds, steps, (40, 24))
    for row, (seed, prompt) in zip(together, images):
        assert np.array_equal(row, sample(Linear(), spec(), [prompt], [seed], steps, (40, 24))[0])
