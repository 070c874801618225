"""Recipes and their words: every setting explains itself, and the documents name real settings."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from distill.errors import DistillError
from distill.recipe import (
    SHIPPED,
    Adversarial,
    Data,
    Guidance,
    NoiseLevels,
    Optimizer,
    Recipe,
    load_recipe,
    shipped_recipes,
)
from distill.sid import WEIGHTINGS
from distill.spec import MAX_STEPS, uniform_levels

ROOT = Path(__file__).parents[2]


def fields_with_words(model: type[BaseModel]) -> set[str]:
    """Fields followed by a docstring of their own."""
    source = ast.parse(Path(inspect.getfile(model)).read_text())
    body = next(n.body for n in source.body if isinstance(n, ast.ClassDef) and n.name == model.__name__)
    found = set()
    for field, following in itertools.pairwise(body):
        words = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and words:
            found.add(field.target.id)
    return found


NEED_NO_WORDS = {
    "adversarial",
    "alpha",
    "beta1",
    "beta2",
    "checkpoint_every",
    "eps",
    "fake_embed",
    "fake_scale",
    "guidance",
    "iterations",
    "lr_fake",
    "lr_generator",
    "mean",
    "noise_levels",
    "optimizer",
    "quality_every",
    "quality_images",
    "renoise",
    "samples_every",
    "save_dtype",
    "seed",
    "std",
    "text",
    "weighting",
}
"""Said by the class they are of, by a comment above, or by a name that is the paper's own."""


@pytest.mark.parametrize("model", [Recipe, Guidance, Data, Adversarial, NoiseLevels, Optimizer])
def test_a_setting_has_words_of_its_own_or_needs_none(model: type[BaseModel]) -> None:
    """A new setting without words fails here."""
    assert set(model.model_fields) - fields_with_words(model) <= NEED_NO_WORDS
    assert model.__doc__


def yaml_blocks(document: Path) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", document.read_text(), re.DOTALL)


@pytest.mark.parametrize("document", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=str)
def test_recipes_in_the_documents_are_valid(document: Path) -> None:
    for block in yaml_blocks(document):
        content = yaml.safe_load(block)
        if "teacher" in content:
            Recipe.model_validate(content)


def test_the_readme_shows_a_recipe() -> None:
    assert any("teacher:" in block for block in yaml_blocks(ROOT / "README.md"))


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_says_what_it_is_and_names_its_teacher(name: str) -> None:
    text = (SHIPPED / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    assert next(iter(yaml.safe_load(text))) == "teacher"


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_survives_being_written_down(name: str, tmp_path: Path) -> None:
    """As a run does with `recipe.yaml`: what comes back is the same recipe, digest and all."""
    recipe = load_recipe(name)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    again = load_recipe(str(path))
    assert again == recipe
    assert again.digest == recipe.digest


@pytest.mark.parametrize("name", sorted(WEIGHTINGS))
def test_every_weighting_can_be_asked_for(name: str) -> None:
    assert Recipe.model_validate({"teacher": "t", "weighting": name}).weighting == name


@given(st.integers(1, MAX_STEPS))
def test_offered_step_counts_use_levels_that_were_trained(steps: int) -> None:
    """A student of N steps offers M only if M's levels are among N's."""
    trained = {round(level, 9) for level in uniform_levels(steps)}
    for row in Recipe(teacher="t", steps=steps).levels.values():
        assert {round(level, 9) for level in row} <= trained


@given(
    st.sampled_from(["batch", "seed", "alpha", "renoise", "ema", "iterations"]),
    st.one_of(st.integers(-5, 5), st.floats(allow_nan=False), st.text(max_size=4), st.none()),
)
def test_any_override_is_taken_or_refused_in_one_line(key: str, value: object) -> None:
    written = yaml.safe_dump(value, allow_unicode=True).removesuffix("...\n").strip()
    try:
        recipe = load_recipe("shapes-sana", [f"{key}={written}"])
    except DistillError as error:
        refusal = str(error)
        assert key in refusal.splitlines()[0] == refusal
    else:
        assert recipe.digest.startswith("sha256:")


def test_a_digest_changes_with_every_setting() -> None:
    base = Recipe(teacher="t")
    changes: dict[str, object] = {
        "teacher": "u",
        "prompts": "p",
        "size": (64, 64),
        "steps": 2,
        "step_counts": (1,),
        "renoise": "ddim",
        "batch": 8,
        "alpha": 0.5,
        "weighting": "1",
        "guidance": {"teacher": 1},
        "noise_levels": {"std": 1},
        "optimizer": {"eps": 1e-6},
        "ema": 0.5,
        "seed": 9,
    }
    changes["weighting"] = next(name for name in WEIGHTINGS if name != base.weighting)
    digests = {Recipe.model_validate({"teacher": "t", key: value}).digest for key, value in changes.items()}
    assert len(digests | {base.digest}) == len(changes) + 1
