"""Recipes: the defaults are the published run, and a wrong file is refused in words."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.recipe import Recipe, load_recipe, shipped_recipes


def write(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


def test_defaults_are_the_published_ones() -> None:
    recipe = Recipe(teacher="t")
    assert recipe.steps == 4
    assert recipe.levels[4] == (1, 0.75, 0.5, 0.25)
    kappas = recipe.guidance
    assert (kappas.fake_train, kappas.fake_outer, kappas.fake_inner, kappas.teacher) == (4.5,) * 4
    assert (kappas.teacher_embed, kappas.fake_embed, kappas.student_embed) == (3.5, 1.0, 1.0)
    assert (recipe.text.length, recipe.text.instruction, recipe.time_scale) == (None, False, None)
    assert (recipe.alpha, recipe.weighting, recipe.renoise) == (1.0, "1_minus_sigma", "fresh")
    assert (recipe.optimizer.beta1, recipe.optimizer.beta2) == (0.0, 0.999)
    assert (recipe.generator_scale, recipe.fake_scale, recipe.batch) == (100, 1, 256)
    assert (recipe.noise_levels.mean, recipe.noise_levels.std) == (math.log(2), 1.6)
    assert (recipe.fake_updates, recipe.ema) == (1, None)


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_valid(name: str) -> None:
    assert load_recipe(name).teacher


def test_overrides_reach_inside_and_are_typed(tmp_path: Path) -> None:
    path = write(tmp_path, "teacher: t\n")
    recipe = load_recipe(
        path, ["batch=8", "optimizer.lr_fake=1e-4", "ema=0.9", "guidance.teacher=2", "size=[64, 32]"]
    )
    assert (recipe.batch, recipe.optimizer.lr_fake, recipe.ema) == (8, 1e-4, 0.9)
    assert (recipe.guidance.teacher, recipe.size) == (2, (64, 32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("teacher: t\nbach: 3\n", "unknown key 'bach'; known: teacher, prompts"),
        ("teacher: t\noptimizer: {lr: 1}\n", "unknown key 'optimizer.lr'; known: lr_generator"),
        ("teacher: t\nsteps: 0\n", "steps: Input should be greater than or equal to 1 (got 0)"),
        ("teacher: t\nsteps: 5\n", "steps: Input should be less than or equal to 4 (got 5)"),
        ("teacher: t\nbatch: many\n", "batch: Input should be a valid integer"),
        ("teacher: t\nweighting: snrr\n", "weighting: Input should be '1_minus_sigma'"),
        ("teacher: t\nbatch: 10\naccumulation: 3\n", "accumulation 3 does not divide batch 10"),
        ("teacher: t\nkeep: ema\n", "keep: ema needs ema"),
        ("teacher: t\nstep_counts: [1, 7]\n", "step_counts [7]: expected 1 ... 4"),
        ("teacher: t\nquality_images: 1\n", "quality_images: Input should be greater than or equal to 2"),
        ("batch: 10\n", "teacher: Field required"),
        ("- teacher\n", "expected `key: value` lines, got a list"),
        ("teacher: [\n", "not valid YAML"),
    ],
)
def test_a_bad_recipe_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DistillError) as caught:
        load_recipe(write(tmp_path, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", ["batch", "=3", "teacher.name=x", "teacher=["])
def test_a_bad_override_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(DistillError, match="--set"):
        load_recipe(write(tmp_path, "teacher: t\n"), [override])


def test_a_missing_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(DistillError, match="one of .*shapes-sana"):
        load_recipe("no-such-recipe")


def test_a_binary_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DistillError, match="not valid YAML"):
        load_recipe(str(path))


def test_step_counts_on_offer_divide_the_trained_one() -> None:
    assert sorted(Recipe(teacher="t").levels) == [1, 2, 4]
    assert sorted(Recipe(teacher="t", steps=3).levels) == [1, 3]
    assert sorted(Recipe(teacher="t", step_counts=(1, 3)).levels) == [1, 3]


def test_digest_follows_the_content() -> None:
    assert Recipe(teacher="t").digest == Recipe(teacher="t").digest
    assert Recipe(teacher="t").digest != Recipe(teacher="t", seed=1).digest
