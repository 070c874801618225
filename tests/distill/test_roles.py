"""Two iterations of SiD for each architecture; each network is told its own guidance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distill.distillation import distill
from distill.pipeline import load_pipeline
from distill.recipe import Recipe
from distill.run import Run
from distill.student import new_spec
from distill.trainer import Trainer

from .conftest import TINY, losses

Tiny = Callable[[str], Path]

ROLES = {"teacher_embed": 3.5, "fake_embed": 2.0, "student_embed": 1.5}


def recipe_for(folder: Path, **changes: Any) -> Recipe:
    short = {"iterations": 2, "batch": 2, "samples_every": 2, "quality_every": 2, "checkpoint_every": 2}
    prompts = {"prompts": "shapes:train"}
    return Recipe.model_validate({"teacher": str(folder), **TINY, **prompts, **short, **changes})


@pytest.mark.parametrize("name", ["sana-sprint", "sd3", "sd3.5", "sd3-without-t5", "flux"])
def test_two_iterations(tiny: Tiny, tmp_path: Path, name: str) -> None:
    out = distill(recipe_for(tiny(name), keep="live", guidance={"teacher": 2.0}), tmp_path / "s")
    assert len(losses(out)) == 2
    assert all(torch.isfinite(torch.tensor(row)).all() for row in losses(out))
    teacher, student = load_pipeline(str(tiny(name))), load_pipeline(str(out))
    pairs = zip(teacher.transformer.parameters(), student.transformer.parameters(), strict=True)
    moved = sum(not torch.equal(a.half(), b.half()) for a, b in pairs)
    assert moved > 0.8 * len(list(teacher.transformer.parameters()))


def listen(module: nn.Module) -> list[float]:
    """The guidance of each image of each call of `module`, as it comes."""
    heard: list[float] = []
    module.register_forward_pre_hook(
        lambda module, args, inputs: heard.extend(inputs["guidance"].tolist()), with_kwargs=True
    )
    return heard


@pytest.mark.parametrize("cfg", [1.0, 4.5])
def test_each_network_of_flux_is_told_its_own_guidance(tiny: Tiny, tmp_path: Path, cfg: float) -> None:
    scales = {"teacher": cfg, "fake_train": cfg, "fake_outer": cfg, "fake_inner": 1.0}
    recipe = recipe_for(tiny("flux"), guidance={**scales, **ROLES})
    teacher = load_pipeline(recipe.teacher)
    run = Run(tmp_path / "s", recipe, new_spec(teacher, recipe))
    trainer = Trainer(recipe, teacher, ["a red circle", "a star"], run)
    heard = {
        "teacher": listen(teacher.transformer),
        "fake": listen(trainer.state.fake),
        "student": listen(trainer.state.generator),
    }
    for phase, part in ((1, trainer.fake_part), (2, trainer.generator_part)):
        part(trainer.draw(phase, 0), 2)
    trainer.sample(["a star"], [0], 1)
    branches = 1 if cfg == 1 else 2
    batch = recipe.batch
    inner = 0 if cfg == 1 else batch  # kappa 3 differs from kappa 2: another evaluation, of one branch
    assert heard["teacher"] == [3.5] * (branches * batch)
    assert heard["fake"] == [2.0] * (2 * branches * batch + inner)
    assert heard["student"] == [1.5] * (2 * 2 * batch + 1)


def test_both_branches_of_flux_differ_in_the_prompt_only(tiny: Tiny, tmp_path: Path) -> None:
    recipe = recipe_for(tiny("flux"), guidance=ROLES)
    teacher = load_pipeline(recipe.teacher)
    trainer = Trainer(recipe, teacher, ["a"], Run(tmp_path / "s", recipe, new_spec(teacher, recipe)))
    draw, seen = trainer.draw(1, 0), []
    teacher.transformer.register_forward_pre_hook(
        lambda module, args, inputs: seen.append(inputs), with_kwargs=True
    )
    trainer.network(teacher.transformer, draw, 4.5, 3.5)(draw.eps, draw.t_B)
    (inputs,) = seen
    u, v = inputs["encoder_hidden_states"].chunk(2)
    assert torch.equal(u, teacher.embed(["", ""])["prompt_embeds"])
    assert torch.equal(v, teacher.embed(["a", "a"])["prompt_embeds"])
    assert torch.equal(*inputs["hidden_states"].chunk(2))
    assert inputs["guidance"].tolist() == [3.5] * 4
