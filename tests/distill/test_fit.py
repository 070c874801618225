"""The supervised loop: schedule and average by hand, and a stopped training that goes on bit-equal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distill.shapes import fit as module
from distill.shapes.fit import Schedule, _rate, fit

SCHEDULE = Schedule(steps=12, batch=8, lr=0.05, warmup=3, ema=0.5)


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def loss_of(
    net: nn.Module, stop_at: int | None = None, seen: list[float] | None = None
) -> module.LossFunction:
    """Regression on fresh points, with noise from both kinds of random numbers."""
    steps = 0

    def loss(rng: np.random.Generator, batch: int) -> Tensor:
        nonlocal steps
        if steps == stop_at:
            raise KeyboardInterrupt
        steps += 1
        x = torch.from_numpy(rng.standard_normal((batch, 2), np.float32))
        noise = 0.1 * torch.randn(batch, 1)
        value: Tensor = (net(x) - x.sum(1, keepdim=True) - noise).square().mean()
        if seen is not None:
            seen.append(value.item())
        return value

    return loss


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("stop", [4, 6, 11])
def test_a_stopped_training_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_EVERY", 2)
    whole, parts, again = model(), model(), model()
    fit("whole", whole, loss_of(whole), SCHEDULE, 3, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit("parts", parts, loss_of(parts, stop_at=stop), SCHEDULE, 3, tmp_path / "parts")
    seen: list[float] = []
    fit("parts", again, loss_of(again, seen=seen), SCHEDULE, 3, tmp_path / "parts")
    assert len(seen) == SCHEDULE.steps - stop // 2 * 2
    assert same(again, whole)


def test_the_same_seed_gives_the_same_model_and_another_seed_another(tmp_path: Path) -> None:
    models = [model() for _ in range(3)]
    for number, (net, seed) in enumerate(zip(models, (5, 5, 6), strict=True)):
        fit("m", net, loss_of(net), SCHEDULE, seed, tmp_path / str(number))
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_training_learns() -> None:
    net, seen = model(), []
    schedule = Schedule(steps=150, batch=32, lr=0.05, warmup=5)
    fit("m", net, loss_of(net, seen=seen), schedule, 0, Path("/nonexistent/never-saved"))
    assert np.mean(seen[-10:]) < np.mean(seen[:10]) / 10


def test_a_finished_training_is_in_evaluation_mode(tmp_path: Path) -> None:
    net = model()
    modes: list[bool] = []

    def loss(rng: np.random.Generator, batch: int) -> Tensor:
        modes.append(net.training)
        return net(torch.zeros(batch, 2)).sum()

    fit("m", net.eval(), loss, SCHEDULE, 0, tmp_path / "c")
    assert all(modes)
    assert not net.training


def test_the_rate_warms_up_then_falls_to_zero_by_hand() -> None:
    schedule = Schedule(steps=100, batch=1, lr=2.0, warmup=10)
    assert _rate(schedule, 0) == pytest.approx(2.0 * 0.1)
    assert _rate(schedule, 4) == pytest.approx(2.0 * 0.5 * 0.5 * (1 + np.cos(np.pi * 0.04)))
    assert _rate(schedule, 50) == pytest.approx(1.0)
    assert _rate(schedule, 75) == pytest.approx(1 - np.sqrt(0.5))
    assert 0 < _rate(schedule, 99) < 0.001
    rates = [_rate(schedule, step) for step in range(100)]
    assert rates.index(max(rates)) == 9


def test_the_optimizer_is_told_the_rate_of_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, *arguments: object) -> None:
        told.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    net = model()
    fit("m", net, loss_of(net), SCHEDULE, 0, tmp_path / "c")
    assert told == [_rate(SCHEDULE, number) for number in range(12)]


class Weight(nn.Module):
    """One number, and a buffer that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor([2.0]))
        self.register_buffer("count", torch.tensor(0))


def test_the_model_ends_as_its_moving_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decay is min(ema, (1 + step) / (10 + step)), so that the random start is soon forgotten."""
    net, live = Weight(), []
    follow = module._follow

    def spy(average: dict[str, Tensor], trained: Weight, decay: float) -> None:
        live.append(trained.value.item())
        follow(average, trained, decay)

    def loss(rng: np.random.Generator, batch: int) -> Tensor:
        net.count += 1
        return net.value.square().sum()

    monkeypatch.setattr(module, "_follow", spy)
    fit("m", net, loss, Schedule(steps=4, batch=1, lr=0.1, warmup=1, ema=0.15), 0, tmp_path / "c")
    expected = 2.0
    for value, decay in zip(live, (0.1, 0.15, 0.15, 0.15), strict=True):
        expected = decay * expected + (1 - decay) * value
    assert len(set(live)) == 4
    assert net.value.item() == pytest.approx(expected)
    assert net.count == 4, "what is no floating-point number is copied, not averaged"


def test_progress_shows_the_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = model()
    fit("judge", net, loss_of(net), SCHEDULE, 0, tmp_path / "c")
    assert "judge 12/12 loss " in capsys.readouterr().err
