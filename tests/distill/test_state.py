"""What changes during a run, and the figures that an iteration reports."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from distill.checkpoint import KEEP, Checkpoints
from distill.errors import DistillError
from distill.optimizer import Adam
from distill.parallel import ALONE
from distill.recipe import Recipe
from distill.report import Iteration, Report
from distill.sid import Loss
from distill.state import State, follow, new_state, set_rates


def recipe(**changes: object) -> Recipe:
    optimizer = {"lr_generator": 3e-4, "lr_fake": 1e-4, **changes.pop("optimizer", {})}  # type: ignore[dict-item]
    return Recipe.model_validate({"teacher": "t", "iterations": 8, "optimizer": optimizer, **changes})


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def rates(state: State) -> tuple[float, float]:
    return state.generator_optimizer.param_groups[0]["lr"], state.fake_optimizer.param_groups[0]["lr"]


def parameters(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def test_a_constant_schedule_stays_where_it_is() -> None:
    wanted = recipe()
    state = new_state(wanted, network())
    for state.iteration in range(8):
        set_rates(state, wanted)
        assert rates(state) == (3e-4, 1e-4)


def test_a_cosine_schedule_by_hand() -> None:
    wanted = recipe(optimizer={"schedule": "cosine"})
    state = new_state(wanted, network())
    for iteration, share in {
        0: 1.0,
        2: (1 + math.sqrt(0.5)) / 2,
        4: 0.5,
        6: (1 - math.sqrt(0.5)) / 2,
    }.items():
        state.iteration = iteration
        set_rates(state, wanted)
        assert rates(state) == pytest.approx((3e-4 * share, 1e-4 * share))


def test_a_cosine_schedule_falls_at_every_iteration_and_never_below_zero() -> None:
    wanted = recipe(optimizer={"schedule": "cosine"}, iterations=50)
    state, seen = new_state(wanted, network()), []
    for state.iteration in range(50):
        set_rates(state, wanted)
        seen.append(rates(state)[0])
    assert seen == sorted(seen, reverse=True)
    assert len(set(seen)) == 50
    assert seen[-1] > 0


def test_all_three_networks_start_as_copies_of_the_teacher() -> None:
    teacher = network()
    state = new_state(recipe(ema=0.9), teacher)
    for module in (state.generator, state.fake, state.ema):
        assert module is not None
        assert module is not teacher
        assert torch.equal(parameters(module), parameters(teacher))
    with torch.no_grad():
        next(state.generator.parameters()).add_(1)
    assert torch.equal(parameters(state.fake), parameters(teacher))


def test_optimizers_are_adam_without_first_moment_each_on_its_network() -> None:
    state = new_state(recipe(), network())
    pairs = ((state.generator, state.generator_optimizer), (state.fake, state.fake_optimizer))
    for module, optimizer in pairs:
        group = optimizer.param_groups[0]
        assert isinstance(optimizer, Adam)
        assert (group["betas"], group["eps"]) == ((0.0, 0.999), 1e-8)
        assert {key.split(".")[0] for key in optimizer.moments()} == {"second"}
        assert {id(p) for p in group["params"]} == {id(p) for p in module.parameters()}
    assert state.ema is None


def test_the_average_is_never_trained() -> None:
    state = new_state(recipe(ema=0.5), network())
    assert state.ema is not None
    assert not any(parameter.requires_grad for parameter in state.ema.parameters())


def test_the_average_of_many_steps_is_the_geometric_sum() -> None:
    average, live = network(), network()
    start = parameters(average)
    for step in range(1, 6):
        with torch.no_grad():
            for parameter in live.parameters():
                parameter.copy_(torch.full_like(parameter, float(step)))
        follow(average, live, 0.8)
    expected = 0.8**5 * start + sum(0.2 * 0.8 ** (5 - step) * step for step in range(1, 6))
    torch.testing.assert_close(parameters(average), expected)


@pytest.mark.parametrize("decay", [None, 0.5])
def test_without_an_average_nothing_follows(decay: float | None) -> None:
    live = network()
    before = copy.deepcopy(live.state_dict())
    follow(None, live, decay)
    assert all(torch.equal(before[name], value) for name, value in live.state_dict().items())


def one_step(state: State) -> None:
    state.generator(torch.ones(2, 3)).square().sum().backward()
    state.generator_optimizer.step()
    state.generator_optimizer.zero_grad()
    state.iteration += 1


def test_a_checkpoint_carries_the_optimizers_moments(tmp_path: Path) -> None:
    """The step after a save and a load is the one that would have come anyway."""
    wanted = recipe()
    state, other = new_state(wanted, network()), new_state(wanted, network())
    one_step(state)
    Checkpoints(tmp_path, wanted).save(state)
    one_step(state)
    Checkpoints(tmp_path, wanted).load(other)
    one_step(other)
    assert other.iteration == state.iteration == 2
    assert torch.equal(parameters(other.generator), parameters(state.generator))


def test_only_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    wanted, kept = recipe(), Checkpoints(tmp_path, recipe())
    state = new_state(wanted, network())
    for state.iteration in (2, 4, 10, 100):
        kept.save(state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000010", "000100"]
    assert len(list(tmp_path.iterdir())) == KEEP
    assert kept.latest() == tmp_path / "000100"


def test_a_half_written_checkpoint_is_never_taken_for_one(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path, recipe())
    (tmp_path / ".000009.1234abcd").mkdir()
    assert kept.latest() is None
    with pytest.raises(DistillError, match="no checkpoint in"):
        kept.load(new_state(recipe(), network()))


def loss(*values: float, dropped: int = 0) -> Loss:
    each = torch.tensor(values)
    return Loss(each.mean(), each, dropped)


def test_a_report_averages_over_images_and_not_over_parts() -> None:
    report = Report()
    report.add(loss(1.0, 2.0, 3.0), torch.zeros(3, 2))
    report.add(loss(10.0), torch.zeros(1, 2))
    report = report.over(ALONE)
    assert (report.loss, report.images) == (4.0, 4)


def test_a_report_counts_what_was_dropped_and_measures_the_rest() -> None:
    x_g = torch.tensor([[0.0, 1.0], [2.0, 1.0], [float("nan"), 0.0]])
    report = Report()
    report.add(loss(1.0, 1.0, 0.0, dropped=1), x_g)
    report = report.over(ALONE)
    assert report.dropped == 1
    assert report.spread == pytest.approx((math.sqrt(2) + 0) / 2)


@given(
    st.lists(st.lists(st.floats(-100, 100), min_size=3, max_size=3), min_size=2, max_size=12),
    st.integers(1, 11),
)
def test_the_spread_does_not_depend_on_the_parts(rows: list[list[float]], cut: int) -> None:
    x_g, report = torch.tensor(rows), Report()
    for part in (x_g[:cut], x_g[cut:]):
        if len(part):
            report.add(loss(*[0.0] * len(part)), part)
    expected = float(x_g.double().std(0).mean())
    assert report.over(ALONE).spread == pytest.approx(expected, rel=1e-6, abs=1e-4)


def test_one_image_has_no_spread() -> None:
    report = Report()
    report.add(loss(1.0), torch.ones(1, 2))
    assert report.over(ALONE).spread == 0


def test_an_event_has_the_promised_figures() -> None:
    fake, generator = Report(total=6, images=3, dropped=1), Report(total=-3, images=3, dropped=2, spread=0.7)
    event = Iteration(3, fake, generator, 1.5, 2.5, seconds=0.1).as_event()
    assert event == {
        "k": 3,
        "loss_fake": 2,
        "loss_generator": -1,
        "grad_norm_fake": 1.5,
        "grad_norm_generator": 2.5,
        "spread": 0.7,
        "dropped": 3,
    }
