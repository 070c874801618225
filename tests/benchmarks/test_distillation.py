"""The benchmark of the training loop compares what is comparable, and counts what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import distillation
from benchmarks.distillation import WAYS, Passes, iterate, new_trainer
from benchmarks.straightforward import Straightforward
from distill.recipe import Recipe
from distill.report import Iteration
from distill.trainer import Trainer

GUIDANCE = {"fake_train": 1, "fake_outer": 1, "fake_inner": 1, "teacher": 2}


class Remembering:
    """A run that keeps the figures of its last iteration."""

    out_of_time = stopping = False
    last: Iteration

    def after_iteration(self, training: object, iteration: Iteration) -> None:
        self.last = iteration


@pytest.fixture(scope="module", params=["sana", "sd3.5", "flux"])
def wanted(request: pytest.FixtureRequest, tiny: Callable[[str], Path]) -> Recipe:
    content = {
        "teacher": str(tiny(request.param)),
        "batch": 4,
        "iterations": 9,
        "guidance": GUIDANCE,
    }
    return Recipe.model_validate({**content, "optimizer": {"lr_generator": 1e-4, "lr_fake": 1e-4}})


def remembering(recipe: Recipe) -> tuple[Trainer, Remembering]:
    trainer = new_trainer(recipe)
    trainer.run = record = Remembering()  # type: ignore[assignment]
    return trainer, record


def test_both_implementations_do_the_same_work(wanted: Recipe) -> None:
    """Same draws, same losses, same weights after several iterations, but for rounding: what is
    compared is speed and memory alone."""
    (trainer, record), (inputs, _) = remembering(wanted), remembering(wanted)
    plain = Straightforward(inputs)
    for k in (1, 3, 4):
        iterate(trainer, k)
        plain.iterate(k)
        assert plain.losses["fake"] == pytest.approx(record.last.fake.loss, rel=1e-3)
        assert plain.losses["generator"] == pytest.approx(record.last.generator.loss, rel=5e-2, abs=0.5)
    for ours, theirs in ((trainer.state.fake, plain.fake), (trainer.state.generator, plain.generator)):
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=7e-4)  # three steps of 1e-4, both ways


def test_the_straightforward_one_moves_what_it_trains_and_leaves_the_teacher(wanted: Recipe) -> None:
    inputs, _ = remembering(wanted)
    plain = Straightforward(inputs)
    before = [value.clone() for value in plain.teacher.parameters()]
    plain.iterate(2)
    assert all(torch.equal(a, b) for a, b in zip(before, plain.teacher.parameters(), strict=True))
    for network in (plain.fake, plain.generator):
        pairs = zip(before, network.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)


def test_passes_are_all_evaluations_of_an_iteration(wanted: Recipe) -> None:
    """The loop calls its networks just as often as the benchmark counts."""
    trainer, _ = remembering(wanted)
    calls = {"n": 0}

    def count(*_: object) -> None:
        calls["n"] += 1

    networks = (trainer.teacher.transformer, trainer.state.fake, trainer.state.generator)
    hooks = [network.register_forward_hook(count) for network in networks]
    for k in (1, 2, 4):
        calls["n"] = 0
        iterate(trainer, k)
        assert calls["n"] == sum(Passes.count(name, k) for name in Passes(trainer).calls())
    for hook in hooks:
        hook.remove()
    for call in Passes(trainer).calls().values():
        call()
    assert all(value.grad is None for network in networks for value in network.parameters())


def measured(**seconds: float) -> dict[str, Any]:
    passes = {name: {"cpu": [1.0, 1.0, 9.0]} for name in ("generator forward", "another")}
    loops = {f"{way}, k={k}": {"cpu": [seconds.get(way, 5.0) * k] * 3} for way in WAYS for k in (1, 2)}
    return {**passes, **loops}


def test_ratios_are_of_medians_at_each_k() -> None:
    found = distillation.ratios(measured(loop=4.0))
    assert found[1] == {"passes": 2.0, **dict.fromkeys(WAYS, 5.0), "loop": 4.0}
    assert found[2]["passes"] == 4.0  # three forwards and the other
    assert distillation.average(measured(loop=4.0))["loop"] == 6.0


@pytest.mark.parametrize("wanted", ["sana"], indirect=True)
def test_memory_sees_weights_optimizers_and_the_graph(
    wanted: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, parts = {"activation_checkpointing": True}, distillation.IN_PARTS
    variants = {"loop": {}, "checkpointing": kept, "in parts": parts}
    monkeypatch.setattr(distillation, "VARIANTS", variants)
    found = distillation.memory(wanted)
    weights = sum(value.nbytes for value in new_trainer(wanted).state.fake.parameters()) / 1e6
    buffers = 0.1
    assert found["loop"]["resting"] == pytest.approx(5 * weights, abs=buffers)  # three networks, two moments
    assert found["straightforward"]["resting"] == pytest.approx(7 * weights, abs=buffers)
    assert found["checkpointing"]["peak"] < found["loop"]["peak"] < found["straightforward"]["peak"]
    assert found["in parts"]["peak"] < found["loop"]["peak"]


def test_the_report_names_recipe_and_ratio() -> None:
    memory = {
        "shapes-x": {"straightforward": {"resting": 2.0, "peak": 4.0}, "loop": {"resting": 1.0, "peak": 3.0}}
    }
    results = {
        "machine": {},
        "batch": 4,
        "rounds": 3,
        "time": {"shapes-x": measured(loop=4.0)},
        "memory": memory,
    }
    text = distillation._report(results)
    assert "| shapes-x | 1 | 2.000 | 4.000 | 5.000 | 5.000 | 5.000 | 5.000 | 2.000 | 1.25 | 1.00 |" in text
    assert "| shapes-x | loop | 1 | 3 | 0.75 |" in text


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    memory = {
        "a": {name: {"resting": 1.0, "peak": 2.0} for name in ("straightforward", *distillation.VARIANTS)}
    }
    results = {"machine": distillation.machine(), "time": {"a": measured()}, "memory": memory}
    distillation._plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
