"""The few-step loop: its levels, its renoise rules, where gradient goes, and seeded noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from distill.sampler import rollout, seeded_noise
from distill.spec import uniform_levels

SHAPE = (2, 3, 4, 4)


class Recorder:
    """A linear network v = a x that keeps what it was asked."""

    def __init__(self) -> None:
        self.a = torch.tensor(0.5, requires_grad=True)
        self.calls: list[tuple[Tensor, Tensor, bool]] = []

    def __call__(self, x: Tensor, t_B: Tensor) -> Tensor:
        self.calls.append((x, t_B, torch.is_grad_enabled()))
        return self.a * x


def noises(count: int = 4) -> list[Tensor]:
    return list(torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0)))


def test_levels_of_n_steps() -> None:
    assert uniform_levels(4) == (1, 0.75, 0.5, 0.25)
    assert uniform_levels(1) == (1,)


@pytest.mark.parametrize("renoise", ["fresh", "fixed", "ddim"])
def test_the_loop_by_hand(renoise: str) -> None:
    e, network = noises(), Recorder()
    got = rollout(network, (1.0, 0.75, 0.5), e.__getitem__, renoise)  # type: ignore[arg-type]
    x, clean = e[0], e[0] - 0.5 * e[0]
    for i, (previous, level) in enumerate([(1.0, 0.75), (0.75, 0.5)], start=1):
        implied = (x - (1 - previous) * clean) / previous
        noise = {"fresh": e[i], "fixed": e[0], "ddim": implied}[renoise]
        x = (1 - level) * clean + level * noise
        clean = x - level * 0.5 * x
    assert_close(got, clean.detach())
    assert [float(t_B[0]) for _, t_B, _ in network.calls] == [1.0, 0.75, 0.5]
    assert all(t_B.shape == (2,) for _, t_B, _ in network.calls)


@given(st.lists(st.floats(0.02, 0.98), max_size=3, unique=True))
def test_with_the_implied_noise_the_loop_is_eulers(later: list[float]) -> None:
    """x <- x + (t' - t) v down to t = 0, from one noise."""
    levels = (1.0, *sorted(later, reverse=True))

    def network(x: Tensor, t_B: Tensor) -> Tensor:
        return (0.5 * x + t_B[:, None, None, None]).tanh()

    x, drawn = noises()[0].double(), []

    def noise(step: int) -> Tensor:
        drawn.append(step)
        return noises()[step].double()

    for t, following in zip(levels, (*levels[1:], 0.0), strict=True):
        x = x + (following - t) * network(x, torch.full((2,), t))
    assert_close(rollout(network, levels, noise, "ddim"), x, atol=1e-6, rtol=0)
    assert drawn == [0]


def test_first_input_is_pure_noise() -> None:
    network = Recorder()
    rollout(network, uniform_levels(4), noises().__getitem__, steps=1)
    assert torch.equal(network.calls[0][0], noises()[0])


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_gradient_reaches_the_kth_call_only(k: int) -> None:
    network = Recorder()
    clean = rollout(network, uniform_levels(4), noises().__getitem__, steps=k, grad=True)
    assert [grad for _, _, grad in network.calls] == [False] * (k - 1) + [True]
    assert not network.calls[-1][0].requires_grad
    clean.sum().backward()
    x, t_B, _ = network.calls[-1]
    assert network.a.grad is not None
    assert_close(network.a.grad, -(t_B[0] * x).sum())


def test_no_graph_without_grad() -> None:
    assert not rollout(Recorder(), uniform_levels(2), noises().__getitem__).requires_grad


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4), st.integers(0, 3))
def test_noise_of_a_seed_does_not_depend_on_its_neighbours(seeds: list[int], step: int) -> None:
    together = seeded_noise(seeds, (2, 3, 3))(step)
    alone = [seeded_noise([seed], (2, 3, 3))(step) for seed in seeds]
    assert torch.equal(together, torch.cat(alone))


def test_noise_differs_between_seeds_and_steps_and_is_standard_normal() -> None:
    source = seeded_noise([0, 1], (8, 32, 32))
    first, second = source(0), source(1)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)
    assert float(first.mean()) == pytest.approx(0, abs=0.03)
    assert float(first.std()) == pytest.approx(1, abs=0.03)
    assert first.dtype == torch.float32


def test_noise_is_the_one_the_bundle_runtimes_draw() -> None:
    from engines.runtime.sampler import noise

    seed = 2**63 - 1
    assert torch.equal(seeded_noise([seed], (8, 4, 4))(2)[0], torch.from_numpy(noise(seed, 2, (8, 4, 4))))
