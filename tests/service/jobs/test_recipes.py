"""What the server knows of recipes is what a distillation takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from distill.prompts import load_prompts
from distill.recipe import Recipe, shipped_recipes
from fewstep.jobs.known_recipes import FILE, written
from service.errors import ServiceError
from service.jobs.prompt_files import NAMED_SETS, check_prompts
from service.jobs.recipes import Recipes, allowed, known, merge

TEACHERS = ("shapes-sana", "shapes-sd3", "shapes-flux", "/models/*", "lab/*")
RECIPES = Recipes(TEACHERS, ("shapes", "/pictures/*"))


def test_the_file_is_what_its_command_writes() -> None:
    assert FILE.read_text() == written(), "run python -m fewstep.jobs.known_recipes"


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_can_be_asked_for(name: str) -> None:
    teacher = known()["recipes"][name]["teacher"]
    resolved = Recipes([teacher], ["*"]).resolve(teacher, {"recipe": name})
    made = Recipe.model_validate({"teacher": teacher, **resolved})
    from distill.recipe import load_recipe

    wanted = load_recipe(name)
    assert made == wanted.model_copy(update={"prompts": made.prompts, "seed": made.seed})


def test_without_a_name_it_is_the_teachers_first_or_the_published_run() -> None:
    assert RECIPES.resolve("shapes-sd3", {}) == RECIPES.resolve("shapes-sd3", {"recipe": "shapes-sd3"})
    assert RECIPES.resolve("/models/mine", {"batch": 8}) == {"batch": 8}
    with pytest.raises(ServiceError, match="known: published"):
        RECIPES.resolve("lab/mine", {"recipe": "shapes-sana"})


def test_each_teacher_is_offered_with_the_recipe_that_its_job_has() -> None:
    for teacher, recipe in RECIPES.offered().items():
        made = Recipe.model_validate({"teacher": teacher, **RECIPES.resolve(teacher, {})})
        assert Recipe.model_validate({"teacher": teacher, **recipe}) == made
    assert list(RECIPES.offered()) == ["shapes-sana", "shapes-sd3", "shapes-flux"]


def test_a_pattern_offers_the_shipped_teachers_that_fit_it() -> None:
    offered = Recipes(["mine", "stabilityai/*"], []).offered()
    assert next(iter(offered)) == "mine"
    assert {name.split("/")[0] for name in list(offered)[1:]} == {"stabilityai"}
    assert offered["mine"]["iterations"] == Recipe(teacher="mine").iterations


def test_sections_are_merged_but_for_those_named_anew() -> None:
    base = {"guidance": {"teacher": 1.5, "fake_inner": 1}, "batch": 4}
    assert merge(base, {"guidance": {"teacher": 2}})["guidance"] == {"teacher": 2, "fake_inner": 1}
    assert merge(base, {"guidance": {"preset": "lsg"}}) == {"guidance": {"preset": "lsg"}, "batch": 4}


numbers = st.one_of(st.integers(-3, 70), st.floats(-2, 70, allow_nan=False), st.booleans(), st.none())
words = st.sampled_from(["lsg", "zero-cfg", "shapes", "lora", "cosine", "ema", "fresh", "float32", "x"])
flat = st.dictionaries(
    st.sampled_from(
        ["iterations", "batch", "alpha", "ema", "steps", "step_counts", "keep", "precision", "renoise"]
    ),
    numbers | words | st.lists(st.integers(-1, 5), max_size=3),
    max_size=3,
)
sections = st.fixed_dictionaries(
    {},
    optional={
        "guidance": words | st.dictionaries(st.sampled_from(["preset", "teacher", "fake"]), numbers | words),
        "optimizer": st.dictionaries(st.sampled_from(["lr_fake", "beta1", "schedule"]), numbers | words),
        "adapter": words | st.dictionaries(st.sampled_from(["type", "rank", "save"]), numbers | words),
    },
)


@given(flat, sections)
def test_the_schema_refuses_nothing_that_a_distillation_would_take(one: Any, other: Any) -> None:
    """And what it lets through is refused only for how keys go together."""
    overrides = {**one, **other}
    try:
        Recipe.model_validate({"teacher": "lab/mine", **overrides})
        problem = None
    except ValidationError as error:
        problem = {first["type"] for first in error.errors()}
    try:
        RECIPES.resolve("lab/mine", overrides)
    except ServiceError:
        assert problem is not None, overrides
    else:
        assert problem in (None, {"value_error"}), (overrides, problem)


@pytest.mark.parametrize("name", ["../shapes", "/models/../etc", "/etc", "shapes-sana/..", "LAB/x", ""])
def test_patterns_do_not_let_out(name: str) -> None:
    assert not allowed(name, TEACHERS)


def test_patterns_let_in() -> None:
    assert allowed("/models/a/b", TEACHERS)
    assert allowed("lab/model", TEACHERS)
    assert RECIPES.resolve("shapes-sana", {"data": "/pictures/mine", "init": "shapes-sd3-sid"})["data"] == {
        "source": "/pictures/mine"
    }


@pytest.mark.parametrize("name", NAMED_SETS)
def test_named_sets_are_those_that_a_distillation_knows(name: str) -> None:
    assert load_prompts(name)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@given(prompts=st.lists(st.text(max_size=20), max_size=5))
def test_a_checked_file_is_read_by_a_distillation(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, prompts: list[str]
) -> None:
    lines = [json.dumps({"prompt": prompt}) if suffix == ".jsonl" else prompt for prompt in prompts]
    path: Path = tmp_path_factory.mktemp("prompts") / f"a{suffix}"
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass", newline="")
    try:
        count = check_prompts(path, 1 << 20)
    except ServiceError:
        return
    assert len(load_prompts(str(path))) == count


def test_a_file_that_grew_over_the_bound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\n" * 100)
    with pytest.raises(ServiceError, match="200 bytes; a prompt set has at most 10"):
        check_prompts(tmp_path / "a.txt", 10)
    (tmp_path / "b.jsonl").write_text('{"prompt": "' + "x" * (1 << 20) + '"}')
    with pytest.raises(ServiceError, match="Line 1 is longer"):
        check_prompts(tmp_path / "b.jsonl", 1 << 30)
