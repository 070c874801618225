"""Data-aided runs of the tiny teacher: three stages, what trains whom, resuming, a student as the start."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from distill import flow
from distill.data import load_latents
from distill.distillation import distill
from distill.errors import DistillError
from distill.pipeline import load_pipeline
from distill.recipe import Recipe
from distill.run import Run
from distill.student import new_spec, save_student
from distill.trainer import FAKE, GENERATOR, Trainer

from .conftest import Recipes, events
from .states import part_of, tensors
from .test_roles import recipe_for
from .test_trainer import same, snapshot, stop_after

Tiny = Callable[[str], Path]

FAST = {"optimizer": {"lr_generator": 1e-3, "lr_fake": 1e-3, "schedule": "cosine"}, "save_dtype": "float32"}
STAGES = {"generator_from": 8, "combined_from": 16}  # batches of 4: two iterations each


@pytest.fixture
def aided(recipe: Recipes, tmp_path: Path) -> Recipes:
    """Six iterations, two in each stage, with eight real images."""
    data = {"source": "shapes", "count": 8, "cache": str(tmp_path / "cache")}
    return lambda **changes: recipe(
        **{"iterations": 6, "data": data, "adversarial": STAGES, **FAST, **changes}
    )


def trainer_of(recipe: Recipe, out: Path) -> Trainer:
    teacher = load_pipeline(recipe.teacher)
    data = load_latents(recipe.data, teacher, recipe.size, recipe.batch) if recipe.data else None
    run = Run(out, recipe, new_spec(teacher, recipe))
    return Trainer(recipe, teacher, ["a red circle", "a blue star"], run, data)


def calls_of(module: nn.Module) -> list[Tensor]:
    """The noisy latents of each evaluation, as it comes."""
    heard: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, args: heard.append(args[0].detach()))
    return heard


def test_the_record_shows_the_three_stages(aided: Recipes, tmp_path: Path) -> None:
    lines = events(distill(aided(ema=0.9), tmp_path / "s"))
    assert [event["images"] for event in lines] == [4, 8, 12, 16, 20, 24]
    assert ["loss_generator" in event for event in lines] == [False, False, True, True, True, True]
    assert ["grad_norm_generator" in event for event in lines] == [False, False, True, True, True, True]
    assert ["loss_adversarial" in event for event in lines] == [False] * 4 + [True] * 2
    assert all(event["loss_discriminator"] > 0 for event in lines)
    assert all(event["spread"] > 0 for event in lines)


def test_the_generator_rests_in_the_first_stage(aided: Recipes, tmp_path: Path) -> None:
    rested = distill(aided(iterations=2, adversarial={**STAGES, "generator_from": 8}), tmp_path / "two")
    moved = distill(aided(iterations=3), tmp_path / "three")
    teacher = load_pipeline(aided().teacher).transformer.state_dict()
    assert same(load_pipeline(str(rested)).transformer.state_dict(), teacher)
    assert not same(load_pipeline(str(moved)).transformer.state_dict(), teacher)


def gradients(module: nn.Module) -> Tensor:
    found = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    module.zero_grad()
    return torch.cat(found)


def parts(trainer: Trainer) -> Tensor:
    trainer.state.fake.requires_grad_(False)
    trainer.accumulate(trainer.generator_part, 2, GENERATOR)
    return gradients(trainer.state.generator)


def test_the_second_stage_is_sid_and_the_third_half_of_both(aided: Recipes, tmp_path: Path) -> None:
    """Gradients by stage: g_sid, then (g_sid + lambda g_adversarial) / 2."""
    found = {}
    for name, changes in {
        "sid": {"generator_from": 0},
        "none": {"generator_from": 0, "combined_from": 0, "weight": 0},
        "one": {"generator_from": 0, "combined_from": 0},
        "three": {"generator_from": 0, "combined_from": 0, "weight": 3},
    }.items():
        # Guidance makes teacher and fake network differ at the start.
        guidance = {"preset": "teacher-only", "teacher": 2}
        recipe = aided(adversarial={**STAGES, **changes}, guidance=guidance)
        found[name] = parts(trainer_of(recipe, tmp_path / name))
    torch.testing.assert_close(found["none"], found["sid"] / 2)
    adversarial = found["one"] - found["none"]
    assert adversarial.abs().max() > 0
    torch.testing.assert_close(found["three"] - found["none"], 3 * adversarial, rtol=1e-3, atol=1e-3)


def test_the_second_stage_equals_a_run_without_images(aided: Recipes, tmp_path: Path) -> None:
    aided_one = trainer_of(aided(adversarial={"generator_from": 0}), tmp_path / "a")
    free = trainer_of(aided(data=None, adversarial={}), tmp_path / "b")
    assert aided_one.stage == free.stage == "sid"
    assert torch.equal(parts(aided_one), parts(free))


def test_real_images_share_noise_and_time_with_the_generated(aided: Recipes, tmp_path: Path) -> None:
    trainer = trainer_of(aided(guidance="lsg"), tmp_path / "s")
    assert trainer.data is not None
    draw = trainer.draw(FAKE, 0)
    assert draw.real is not None
    heard, times = calls_of(trainer.state.fake), []
    trainer.state.fake.register_forward_pre_hook(
        lambda _, args, inputs: times.append(inputs["timestep"]), with_kwargs=True
    )
    _, x_g = trainer.fake_part(draw, 1)
    noised, real = heard
    assert torch.equal(noised, torch.cat([flow.add_noise(x_g, draw.eps, draw.t_B)] * 2))
    assert torch.equal(real, flow.add_noise(draw.real.x0, draw.eps, draw.t_B))
    assert torch.equal(times[0], times[1].repeat(2))


def test_real_images_come_with_their_own_captions(aided: Recipes, tmp_path: Path) -> None:
    trainer = trainer_of(aided(), tmp_path / "s")
    assert trainer.data is not None
    draw = trainer.draw(FAKE, 0)
    assert draw.real is not None
    for x0, states in zip(draw.real.x0, draw.real.conditioning["prompt_embeds"]):
        place = next(i for i in range(8) if torch.equal(trainer.data[[i]][0], x0))
        own = trainer.teacher.embed([trainer.data.captions[place]])["prompt_embeds"][0]
        torch.testing.assert_close(states, own)
    assert trainer.draw(GENERATOR, 0).real is None
    assert not torch.equal(draw.real.x0, trainer.draw(FAKE, 1).real.x0)


def test_pooled_text_is_that_of_the_real_images_too(tiny: Tiny, tmp_path: Path) -> None:
    """Stable Diffusion 3 takes text in two places; neither is the generated images'."""
    data = {"source": "shapes", "count": 4, "cache": str(tmp_path / "cache")}
    trainer, seen = (
        trainer_of(recipe_for(tiny("sd3"), data=data, guidance="teacher-only"), tmp_path / "s"),
        [],
    )
    trainer.state.fake.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(inputs["pooled_projections"]), with_kwargs=True
    )
    draw = trainer.draw(FAKE, 0)
    trainer.fake_part(draw, 1)
    assert draw.real is not None
    generated, real = seen
    assert torch.equal(generated, draw.conditioning["pooled_projections"])
    assert torch.equal(real, draw.real.conditioning["pooled_projections"])
    assert not torch.equal(generated, real)


def test_a_data_free_draw_is_what_it_was(aided: Recipes, tmp_path: Path) -> None:
    with_images, without = (
        trainer_of(aided(), tmp_path / "a"),
        trainer_of(aided(data=None, adversarial={}), tmp_path),
    )
    one, other = with_images.draw(FAKE, 0), without.draw(FAKE, 0)
    assert other.real is None
    assert torch.equal(one.eps, other.eps)
    assert torch.equal(one.t_B, other.t_B)


def test_the_discriminator_trains_the_fake_network_only(aided: Recipes, tmp_path: Path) -> None:
    trainer = trainer_of(
        aided(adversarial={**STAGES, "discriminator_weight": 5}, fake_scale=1e-9), tmp_path / "s"
    )
    before = snapshot(trainer.state.generator)
    trainer.accumulate(trainer.fake_part, 1, FAKE)
    assert all(p.grad is None for p in trainer.state.generator.parameters())
    assert gradients(trainer.state.fake).abs().max() > 1e-3, "not of the flow-matching loss"
    assert same(before, trainer.state.generator.state_dict())


def test_the_discriminator_learns_what_is_real(aided: Recipes, tmp_path: Path) -> None:
    """Of one batch by heart; undecided logits cost ln 2."""
    recipe = aided(fake_scale=1e-9, optimizer={"lr_fake": 1e-2}, noise_levels={"mean": -2})
    trainer, told = trainer_of(recipe, tmp_path / "s"), []
    draw = trainer.draw(FAKE, 0)
    for _ in range(20):
        loss, _ = trainer.fake_part(draw, 1)
        loss.total.backward()
        trainer.step(trainer.state.fake, trainer.state.fake_optimizer)
        told.append(loss.total.item() / 512)
    assert told[0] > math.log(2)
    assert told[-1] < 0.5 * math.log(2)


@pytest.mark.parametrize(("preset", "sizes"), [("teacher-only", [4]), ("zero-cfg", [8]), ("lsg", [8])])
def test_one_evaluation_gives_velocity_and_logits(
    aided: Recipes, tmp_path: Path, preset: str, sizes: list[int]
) -> None:
    at_once = {"generator_from": 0, "combined_from": 0}
    trainer = trainer_of(aided(adversarial=at_once, guidance=preset), tmp_path / "s")
    heard = calls_of(trainer.state.fake)
    trainer.generator_part(trainer.draw(GENERATOR, 0), 3)
    assert [len(x) for x in heard] == sizes


def test_without_images_zero_cfg_needs_one_branch(recipe: Recipes, tmp_path: Path) -> None:
    trainer = trainer_of(recipe(guidance="zero-cfg"), tmp_path / "s")
    heard = calls_of(trainer.state.fake)
    trainer.fake_part(trainer.draw(FAKE, 0), 1)
    trainer.generator_part(trainer.draw(GENERATOR, 0), 1)
    assert [len(x) for x in heard] == [4, 4]


@pytest.mark.parametrize("stopped", [1, 3, 5])
def test_a_resumed_run_is_bit_equal_in_every_stage(aided: Recipes, tmp_path: Path, stopped: int) -> None:
    whole, halves, wanted = tmp_path / "whole", tmp_path / "halves", aided(ema=0.9)
    distill(wanted, whole)
    stop_after(halves, wanted, iterations=stopped)
    distill(wanted, halves, resume=True)
    assert same(tensors(whole, 6), tensors(halves, 6))
    figures = ("k", "loss_fake", "loss_discriminator", "loss_generator", "loss_adversarial")
    rows = [[[event.get(name) for name in figures] for event in events(out)] for out in (whole, halves)]
    assert rows[0] == rows[1]


def test_a_run_is_not_resumed_with_other_images(recipe: Recipes, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(np.full((64, 64, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a red circle")
    wanted = recipe(data={"source": str(folder), "cache": str(tmp_path / "cache")}, adversarial=STAGES)
    stop_after(tmp_path / "s", wanted, 2)
    (folder / "3.txt").write_text("a blue star")
    with pytest.raises(DistillError, match="the real images have changed since .*s began"):
        distill(wanted, tmp_path / "s", resume=True)
    (folder / "3.txt").write_text("a red circle")
    assert distill(wanted, tmp_path / "s", resume=True)


def test_bfloat16(aided: Recipes, tmp_path: Path) -> None:
    lines = events(distill(aided(precision="bfloat16"), tmp_path / "s"))
    figures = [value for event in lines for name, value in event.items() if name.startswith(("loss", "grad"))]
    assert torch.tensor(figures).isfinite().all()


@pytest.mark.parametrize("name", ["sd3.5", "flux"])
def test_other_architectures(tiny: Tiny, tmp_path: Path, name: str) -> None:
    data = {"source": "shapes", "count": 4, "cache": str(tmp_path / "cache")}
    at_once = {"generator_from": 0, "combined_from": 0}
    recipe = recipe_for(
        tiny(name), data=data, adversarial=at_once, guidance={"preset": "zero-cfg", "teacher": 2}
    )
    lines = events(distill(recipe, tmp_path / "s"))
    assert all(event["loss_adversarial"] > 0 for event in lines)
    assert all(event["dropped"] == 0 for event in lines)


@pytest.fixture
def student(tiny_teacher: Path, tmp_path: Path) -> Path:
    """Of the tiny teacher, with weights of its own."""
    teacher, out = load_pipeline(str(tiny_teacher)), tmp_path / "start"
    weights = {name: value + 0.01 for name, value in teacher.transformer.state_dict().items()}
    save_student(teacher, weights, new_spec(teacher, Recipe(teacher="t")), out, torch.float32)
    return out


def test_a_student_is_where_the_generator_starts(aided: Recipes, tmp_path: Path, student: Path) -> None:
    """SiD2a: the fake network starts as the teacher, and so does not know the student yet."""
    wanted = aided(init=str(student), iterations=1, ema=0.9, checkpoint_every=1)
    out = distill(wanted, tmp_path / "s")
    state = {name: part_of(out, 1, name) for name in ("generator", "ema", "fake")}
    start = load_pipeline(str(student)).transformer.state_dict()
    for name in ("generator", "ema"):
        assert same(state[name], start), name
    teacher = load_pipeline(wanted.teacher).transformer.state_dict()
    assert all((state["fake"][name] - value).abs().max() < 5e-3 for name, value in teacher.items())


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("teacher", "is a teacher; give a student folder"),
        ("shapes-sana-sid", "shapes-sana-sid has another network than the teacher tiny-sana"),
        ("no-such-student", "no model 'no-such-student'"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    aided: Recipes, tmp_path: Path, start: str, message: str
) -> None:
    init = aided().teacher if start == "teacher" else start
    with pytest.raises(DistillError, match=message):
        distill(aided(init=init), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_too_few_images_are_refused_before_anything_is_written(aided: Recipes, tmp_path: Path) -> None:
    data = {"source": "shapes", "count": 3, "cache": str(tmp_path / "cache")}
    with pytest.raises(DistillError, match="data shapes: 3 pictures, fewer than a batch of 4"):
        distill(aided(data=data), tmp_path / "s")
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "cache").exists()


def test_a_start_is_not_changed_by_the_run(aided: Recipes, tmp_path: Path) -> None:
    teacher = load_pipeline(aided().teacher)
    start = copy.deepcopy(teacher.transformer)
    trainer = Trainer(
        aided(data=None, adversarial={}, iterations=1),
        teacher,
        ["a red circle"],
        Run(tmp_path / "s", aided(), new_spec(teacher, aided())),
        start=start,
    )
    with torch.no_grad():
        next(trainer.state.generator.parameters()).add_(1)
    assert same(start.state_dict(), teacher.transformer.state_dict())


def test_figures_of_all_stages_are_json(aided: Recipes, tmp_path: Path) -> None:
    path = distill(aided(), tmp_path / "s") / "run/events.jsonl"
    assert not any(word in path.read_text() for word in ("NaN", "Infinity", "null"))
