"""Recipes: the defaults are the published run, and a wrong file is refused in words."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from distill import flow, sections
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
    stages = recipe.adversarial
    assert (stages.generator_from, stages.combined_from) == (20_000, 40_000)
    assert (stages.weight, stages.discriminator_weight) == (1, 1)
    assert (recipe.data, recipe.init) == (None, None)


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
        ("teacher: t\nguidance: lsd\n", "guidance.preset: Input should be 'lsg', 'teacher-only'"),
        ("teacher: t\nguidance: {preset: [lsg]}\n", "guidance.preset: Input should be 'lsg'"),
        ("teacher: t\nguidance: 4.5\n", "guidance: Input should be a valid dictionary"),
        ("teacher: t\ndata: {sauce: x}\n", "data.source: Field required"),
        (
            "teacher: t\ndata: {source: x, sauce: y}\n",
            "unknown key 'data.sauce'; known: source, count, cache",
        ),
        ("teacher: t\ndata: {source: x, count: 0}\n", "data.count: Input should be greater than 0"),
        ("teacher: t\nadversarial: {weight: 2}\n", "adversarial: needs real images, e.g. data: shapes"),
        (
            "teacher: t\ndata: x\nadversarial: {combined_from: 5}\n",
            "adversarial: combined_from 5 is before generator_from 20000",
        ),
        ("teacher: t\ndata: x\nweighting: sid_legacy\n", "sid_legacy is no function of time"),
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


PRESETS = {  # kappa 1, 2, 3 of the fake network; kappa 4 of the teacher
    "lsg": (4.5, 4.5, 4.5, 4.5),
    "teacher-only": (1, 1, 1, 4),  # c + 3 (c - u)
    "zero-cfg": (0, 0, 0, 1),
    "anti-cfg": (-1, -1, -1, 1),
}


def kappas(recipe: Recipe) -> tuple[float, ...]:
    scales = recipe.guidance
    return scales.fake_train, scales.fake_outer, scales.fake_inner, scales.teacher


@pytest.mark.parametrize("name", PRESETS)
def test_a_guidance_preset_stands_for_four_scales(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, f"teacher: t\nguidance: {name}\n")
    assert kappas(load_recipe(path)) == PRESETS[name]
    assert load_recipe(path).guidance.teacher_embed == 3.5
    for override in (["guidance.teacher=2"], [f"guidance={name}", "guidance.teacher=2"]):
        assert kappas(load_recipe(path, override)) == (*PRESETS[name][:3], 2)
    assert Recipe.model_validate({"teacher": "t", "guidance": {"preset": name}}) == load_recipe(path)


def test_every_preset_is_tested() -> None:
    assert set(PRESETS) == set(sections.PRESETS)


def test_teacher_only_is_self_forcings_scale_of_three() -> None:
    """Which is written c + 3 (c - u) there."""
    u, c = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.25])
    scale = Recipe.model_validate({"teacher": "t", "guidance": "teacher-only"}).guidance.teacher
    assert torch.equal(flow.guided(u, c, scale), c + 3 * (c - u))


def test_scales_beside_a_preset_come_first() -> None:
    wish = {"preset": "zero-cfg", "teacher": 2, "fake_inner": 1}
    assert kappas(Recipe.model_validate({"teacher": "t", "guidance": wish})) == (0, 0, 1, 2)


def test_stages_by_images_seen() -> None:
    stages = Recipe(teacher="t", data={"source": "shapes"}).adversarial
    seen = (0, 19_999, 20_000, 39_999, 40_000, 10**9)
    assert [stages.stage(n) for n in seen] == ["fake", "fake", "sid", "sid", "combined", "combined"]
    at_once = stages.model_copy(update={"generator_from": 0, "combined_from": 0})
    assert at_once.stage(0) == "combined"


def test_data_by_name_and_with_settings(tmp_path: Path) -> None:
    path = write(tmp_path, "teacher: t\ndata: pictures/\n")
    data = load_recipe(path).data
    assert data is not None
    assert (data.source, data.count, data.cache) == ("pictures/", None, None)
    data = load_recipe(path, ["data.count=7", "data.cache=/tmp/c"]).data
    assert data is not None
    assert (data.source, data.count, data.cache) == ("pictures/", 7, Path("/tmp/c"))
    assert load_recipe(path, ["data=null"]).data is None


def test_where_latents_are_kept_is_no_part_of_what_a_run_is() -> None:
    here, there, other = (
        Recipe.model_validate({"teacher": "t", "data": {"source": source, "cache": cache}})
        for source, cache in (("shapes", "a"), ("shapes", "b"), ("pictures", "a"))
    )
    assert here.digest == there.digest != other.digest


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
