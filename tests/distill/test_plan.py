"""Plans: network passes, the arithmetic of memory, what is advised and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distill import distillation
from distill.distillation import distill
from distill.errors import DistillError
from distill.pipeline import load_pipeline
from distill.planning.gpus import GIB, GPUS, Gpu
from distill.planning.outline import outline
from distill.planning.plan import (
    UPDATES,
    Estimate,
    Mode,
    Plan,
    Sizes,
    _estimate,
    _flops_of_part,
    _share,
    count_passes,
    make_plan,
    refuse_if_too_small,
    resting_memory,
)
from distill.planning.rehearsal import Stage
from distill.planning.remedies import remedies
from distill.recipe import Recipe
from distill.trainer import FAKE, GENERATOR, Trainer

Tiny = Callable[[str], Path]
SIZES = Sizes(
    network=1000, buffers=24, adapters=64, block=100, outside=50, text_encoders=2000, autoencoder=500
)


def recipe_for(folder: Path, **changes: Any) -> Recipe:
    return Recipe.model_validate({"teacher": str(folder), "batch": 8, **changes})


@pytest.fixture(scope="module")
def plan(tiny: Tiny) -> Plan:
    return make_plan(recipe_for(tiny("sana"), batch=16, accumulation=2))


@pytest.mark.parametrize(
    "guidance",
    [
        {"fake_train": 4.5, "fake_outer": 4.5, "fake_inner": 4.5, "teacher": 4.5},
        {"fake_train": 1, "fake_outer": 0, "fake_inner": 2, "teacher": 1},
    ],
)
def test_passes_are_those_of_the_trainer(tiny: Tiny, guidance: dict[str, float]) -> None:
    """Images that go through each network for every k, against the formula."""
    recipe = recipe_for(tiny("sana"), batch=2, steps=3, fake_updates=2, guidance=guidance)
    trainer = Trainer(recipe, load_pipeline(recipe.teacher), ["a"], None)  # type: ignore[arg-type]
    images = {"no_graph": 0, "graph": 0}

    def count(module: torch.nn.Module, args: tuple[torch.Tensor], inputs: dict[str, Any]) -> None:
        images["graph" if torch.is_grad_enabled() else "no_graph"] += len(args[0])

    for network in (trainer.teacher.transformer, trainer.state.fake, trainer.state.generator):
        network.register_forward_pre_hook(count, with_kwargs=True)
    for k in range(1, recipe.steps + 1):
        for _ in range(recipe.fake_updates):
            trainer.fake_part(trainer.draw(FAKE, 0), k)
        trainer.generator_part(trainer.draw(GENERATOR, 0), k)
    expected = count_passes(recipe)
    total = recipe.steps * recipe.batch
    assert images["no_graph"] / total == pytest.approx(expected.no_graph)
    assert images["graph"] / total == pytest.approx(expected.weights + expected.inputs)


def test_operations_of_a_large_network_are_passes_times_a_forward_pass() -> None:
    """In matrix products each backward pass, to weights or to inputs, takes what a forward pass takes."""
    stages = {
        name: Stage(flops)
        for name, flops in {
            "text": 0, "fake_forward": 3, "fake_backward": 4, "generator_forward": 5, "generator_backward": 6,
        }.items()
    }  # fmt: skip  # one forward pass is one operation; the fake network has two branches
    recipe = Recipe(teacher="t")
    passes = count_passes(recipe)
    assert (passes.no_graph, passes.weights, passes.inputs) == (4, 3, 4)
    assert _flops_of_part(recipe, stages) == passes.no_graph + 3 * passes.weights + 2 * passes.inputs


def test_checkpointing_costs_at_most_another_forward_pass(plan: Plan) -> None:
    assert 1 < plan.checkpointed.flops / plan.plain.flops < 1.35


def test_memory_at_rest_by_hand() -> None:
    full = resting_memory(SIZES, Mode(), average=True)
    assert (full.teacher, full.student, full.fake) == (4096,) * 3
    assert full.average == 4000, "it shares the student's buffers"
    assert (full.optimizer, full.gradients) == (8 * 1000, 4 * 1000)
    assert (full.text_encoders, full.autoencoder, full.gathered) == (8000, 2000, 0)
    lora = resting_memory(SIZES, Mode(adapter="lora", frozen_bytes=2))
    assert (lora.teacher, lora.student, lora.average, lora.optimizer) == (2048, 256, 0, 512)
    assert lora.text_encoders == 4000
    assert lora.total < full.total


@given(st.integers(0, 6).map(lambda power: 2**power))
def test_sharding_divides_what_is_trained_and_nothing_else(gpus: int) -> None:
    one, many = resting_memory(SIZES, Mode()), resting_memory(SIZES, Mode(gpus=gpus))
    assert many.optimizer == pytest.approx(one.optimizer / gpus, abs=4)
    assert many.text_encoders == one.text_encoders
    assert (many.gathered > 0) == (gpus > 1)


@given(st.integers(1, 512), st.integers(1, 64), st.integers(1, 16))
def test_a_batch_is_shared_out_whole(part: int, accumulation: int, gpus: int) -> None:
    recipe = Recipe(teacher="t", batch=part * accumulation, accumulation=accumulation)
    if recipe.batch % gpus:
        with pytest.raises(DistillError, match=f"cannot be divided among {gpus} GPUs"):
            _share(recipe, gpus)
        return
    images, parts = _share(recipe, gpus)
    assert images * parts * gpus == recipe.batch
    assert images <= part


def test_what_fits_needs_no_remedy(plan: Plan) -> None:
    assert remedies(plan, GPUS["H100"]) == []
    assert plan.plain.fits(GPUS["RTX-4090"])


def test_a_cache_of_embeddings_takes_the_text_encoders_away(tiny: Tiny, plan: Plan) -> None:
    """In training; while they encode they are there, without gradients. Iterations have no operations for text."""
    cached = make_plan(recipe_for(tiny("sana"), batch=16, accumulation=2, embedding_cache=True))
    assert plan.plain.memory.text_encoders > 0
    assert cached.plain.memory == replace(plan.plain.memory, text_encoders=0)
    assert cached.plain.stage == plan.plain.stage
    assert 0 < cached.plain.flops < plan.plain.flops
    stages = {name: Stage(1, peak) for name, peak in {"text": 300, **dict.fromkeys(UPDATES, 9000)}.items()}
    recipe = cached.recipe
    large = _estimate(recipe, SIZES, Mode(), 1, stages)
    assert (large.stage, large.memory.text_encoders) == ("fake_forward", 0)
    reading = _estimate(recipe, replace(SIZES, text_encoders=9000), Mode(), 1, stages)
    assert (reading.stage, reading.memory.text_encoders, reading.memory.gradients) == ("text", 36_000, 0)


def test_a_cache_of_embeddings_is_a_remedy_where_there_is_none_yet(plan: Plan) -> None:
    resting = plan.plain.memory.total - plan.plain.memory.activations
    text = plan.plain.memory.text_encoders
    gpu = Gpu("just too small", (resting + GIB * 10 + 2 * GIB - text // 2) / GIB, 1e12, 1e12)
    assert "embedding cache: about 12 GiB" in remedies(heavy(plan, 10), gpu)
    having = replace(plan, recipe=plan.recipe.model_copy(update={"embedding_cache": True}))
    assert not any("embedding" in line for line in remedies(heavy(having, 10), gpu))


def test_a_device_that_holds_it_without_text_encoders_is_not_refused(tiny: Tiny) -> None:
    recipe = recipe_for(tiny("sana"))
    with_cache = recipe.model_copy(update={"embedding_cache": True})
    memory = resting_memory(make_plan(recipe).sizes, Mode())
    enough = memory.total - memory.text_encoders
    refuse_if_too_small(with_cache, enough, "cuda")
    for wanted, available in ((recipe, enough), (with_cache, enough - 1)):
        with pytest.raises(DistillError, match="before the first image"):
            refuse_if_too_small(wanted, available, "cuda")


def heavy(plan: Plan, gib: float) -> Plan:
    """The same with `gib` of activations, a tenth of it with checkpointing, at the generator's loss."""

    def with_activations(estimate: Estimate, size: float) -> Estimate:
        memory = replace(estimate.memory, activations=round(size * GIB))
        return replace(estimate, memory=memory, stage="generator_forward")

    plain, checkpointed = with_activations(plan.plain, gib), with_activations(plan.checkpointed, gib / 10)
    return replace(plan, plain=plain, checkpointed=checkpointed)


def test_remedies_are_named_when_it_does_not_fit(plan: Plan) -> None:
    said = remedies(heavy(plan, 100), GPUS["H100"])
    assert said[0] == "activation checkpointing: about 12 GiB"
    assert said[1] == "activation checkpointing and embedding cache: about 12 GiB"
    assert said[2].startswith("accumulation 16 (one image at a time): about 15 GiB")
    assert any(line.startswith("adapter lora, activation checkpointing") for line in said)
    assert sum("GPUs" in line for line in said) == 1, "the fewest that do"
    assert not any(line.startswith("adapter lora: ") for line in said), "which does not save activations"
    assert remedies(heavy(plan, 100), Gpu("none", 1, 1e12, 1e12)) == []


def test_time_is_operations_over_the_used_rate(plan: Plan) -> None:
    gpu = GPUS["H100"]
    assert plan.seconds(plan.plain, gpu) == pytest.approx(plan.plain.flops / (gpu.float32 * 0.4))
    assert gpu.rate("bfloat16") > gpu.rate("float32")


def test_a_device_that_is_certainly_too_small_is_refused_before_loading(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for(tiny("sana"), iterations=1)

    class Small:
        name, total_memory = "a small one", 1000

    def never(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Small)
    monkeypatch.setattr(distillation, "load_pipeline", never)
    with pytest.raises(DistillError, match=r"cuda \(a small one\) has 0.0 GiB, but weights, gradients"):
        distill(recipe, tmp_path / "s", device="cuda")
    assert not (tmp_path / "s").exists()
    refuse_if_too_small(recipe, 80 * GIB, "cuda")


def test_what_is_not_known_here_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DistillError, match=r"the configuration of someone/model is not known here: fetch it"):
        outline("someone/model")
    with pytest.raises(DistillError, match="no model 'nowhere'"):
        outline("nowhere")
