"""The losses: where gradients go, what they are worth on fields known by hand, and that they work."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from distill import flow, sid
from distill.sampler import rollout
from distill.spec import uniform_levels

from .toy import Net, draw, exact_velocity, mmd2

SHAPE = (4, 2, 3, 3)


def linear(a: float, b: float = 0.0) -> sid.Velocity:
    """The field v(x, t) = a x + b t."""
    return lambda x, t_B: a * x + b * flow.per_image(t_B, x)


def _inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    x_g, eps = torch.randn(2, *SHAPE, generator=source, dtype=torch.float64).float()
    return x_g, eps, flow.logit_normal(SHAPE[0], source)


def test_fake_loss_is_the_summed_squared_error_per_image() -> None:
    x_g, eps, t_B = _inputs()
    loss = sid.fake_loss(linear(0.5), x_g, eps, t_B)
    x_t = flow.add_noise(x_g, eps, t_B)
    expected = ((0.5 * x_t - (eps - x_g)) ** 2).sum() / len(x_g)
    assert_close(loss.total, expected)
    assert_close(loss.per_image_B.mean(), expected)
    assert loss.dropped == 0


def test_fake_loss_sends_no_gradient_to_the_pictures() -> None:
    x_g, eps, t_B = _inputs()
    scale = torch.ones((), requires_grad=True)
    x_g.requires_grad_(True)
    sid.fake_loss(lambda x, t: scale * x, x_g, eps, t_B).total.backward()
    assert x_g.grad is None
    assert scale.grad is not None


@pytest.mark.parametrize("weighting", [name for name in sid.WEIGHTINGS if name != "sid_legacy"])
@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.0, 1.2])
def test_generator_loss_by_hand_on_linear_fields(weighting: str, alpha: float) -> None:
    x_g, eps, t_B = _inputs()
    t = flow.per_image(t_B, x_g)
    weights = {
        "1_minus_sigma": 1 - t,
        "1_minus_sigma_squared": (1 - t) ** 2,
        "1_over_sigma": 1 / t,
        "1_over_sigma2": 1 / t**2,
        "snr_sqrt": (1 - t) / t,
        "snr": ((1 - t) / t) ** 2,
    }
    x_t = (1 - t) * x_g + t * eps
    f_phi, f_psi = x_t - t * 0.7 * x_t, x_t - t * 0.2 * x_t
    d = f_phi - f_psi
    expected = (weights[weighting] * d * ((f_phi - x_g) - alpha * d)).sum() / len(x_g)
    loss = sid.generator_loss(linear(0.7), linear(0.2), x_g, eps, t_B, alpha, weighting)
    assert_close(loss.total, expected, rtol=1e-4, atol=1e-4)


def test_alpha_one_is_the_published_short_form() -> None:
    x_g, eps, t_B = _inputs()
    t = flow.per_image(t_B, x_g)
    x_t = flow.add_noise(x_g, eps, t_B)
    f_phi, f_psi = (flow.x0_from_velocity(x_t, a * x_t, t_B) for a in (0.7, 0.2))
    expected = ((1 - t) * (f_phi - f_psi) * (f_psi - x_g)).sum() / len(x_g)
    assert_close(sid.generator_loss(linear(0.7), linear(0.2), x_g, eps, t_B).total, expected)


def test_legacy_weight_is_one_over_the_mean_distance() -> None:
    x_g, eps, t_B = _inputs()
    f_phi = x_g + 2.0
    assert_close(sid.WEIGHTINGS["sid_legacy"](t_B, x_g, f_phi), torch.full((4, 1, 1, 1), 0.5))
    assert sid.WEIGHTINGS["sid_legacy"](t_B, x_g, x_g).max() == pytest.approx(1e5)


def test_four_guidance_scales_enter_where_they_should() -> None:
    """kappa 1 in the fake loss; kappa 4 in f_phi, kappa 2 in d, kappa 3 in the second factor."""
    x_g, eps, t_B = _inputs()
    t, x_t = flow.per_image(t_B, x_g), flow.add_noise(x_g, eps, t_B)

    def field(u: float, v: float, kappa: float) -> sid.Velocity:
        return lambda x, _: flow.guided(u * x, v * x, kappa)

    fake = sid.fake_loss(field(0.1, 0.3, 2.0), x_g, eps, t_B).total
    assert_close(fake, ((0.5 * x_t - (eps - x_g)) ** 2).sum() / 4)
    loss = sid.generator_loss(
        field(0.2, 0.4, 3.0), field(0.1, 0.3, 2.0), x_g, eps, t_B, fake_inner=field(0.1, 0.3, 0.0)
    )
    f_phi, f_outer, f_inner = (x_t - t * a * x_t for a in (0.8, 0.5, 0.1))
    assert_close(loss.total, ((1 - t) * (f_phi - f_outer) * (f_inner - x_g)).sum() / 4)


@given(st.integers(0, 1000), st.sampled_from(list(sid.WEIGHTINGS)), st.floats(-1, 2))
def test_no_gradient_when_teacher_and_fake_are_the_same(seed: int, weighting: str, alpha: float) -> None:
    x_g, eps, t_B = _inputs(seed)
    x_g.requires_grad_(True)
    net = linear(0.3, 0.1)
    loss = sid.generator_loss(net, net, x_g, eps, t_B.clamp(max=0.99), alpha, weighting)
    loss.total.backward()
    assert loss.total == 0
    assert x_g.grad is not None
    largest = float(sid.WEIGHTINGS[weighting](t_B.clamp(max=0.99), x_g.detach(), x_g.detach() + 1).max())
    assert x_g.grad.abs().max() <= 1e-5 * max(1, largest)  # two equal Jacobians cancel up to rounding


def test_gradient_flows_through_the_inputs_of_both_networks() -> None:
    """With linear fields the whole loss is a polynomial of x_g, so its gradient is known."""
    x_g, eps, t_B = _inputs()
    x = x_g.clone().requires_grad_(True)
    sid.generator_loss(linear(0.7), linear(0.2), x, eps, t_B).total.backward()
    t = flow.per_image(t_B, x_g)
    x_t = flow.add_noise(x_g, eps, t_B)
    d, dd = -0.5 * t * x_t, -0.5 * t * (1 - t)  # d and its derivative with respect to x_g
    inner, dinner = (1 - 0.2 * t) * x_t - x_g, (1 - 0.2 * t) * (1 - t) - 1
    assert_close(x.grad, (1 - t) * (dd * inner + d * dinner) / len(x_g), rtol=1e-4, atol=1e-5)


def test_weight_carries_no_gradient() -> None:
    x_g, eps, t_B = _inputs()
    x = x_g.clone().requires_grad_(True)
    sid.generator_loss(linear(0.7), linear(0.2), x, eps, t_B, weighting="sid_legacy").total.backward()
    weight = sid.WEIGHTINGS["sid_legacy"](t_B, x_g, flow.x0_from_velocity(*_noised(x_g, eps, t_B, 0.7)))
    y = x_g.clone().requires_grad_(True)
    x_t = flow.add_noise(y, eps, t_B)
    f_phi, f_psi = (flow.x0_from_velocity(x_t, a * x_t, t_B) for a in (0.7, 0.2))
    ((weight * (f_phi - f_psi) * (f_psi - y)).sum() / 4).backward()
    assert_close(x.grad, y.grad)


def _noised(x_g: Tensor, eps: Tensor, t_B: Tensor, a: float) -> tuple[Tensor, Tensor, Tensor]:
    x_t = flow.add_noise(x_g, eps, t_B)
    return x_t, a * x_t, t_B


def test_an_image_with_nan_is_dropped_and_counted() -> None:
    x_g, eps, t_B = _inputs()
    clean = sid.generator_loss(linear(0.7), linear(0.2), x_g, eps, t_B)
    broken = x_g.clone()
    broken[1, 0, 0, 0] = float("nan")
    loss = sid.generator_loss(linear(0.7), linear(0.2), broken, eps, t_B)
    assert loss.dropped == 1
    assert loss.per_image_B[1] == 0
    assert_close(loss.total, (clean.per_image_B.sum() - clean.per_image_B[1]) / 4)


def _without(image: int) -> list[int]:
    return [i for i in range(SHAPE[0]) if i != image]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_dropped_image_leaves_the_gradient_of_the_others_to_the_fake_network(bad: float) -> None:
    x_g, eps, t_B = _inputs()
    x_g[1, 0, 0, 0] = bad
    kept = _without(1)

    def gradient(*inputs: Tensor) -> tuple[Tensor, int]:
        scale = torch.tensor(0.3, requires_grad=True)
        loss = sid.fake_loss(lambda x, t: scale * x, *inputs)
        (loss.total * len(inputs[0])).backward()
        assert scale.grad is not None
        return scale.grad, loss.dropped

    (got, dropped), (expected, _) = gradient(x_g, eps, t_B), gradient(x_g[kept], eps[kept], t_B[kept])
    assert dropped == 1
    assert_close(got, expected)


@pytest.mark.parametrize("network", ["teacher", "fake", "inner"])
def test_a_network_that_fails_on_one_image_leaves_the_gradient_of_the_others(network: str) -> None:
    """NaN in one velocity, as an overflow makes it; the generator is a scale of fixed latents."""
    latents, eps, t_B = _inputs()
    kept, fields = _without(2), {"teacher": linear(0.7), "fake": linear(0.2), "inner": linear(0.4)}

    def breaking(x: Tensor, t: Tensor) -> Tensor:
        factor = torch.ones(len(x))
        factor[2] = float("nan")
        return fields[network](x, t) * flow.per_image(factor, x)

    def gradient(which: list[int], **replaced: sid.Velocity) -> tuple[Tensor, int]:
        scale, used = torch.tensor(0.8, requires_grad=True), {**fields, **replaced}
        x_g = scale * latents[which]
        noised = (x_g, eps[which], t_B[which])
        loss = sid.generator_loss(used["teacher"], used["fake"], *noised, fake_inner=used["inner"])
        (loss.total * len(which)).backward()
        assert scale.grad is not None
        return scale.grad, loss.dropped

    got, dropped = gradient(list(range(SHAPE[0])), **{network: breaking})
    expected, _ = gradient(kept)
    assert dropped == 1
    assert_close(got, expected)


def test_clean_gradients_replaces_what_is_not_finite() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.tensor([float("nan"), float("inf"), -float("inf"), 3.0])
    norm = sid.clean_gradients([parameter])
    assert parameter.grad.tolist() == [0, 1e5, -1e5, 3]
    assert norm == pytest.approx((2 * 1e10 + 9) ** 0.5)


def test_sid_cuts_the_mmd_of_one_step_samples_ten_times() -> None:
    """The whole recipe on the toy: a copy of the pretrained net becomes a four-step generator."""
    torch.manual_seed(0)
    source = torch.Generator().manual_seed(1)
    pretrained = _pretrain(source)
    generator, fake = copy.deepcopy(pretrained), copy.deepcopy(pretrained)
    before = _discrepancy(pretrained, 1)
    optimizers = [torch.optim.Adam(net.parameters(), 1e-3, betas=(0.0, 0.999)) for net in (fake, generator)]
    for _ in range(1200):
        k = int(torch.randint(1, 5, (), generator=source))
        _update(optimizers[0], sid.fake_loss(fake, _generate(generator, k, source), *_noise(source)))
        x_g = _generate(generator, k, source, grad=True)
        _update(optimizers[1], sid.generator_loss(exact_velocity, fake, x_g, *_noise(source)))
    assert _discrepancy(generator, 1) < before / 10
    assert _discrepancy(generator, 4) < before / 10


BATCH = 256


def _pretrain(source: torch.Generator) -> Net:
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(800):
        x0, (eps, t_B) = draw(BATCH, source), _noise(source)
        x_t = flow.add_noise(x0, eps, t_B)
        optimizer.zero_grad()
        ((net(x_t, t_B) - exact_velocity(x_t, t_B)) ** 2).sum(1).mean().backward()
        optimizer.step()
    return net


def _noise(source: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, 2, generator=source), flow.logit_normal(BATCH, source)


def _generate(net: Net, k: int, source: torch.Generator, grad: bool = False, count: int = BATCH) -> Tensor:
    return rollout(
        net, uniform_levels(4), lambda _: torch.randn(count, 2, generator=source), steps=k, grad=grad
    )


def _update(optimizer: torch.optim.Optimizer, loss: sid.Loss) -> None:
    optimizer.zero_grad()
    loss.total.backward()
    optimizer.step()


def _discrepancy(net: Net, k: int) -> float:
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        return mmd2(_generate(net, k, source, count=2000), draw(2000, source))
