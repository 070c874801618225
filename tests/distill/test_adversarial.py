"""The data-aided losses by hand; features come from the same evaluation as the velocity."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from distill import adversarial, sid
from distill.adversarial import Critic, last_norm
from distill.families import FAMILIES, with_guidance
from distill.pipeline import Pipeline, load_pipeline
from distill.sampler import guided_network

Tiny = Callable[[str], Path]

ARCHITECTURES = ("sana", "sana-sprint", "sd3", "sd3.5", "sd3-without-t5", "flux", "flux-schnell")
ELEMENTS = 512


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_discriminator_loss_by_hand() -> None:
    """Two pairs of two logits: BCE(l, 1) = softplus(-l), BCE(l, 0) = softplus(l)."""
    real, fake = torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.tensor([[0.5, 0.0], [-1.0, 2.0]])
    loss = adversarial.discriminator_loss(real, fake, ELEMENTS)
    first = (softplus(-1) + softplus(2)) / 2 + (softplus(0.5) + softplus(0)) / 2
    second = (softplus(0) + softplus(-3)) / 2 + (softplus(-1) + softplus(2)) / 2
    assert_close(loss.per_image_B, torch.tensor([first, second]) * 0.5 * ELEMENTS)
    assert_close(loss.total, loss.per_image_B.mean())


def test_generator_loss_by_hand() -> None:
    fake, t_B = torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.tensor([0.25, 0.9])
    loss = adversarial.generator_loss(fake, t_B, ELEMENTS)
    first, second = (softplus(-1) + softplus(2)) / 2, (softplus(0) + softplus(-3)) / 2
    assert_close(loss.per_image_B, torch.tensor([0.75 * first, 0.1 * second]) * ELEMENTS)


@pytest.mark.parametrize("weighting", [name for name in sid.WEIGHTINGS if name != "sid_legacy"])
def test_the_generators_weight_is_that_of_sid(weighting: str) -> None:
    t_B = torch.tensor([0.2, 0.7])
    loss = adversarial.generator_loss(torch.zeros(2, 3), t_B, ELEMENTS, weighting)
    weight = sid.WEIGHTINGS[weighting](t_B, torch.zeros(2, 1), torch.zeros(2, 1))[:, 0]
    assert_close(loss.per_image_B, weight * math.log(2) * ELEMENTS)


def test_the_combined_loss_is_half_of_both() -> None:
    one = sid.Loss(torch.tensor(6.0), torch.tensor([2.0, 10.0]), 1)
    other = sid.Loss(torch.tensor(4.0), torch.tensor([4.0, 4.0]), 0)
    loss = adversarial.combined(one, other, weight=3.0)
    assert loss.total == 0.5 * 6 + 0.5 * 3 * 4
    assert loss.per_image_B.tolist() == [7, 11]
    assert loss.adversarial_B is not None
    assert loss.adversarial_B.tolist() == [6, 6]
    assert loss.dropped == 1
    twice = loss.scaled(2.0)
    assert (twice.total, twice.adversarial_B.tolist()) == (18, [12, 12])


def test_undecided_logits_cost_ln_2_for_each_element() -> None:
    zeros = torch.zeros(3, 7)
    assert float(adversarial.discriminator_loss(zeros, zeros, 100).total) == pytest.approx(100 * math.log(2))


logits = st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=1, max_size=4)


@given(logits, logits)
def test_a_discriminator_is_never_rewarded_and_right_answers_cost_less(a: Any, b: Any) -> None:
    size = min(len(a), len(b))
    real, fake = torch.tensor(a[:size]), torch.tensor(b[:size])
    loss = adversarial.discriminator_loss(real, fake, ELEMENTS)
    assert loss.total > 0
    assert adversarial.discriminator_loss(real + 1, fake - 1, ELEMENTS).total <= loss.total
    swapped = adversarial.discriminator_loss(-fake, -real, ELEMENTS)
    assert_close(swapped.total, loss.total)


def test_logits_beyond_the_limit_are_clamped_and_pull_no_more() -> None:
    fake = torch.tensor([[-50.0, 50.0, 1.0]], requires_grad=True)
    loss = adversarial.generator_loss(fake, torch.zeros(1), 3)
    assert loss.total.item() == pytest.approx(softplus(10) + softplus(-10) + softplus(-1), rel=1e-5)
    loss.total.backward()
    assert fake.grad is not None
    assert fake.grad[0, :2].tolist() == [0, 0]
    assert fake.grad[0, 2] == pytest.approx(-1 / (1 + math.e))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_pair_that_is_not_finite_is_dropped(bad: float) -> None:
    real, fake = torch.zeros(3, 2), torch.zeros(3, 2)
    real[0, 1], fake[1, 0] = bad, bad
    loss = adversarial.discriminator_loss(real, fake, 6)
    assert loss.dropped == 2
    assert_close(loss.per_image_B, torch.tensor([0, 0, 6 * math.log(2)]))
    assert adversarial.generator_loss(fake, torch.zeros(3), 6).dropped == 1


def some_inputs(pipeline: Pipeline, count: int = 2) -> tuple[Tensor, Tensor, dict[str, Any]]:
    source = torch.Generator().manual_seed(1)
    x = torch.randn(count, *pipeline.latent_shape(), generator=source)
    conditioning = with_guidance(pipeline.embed(["a red circle", "a blue star"][:count]), 3.5)
    unconditional = with_guidance(pipeline.unconditional(count), 3.5)
    return x, torch.tensor([0.3, 0.8][:count]), {"conditioning": conditioning, "unconditional": unconditional}


def critic_of(pipeline: Pipeline, scale: float, **texts: Any) -> Critic:
    network = guided_network(
        pipeline.transformer, pipeline.family, pipeline.time_scale, **texts, scale=scale, with_text=True
    )
    return Critic(network, pipeline.family, pipeline.transformer)


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_what_the_last_layer_is_given_over_picture_tokens(tiny: Tiny, name: str) -> None:
    """In one evaluation: what goes into `proj_out`, one token for each patch of the picture."""
    pipeline = load_pipeline(str(tiny(name)))
    x, t_B, texts = some_inputs(pipeline)
    given_to_last: list[Tensor] = []
    pipeline.transformer.proj_out.register_forward_pre_hook(lambda _, args: given_to_last.append(args[0]))
    critic = critic_of(pipeline, 1, **texts)
    velocity = critic(x, t_B)
    (tokens,) = given_to_last
    assert tokens.shape[:2] == (2, (x.shape[2] // pipeline.patch) * (x.shape[3] // pipeline.patch))
    assert torch.equal(critic.logits_BC, tokens.mean(1))
    assert torch.equal(velocity, critic.network(x, t_B))
    assert len(given_to_last) == 2, "the second one is the comparison's own"


@torch.no_grad()
@pytest.mark.parametrize("name", ["sana", "sd3", "flux"])
@pytest.mark.parametrize("scale", [4.5, 0.0, -1.0])
def test_under_guidance_the_conditional_branch_is_heard(tiny: Tiny, name: str, scale: float) -> None:
    """Also when kappa is 0: the velocity drops the text, the discriminator keeps it."""
    pipeline = load_pipeline(str(tiny(name)))
    x, t_B, texts = some_inputs(pipeline)
    plain, guided = critic_of(pipeline, 1, **texts), critic_of(pipeline, scale, **texts)
    v, u = plain(x, t_B), critic_of(pipeline, 1, conditioning=texts["unconditional"])(x, t_B)
    assert_close(guided(x, t_B), u + scale * (v - u), rtol=1e-4, atol=1e-5)
    assert_close(guided.logits_BC, plain.logits_BC)


@pytest.mark.parametrize("name", ["sana", "sd3.5", "flux"])
def test_gradients_reach_the_picture_and_the_network(tiny: Tiny, name: str) -> None:
    pipeline = load_pipeline(str(tiny(name)))
    x, t_B, texts = some_inputs(pipeline)
    for trained in (x, *pipeline.transformer.parameters()):
        trained.requires_grad_(True)
    critic = critic_of(pipeline, 4.5, **texts)
    critic(x, t_B)
    adversarial.generator_loss(critic.logits_BC, t_B, x[0].numel()).total.backward()
    assert x.grad is not None
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()
    assert pipeline.transformer.proj_out.weight.grad is None, "behind the feature"


@pytest.mark.parametrize("name", ["sana", "sd3", "flux"])
def test_logits_are_float32_under_autocast(tiny: Tiny, name: str) -> None:
    pipeline = load_pipeline(str(tiny(name)))
    x, t_B, texts = some_inputs(pipeline)
    exact, cast = critic_of(pipeline, 1, **texts), critic_of(pipeline, 1, **texts)
    exact(x, t_B)
    with torch.autocast("cpu", torch.bfloat16):
        assert cast(x, t_B).isfinite().all()
        loss = adversarial.discriminator_loss(cast.logits_BC, cast.logits_BC, 64)
    assert cast.logits_BC.dtype == loss.total.dtype == torch.float32
    assert_close(cast.logits_BC, exact.logits_BC, rtol=0.1, atol=0.1)


def test_a_critic_leaves_no_hook_behind(tiny: Tiny) -> None:
    pipeline = load_pipeline(str(tiny("sana")))
    norm = pipeline.transformer.norm_out

    def failing(x: Tensor, t_B: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        Critic(failing, pipeline.family, pipeline.transformer)(torch.zeros(1), torch.zeros(1))
    assert not norm._forward_hooks


class Wrapped(nn.Module):
    """As data parallelism and adapters wrap a network."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize("name", ["sana", "sd3", "flux"])
def test_the_last_norm_is_found_in_a_wrapped_network(tiny: Tiny, name: str) -> None:
    transformer = load_pipeline(str(tiny(name))).transformer
    found = last_norm(FAMILIES[name], Wrapped(transformer))
    assert found is transformer.norm_out
    with pytest.raises(ValueError, match="0 modules named norm_out"):
        last_norm(FAMILIES[name], nn.Linear(1, 1))
    with pytest.raises(ValueError, match="2 modules"):
        last_norm(
            FAMILIES[name], nn.ModuleList([Wrapped(transformer), nn.ModuleDict({"norm_out": nn.ReLU()})])
        )
