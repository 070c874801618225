"""One base, three roles: adapters that share weights, and nothing else, with the teacher."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

from distill import roles, sid
from distill.distillation import distill
from distill.errors import DistillError
from distill.pipeline import Pipeline, load_pipeline
from distill.recipe import Adapter, Recipe, load_recipe
from distill.run import Run
from distill.spec import GeneratorSpec
from distill.state import State, follow, new_state
from distill.student import new_spec
from distill.trainer import Trainer, select

from .conftest import TINY, Recipes, losses
from .states import part_of

Tiny = Callable[[str], Path]
LORA = {"adapter": {"rank": 4}, "optimizer": {"lr_generator": 1e-2, "lr_fake": 1e-2}}
FAMILIES = pytest.mark.parametrize("name", ["sana", "sd3.5", "flux"])


def trainer_of(folder: Path, out: Path, **changes: Any) -> Trainer:
    recipe = Recipe.model_validate({"teacher": str(folder), **TINY, **LORA, **changes})
    teacher = load_pipeline(recipe.teacher)
    return Trainer(recipe, teacher, ["a red circle", "a star"], Run(out, recipe, new_spec(teacher, recipe)))


def disturb(role: nn.Module, seed: int) -> None:
    """Gives a role's adapter, whose second factor starts at zero, something to say."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in roles.trained(role).values():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=source))


def pointers(module: nn.Module) -> set[int]:
    return {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}


def modules(state: State) -> list[nn.Module]:
    return [module for module in (state.generator, state.fake, state.ema) if module is not None]


@FAMILIES
def test_one_copy_of_the_base_is_in_memory(tiny: Tiny, tmp_path: Path, name: str) -> None:
    trainer = trainer_of(tiny(name), tmp_path / "s", ema=0.9)
    base, all_roles = pointers(trainer.teacher.transformer), modules(trainer.state)
    owned = [{p.data_ptr() for p in roles.trained(role).values()} for role in all_roles]
    assert len(all_roles) == 3
    for role, own in zip(all_roles, owned, strict=True):
        assert pointers(role) == base | own
        assert not own & base
    assert len(set.union(*owned)) == sum(map(len, owned))


@FAMILIES
def test_at_the_start_all_roles_are_the_teacher(tiny: Tiny, tmp_path: Path, name: str) -> None:
    """Teacher = fake network = generator, so d = 0 and the generator has nothing to follow."""
    trainer = trainer_of(tiny(name), tmp_path / "s", ema=0.9)
    draw, teacher = trainer.draw(1, 0), trainer.teacher.transformer
    expected = trainer.network(teacher, draw)(draw.eps, draw.t_B)
    for role in modules(trainer.state):
        assert torch.equal(trainer.network(role, draw)(draw.eps, draw.t_B), expected)
    select(update=trainer.state.generator, freeze=trainer.state.fake)
    same_embed = trainer.recipe.guidance.model_copy(update={"teacher_embed": 1.0})
    trainer.recipe = trainer.recipe.model_copy(update={"guidance": same_embed})
    assert trainer.generator_part(draw, 2)[0].total == 0


@FAMILIES
def test_gradients_reach_the_trained_adapter_and_nothing_else(tiny: Tiny, tmp_path: Path, name: str) -> None:
    trainer = trainer_of(tiny(name), tmp_path / "s")
    state, teacher = trainer.state, trainer.teacher.transformer
    base = copy.deepcopy(teacher.state_dict())
    for part, update, freeze, optimizer in [
        (trainer.fake_part, state.fake, state.generator, state.fake_optimizer),
        (trainer.generator_part, state.generator, state.fake, state.generator_optimizer),
    ]:
        disturb(update, 1)
        disturb(freeze, 2)
        before = [copy.deepcopy(roles.weights(role)) for role in (update, freeze)]
        select(update, freeze)
        trainer.accumulate(part, 2, 1)
        own = roles.trained(update)
        assert all(p.grad is not None for p in own.values())
        assert all(p.grad is None for n, p in update.named_parameters() if n not in own)
        assert all(p.grad is None for p in (*freeze.parameters(), *teacher.parameters()))
        trainer.step(update, optimizer)
        assert not all(torch.equal(before[0][n], value) for n, value in roles.weights(update).items())
        assert all(torch.equal(before[1][n], value) for n, value in roles.weights(freeze).items())
    assert base.keys() == teacher.state_dict().keys()
    assert all(torch.equal(base[n], value) for n, value in teacher.state_dict().items())


@pytest.mark.parametrize("checkpointing", [False, True])
@FAMILIES
def test_gradients_are_those_of_three_separate_networks(
    tiny: Tiny, tmp_path: Path, name: str, checkpointing: bool
) -> None:
    """Also those through the inputs of teacher and fake network, and when the backward pass computes
    activations again, after the other roles have run."""
    changes = {"activation_checkpointing": checkpointing, "guidance": {"fake_inner": 2.0}}
    trainer = trainer_of(tiny(name), tmp_path / "s", **changes)
    state = trainer.state
    disturb(state.generator, 1)
    disturb(state.fake, 2)
    plain = {role: plain_copy(trainer.teacher, role) for role in (state.generator, state.fake)}
    select(update=state.generator, freeze=state.fake)
    draw = trainer.draw(2, 0)
    loss, x_g = trainer.generator_part(draw, 1)
    loss.total.backward()

    kappa, shared = trainer.recipe.guidance, load_pipeline(trainer.recipe.teacher).transformer
    generator, fake = plain[state.generator].requires_grad_(True), plain[state.fake]
    again = trainer.network(generator, draw, embed=1.0)
    noise = trainer.draw(2, 0).noise(0)
    expected_x_g = noise - again(noise, torch.ones(len(noise)))
    expected = sid.generator_loss(
        trainer.network(shared, draw, kappa.teacher, kappa.teacher_embed),
        trainer.network(fake, draw, kappa.fake_outer, kappa.fake_embed),
        expected_x_g,
        draw.eps,
        draw.t_B,
        fake_inner=trainer.network(fake, draw, kappa.fake_inner, kappa.fake_embed),
    ).scaled(100.0)
    expected.total.backward()
    torch.testing.assert_close(x_g, expected_x_g.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss.total, expected.total, rtol=1e-3, atol=1e-2)
    whole = dict(generator.named_parameters())
    for layer, (a, b) in factors(state.generator).items():
        w = whole[f"{layer}.weight"].grad
        assert w is not None
        wanted = w.flatten(1) @ a.detach().flatten(1).T
        assert b.grad is not None
        assert (b.grad.flatten(1) - wanted).norm() <= 1e-4 * w.norm() * a.detach().norm(), layer


def plain_copy(teacher: Pipeline, role: nn.Module) -> nn.Module:
    """A transformer without adapters, with the weights that the role stands for."""
    plain: nn.Module = type(teacher.modules.transformer).from_config(teacher.modules.transformer.config)
    plain.load_state_dict(roles.merged(role))
    return plain.eval().requires_grad_(False)


def factors(role: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """A and B of each adapted layer; dL/dB = dL/dW A^T at scale 1."""
    layers = {name: layer for name, layer in role.named_modules() if hasattr(layer, "get_delta_weight")}
    return {
        name: (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        for name, layer in layers.items()
    }


@FAMILIES
def test_every_projection_of_attention_and_feed_forward_is_adapted(tiny: Tiny, name: str) -> None:
    """And nothing outside the blocks, though FLUX calls its last layer `proj_out` as well."""
    teacher = load_pipeline(str(tiny(name)))
    role = roles.new_role(teacher.transformer, Adapter(rank=2), teacher.family.adapted)
    adapted = set(factors(role))
    layers = {
        n for n, m in teacher.transformer.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)
    }  # fmt: skip
    left = {n for n in layers if "blocks." in n and not any(part in n for part in ("norm", "conv_depth"))}
    assert adapted == left
    assert len(adapted) >= 10


def test_both_adapters_start_from_numbers_of_their_own_that_the_seed_repeats(
    recipe: Recipes, tiny_teacher: Path
) -> None:
    teacher = load_pipeline(str(tiny_teacher))

    def first_factors(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(len(seen))
        state = new_state(recipe(**LORA, seed=seed), teacher.transformer, targets=teacher.family.adapted)
        return tuple(
            torch.cat([a.flatten() for a, _ in factors(role).values()])
            for role in (state.generator, state.fake)
        )  # type: ignore[return-value]

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for seed in (0, 0, 1):
        seen.append(first_factors(seed))
    assert torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][1], seen[1][1])
    distinct = [*seen[0], *seen[2]]
    assert not any(torch.equal(a, b) for i, a in enumerate(distinct) for b in distinct[:i])


def test_alpha_scales_the_update(tiny_teacher: Path) -> None:
    teacher = load_pipeline(str(tiny_teacher))
    updates = []
    for adapter in (Adapter(rank=4), Adapter(rank=4, alpha=8), Adapter(rank=4, alpha=4, targets=("to_q",))):
        role = roles.new_role(teacher.transformer, adapter, teacher.family.adapted)
        disturb(role, 3)
        name = "transformer_blocks.0.attn1.to_q.weight"
        updates.append(roles.merged(role)[name] - teacher.transformer.state_dict()[name])
    torch.testing.assert_close(2 * updates[0], updates[1])
    assert {name.rsplit(".", 1)[1] for name in factors(role)} == {"to_q"}


def test_the_average_follows_the_adapter(tiny: Tiny, tmp_path: Path) -> None:
    trainer = trainer_of(tiny("sana"), tmp_path / "s", ema=0.9)
    state, base = trainer.state, copy.deepcopy(trainer.teacher.transformer.state_dict())
    before = copy.deepcopy(roles.weights(state.ema))
    disturb(state.generator, 1)
    follow(state.ema, state.generator, 0.9)
    for name, value in roles.weights(state.ema).items():
        torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * roles.weights(state.generator)[name])
    assert not any(p.requires_grad for p in roles.trained(state.ema).values())
    assert all(torch.equal(base[n], v) for n, v in trainer.teacher.transformer.state_dict().items())


def test_a_resumed_run_is_bit_equal_and_its_checkpoints_hold_adapters_only(
    recipe: Recipes, tmp_path: Path
) -> None:
    from .test_trainer import stop_after

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    wanted = recipe(**LORA, iterations=6, ema=0.9, keep="both")
    distill(wanted, whole)
    stop_after(parts, wanted, iterations=4)
    distill(wanted, parts, resume=True)
    assert losses(parts) == losses(whole)
    for name in ("generator", "fake", "ema"):
        final = part_of(whole, 6, name), part_of(parts, 6, name)
        assert all(torch.equal(final[0][n], value) for n, value in final[1].items())
        assert all(".lora_" in n for n in final[0])
    for folder in ("", "run/live"):
        a, b = (load_pipeline(str(path / folder)).transformer.state_dict() for path in (whole, parts))
        assert all(torch.equal(a[n], b[n]) for n in a)


def test_checkpointing_activations_changes_no_number(recipe: Recipes, tmp_path: Path) -> None:
    for name, changes in {"kept": {}, "again": {"activation_checkpointing": True}}.items():
        for kind, adapter in {"full": {}, "lora": LORA}.items():
            distill(recipe(**adapter, **changes, iterations=3), tmp_path / kind / name)
    for kind in ("full", "lora"):
        assert losses(tmp_path / kind / "kept") == losses(tmp_path / kind / "again")


@FAMILIES
def test_merged_and_loaded_students_draw_the_same_picture(tiny: Tiny, tmp_path: Path, name: str) -> None:
    """Trained twice alike, saved in both ways, drawn by stock diffusers."""
    wanted = {"iterations": 2, "batch": 2, "save_dtype": "float32", "quality_every": 9, "samples_every": 9}
    merged, lora = tmp_path / "merged", tmp_path / "lora"
    for out in (merged, lora):
        adapter = {"rank": 4, "alpha": 8, "save": out.name}
        distill(Recipe.model_validate({**recipe_of(tiny(name)), **wanted, "adapter": adapter}), out)
    family = load_pipeline(str(tiny(name))).family
    assert not (lora / "transformer").exists()
    assert GeneratorSpec.load(lora).levels == GeneratorSpec.load(merged).levels
    assert "load_lora_weights" in (lora / "README.md").read_text()

    kind = getattr(diffusers, family.pipeline)
    whole, base, loaded = (kind.from_pretrained(folder) for folder in (merged, tiny(name), tiny(name)))
    loaded.load_lora_weights(lora)
    for pipeline in (base, loaded):
        pipeline.scheduler = diffusers.FlowMatchLCMScheduler(shift=1.0)
    pictures = [draw(pipeline, family.name) for pipeline in (whole, loaded, base)]
    assert np.abs(pictures[0] - pictures[1]).max() < 1e-3
    assert np.abs(pictures[0] - pictures[2]).max() > 0.01


def recipe_of(folder: Path) -> dict[str, Any]:
    rates = {"optimizer": {"lr_generator": 0.05, "lr_fake": 0.05}}
    return {"teacher": str(folder), **TINY, **rates, "guidance": {"teacher": 2.0}}


def draw(pipeline: Any, family: str) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    extra = {"use_resolution_binning": False, "complex_human_instruction": None} if family == "sana" else {}
    size = {"height": 64, "width": 64, "max_sequence_length": 24}
    source = torch.manual_seed(0)  # the stock pipelines of SD3 and FLUX draw later noises from it
    levels = {"sigmas": [1.0, 0.5], "num_inference_steps": 2, "guidance_scale": 1.0}
    return pipeline("a red circle", **levels, **size, **extra, generator=source, output_type="np").images


def test_a_lora_folder_is_no_model_of_its_own(recipe: Recipes, tmp_path: Path) -> None:
    out = distill(recipe(iterations=2, adapter={"rank": 2, "save": "lora"}), tmp_path / "s")
    names = {path.name for path in out.iterdir()}
    assert names == {"pytorch_lora_weights.safetensors", "generator.json", "README.md", "run"}
    with pytest.raises(DistillError, match="holds a LoRA.*adapter.save=merged"):
        load_pipeline(str(out))


def test_a_recipe_names_an_adapter_or_sets_it_up() -> None:
    assert Recipe.model_validate({"teacher": "t", "adapter": "lora"}).adapter == Adapter()
    assert Recipe(teacher="t").adapter is None
    assert load_recipe("shapes-sana-lora", ["adapter.rank=8"]).adapter == Adapter(rank=8)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("adapter=dora", "adapter.type: Input should be 'lora'"),
        ("adapter.rnk=8", "unknown key 'adapter.rnk'; known: type, rank, alpha, targets, save"),
        ("adapter.rank=0", "adapter.rank: Input should be greater than 0"),
    ],
)
def test_bad_adapters_are_refused_in_one_line(override: str, message: str) -> None:
    with pytest.raises(DistillError, match=message):
        load_recipe("shapes-sana-lora", [override])


def test_the_shared_base_is_the_teacher() -> None:
    with pytest.raises(ValueError, match="with an adapter the generator starts as the teacher"):
        Recipe.model_validate({"teacher": "t", "adapter": "lora", "init": "student"})


def test_targets_that_do_not_exist_are_refused_before_anything_is_written(
    recipe: Recipes, tmp_path: Path
) -> None:
    with pytest.raises(DistillError, match="no layer is called to_x; there are ff.conv_depth, .*to_q"):
        distill(recipe(adapter={"targets": ["to_x", "to_q"]}), tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_lora_cannot_carry_a_time_scale(tiny: Tiny, tmp_path: Path) -> None:
    wanted = {**recipe_of(tiny("sana-sprint")), "adapter": {"save": "lora"}}
    with pytest.raises(
        DistillError, match="cannot carry the time scale of a sana-sprint student; use merged"
    ):
        distill(Recipe.model_validate(wanted), tmp_path / "s")
    out = distill(Recipe.model_validate({**wanted, "iterations": 1, "adapter": "lora"}), tmp_path / "s")
    scale = json.loads((out / "transformer" / "config.json").read_text())["timestep_scale"]
    assert scale == pytest.approx(0.001)
