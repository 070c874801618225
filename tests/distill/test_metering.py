"""The meter against what is known by hand, and CUDA's ways against the CPU's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distill.planning.metering import LikeCuda, Meter
from distill.planning.outline import Weightless


def test_bytes_live_while_something_refers_to_them() -> None:
    with Meter() as meter:
        x = torch.empty(100)
        view = x[10:20].view(2, 5)
        view.add_(1)
        assert meter.live == 400, "a view and a result in place are no memory of their own"
        del x
        assert meter.live == 400
        y = torch.empty(50)
        del view
        assert (meter.live, meter.peak) == (200, 600)
        meter.restart()
        assert meter.peak == 200
        del y
    assert meter.live == 0


def test_what_was_there_before_is_not_counted() -> None:
    weight = torch.zeros(100)
    with Meter([weight]) as meter:
        weight.t().add_(1)
        assert (meter.live, meter.peak) == (0, 0)


def test_autograd_holds_what_it_saves() -> None:
    layer = nn.Linear(8, 8)
    with Meter(layer.parameters()) as meter:
        x = torch.ones(4, 8)
        y = layer(x).exp().sum()
        del x
        assert meter.live == 4 * 8 * 4 * 2 + 4, "the layer's input, the result of exp, the sum"
        y.backward()
        del y
        assert meter.live == (64 + 8) * 4, "gradients"


def test_fake_and_real_tensors_are_counted_alike() -> None:
    def run() -> tuple[int, int, int]:
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
        with Meter(net.parameters()) as meter:
            net(torch.randn(2, 3, 8, 8)).square().sum().backward()
        return meter.live, meter.peak, meter.flops

    real = run()
    with Weightless():
        assert run() == real


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_operations_of_a_convolution(groups: int) -> None:
    """Forward, and as much again for each gradient; PyTorch's count agrees where there are no groups."""
    layer = nn.Conv2d(8, 8, 3, groups=groups, bias=False)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    with Meter() as meter, FlopCounterMode(display=False) as theirs:
        layer(x).sum().backward()
    assert meter.flops == 3 * 2 * (2 * 16) * layer.weight.numel()
    assert (meter.flops == theirs.get_total_flops()) == (groups == 1)
    with Meter() as meter:
        layer.requires_grad_(False)(x).sum().backward()
    assert meter.flops == 2 * 2 * (2 * 16) * layer.weight.numel()


def attended(bf16: bool, mask: bool = False) -> tuple[Tensor, Meter]:
    x = torch.randn(1, 2, 256, 8, requires_grad=True)
    bias = torch.zeros(1, 1, 1, 256) if mask else None
    with Meter([x]) as meter, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = F.scaled_dot_product_attention(x, x, x, bias)
        y.float().sum().backward()
    return y, meter


@pytest.mark.parametrize("mask", [False, True])
def test_attention_on_cuda_never_holds_the_scores(mask: bool) -> None:
    with Weightless(), sdpa_kernel(SDPBackend.MATH):
        _, on_cpu = attended(False, mask)
    with Weightless(), LikeCuda():
        y, on_cuda = attended(False, mask)
    assert y.shape == (1, 2, 256, 8)
    assert on_cuda.peak < 0.3 * on_cpu.peak
    assert on_cuda.flops >= on_cpu.flops > 0, "its backward pass computes the scores again"


def test_autocast_on_cuda_widens_what_the_cpu_does_not() -> None:
    x = torch.randn(4, 8)
    with Weightless(), torch.autocast("cpu", torch.bfloat16):
        fake = torch.randn(4, 8).bfloat16()
        assert F.layer_norm(fake, (8,)).dtype == torch.bfloat16
        with LikeCuda():
            assert F.layer_norm(fake, (8,)).dtype == torch.float32
            assert fake.pow(2).dtype == torch.float32
            assert F.silu(fake).dtype == torch.bfloat16
            assert F.linear(fake.float(), fake.float()).dtype == torch.bfloat16
            assert attended(True)[0].dtype == torch.bfloat16
    with LikeCuda():
        assert F.layer_norm(x.bfloat16(), (8,)).dtype == torch.bfloat16, "without autocast nothing changes"
