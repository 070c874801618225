"""Adam without a first moment: the numbers of torch's, at half its memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from distill.optimizer import Adam

SHAPES = [(3, 4), (5,), (2, 2, 2)]


def parameters(seed: int) -> list[nn.Parameter]:
    source = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=source)) for shape in SHAPES]


def train(optimizer: torch.optim.Optimizer, own: list[nn.Parameter], seed: int, steps: int) -> None:
    """Gradients of many sizes, and now and then none."""
    source = torch.Generator().manual_seed(seed)
    for step in range(steps):
        for number, parameter in enumerate(own):
            scale = 10.0 ** torch.randint(-6, 4, (), generator=source)
            parameter.grad = scale * torch.randn(parameter.shape, generator=source)
            if number == 1 and step == 0:
                parameter.grad.zero_()
        optimizer.step()
        optimizer.zero_grad()


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    beta1=st.sampled_from([0.0, 0.5, 0.9]),
    beta2=st.sampled_from([0.9, 0.999]),
    lr=st.sampled_from([1e-6, 1e-3, 0.1]),
    eps=st.sampled_from([1e-8, 1e-4]),
    steps=st.integers(1, 8),
)
def test_the_numbers_are_those_of_torch(
    seed: int, beta1: float, beta2: float, lr: float, eps: float, steps: int
) -> None:
    ours, theirs = parameters(seed), parameters(seed)
    train(Adam(ours, lr, (beta1, beta2), eps), ours, seed, steps)
    train(torch.optim.Adam(theirs, lr, (beta1, beta2), eps, foreach=False), theirs, seed, steps)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("beta1", "moments"), [(0.0, 1), (0.9, 2)])
def test_memory_per_parameter_is_one_moment_less(beta1: float, moments: int) -> None:
    own = parameters(0)
    optimizer = Adam(own, 1e-3, (beta1, 0.999))
    train(optimizer, own, 0, 2)
    kept = sum(value.numel() for state in optimizer.state.values() for value in state.values())
    assert kept == moments * sum(parameter.numel() for parameter in own)
    assert kept == sum(value.numel() for value in optimizer.moments().values())


def test_moments_and_steps_are_all_that_a_resumed_run_needs() -> None:
    own, again = parameters(0), parameters(0)
    whole, first = Adam(own, 1e-2), Adam(again, 1e-2)
    train(whole, own, 1, 3)
    train(first, again, 1, 3)
    resumed = Adam(again, 1e-2)
    resumed.steps = first.steps
    for name, moment in resumed.moments().items():
        moment.copy_(first.moments()[name])
    train(whole, own, 2, 2)
    train(resumed, again, 2, 2)
    assert resumed.steps == 5
    assert all(torch.equal(a, b) for a, b in zip(own, again, strict=True))


def test_a_parameter_without_gradient_stays() -> None:
    own = parameters(0)
    before = own[0].detach().clone()
    own[1].grad = torch.ones_like(own[1])
    Adam(own, 0.1).step()
    assert torch.equal(own[0], before)
    assert torch.allclose(own[1], parameters(0)[1] - 0.1)
