"""How runs end and begin again: refused, failed, out of time, and in parts of one image."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from distill.distillation import distill
from distill.errors import DistillError, RunFailed
from distill.pipeline import load_pipeline
from distill.recipe import Recipe
from distill.trainer import Trainer

from .conftest import Recipes, events


def test_parts_of_one_image_have_a_spread_together(recipe: Recipes, tmp_path: Path) -> None:
    distill(recipe(batch=2, accumulation=2, iterations=2), tmp_path / "s")
    assert all(event["spread"] > 0 for event in events(tmp_path / "s"))


def test_a_batch_of_one_image_cannot_collapse(recipe: Recipes, tmp_path: Path) -> None:
    distill(recipe(batch=1, iterations=2), tmp_path / "s")
    assert [event["spread"] for event in events(tmp_path / "s")] == [0, 0]


def test_a_refused_resume_leaves_the_run_as_it_was(recipe: Recipes, tmp_path: Path) -> None:
    out, kept = tmp_path / "s", recipe(iterations=2)
    distill(kept, out)
    before = (out / "run" / "recipe.yaml").read_text()
    own = re.escape(str(out / "run" / "recipe.yaml"))
    differs = f"of another recipe, which differs in iterations, optimizer; resume with {own}$"
    with pytest.raises(DistillError, match=differs):
        distill(recipe(iterations=3, optimizer={"lr_fake": 1e-3}), out, resume=True)
    assert (out / "run" / "recipe.yaml").read_text() == before
    assert Recipe.model_validate(yaml.safe_load(before)) == kept


def test_a_refused_run_does_not_stand_in_the_way_of_the_next(recipe: Recipes, tmp_path: Path) -> None:
    out = tmp_path / "s"
    with pytest.raises(DistillError, match="size 65x64"):
        distill(recipe(size=(65, 64)), out)
    assert not out.exists()
    distill(recipe(iterations=1), out)


def test_a_run_that_died_before_its_first_checkpoint_can_be_started_again(
    recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "s"

    def die(self: Trainer) -> None:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Trainer, "_train", die)
        distill(recipe(iterations=2), out)
    with pytest.raises(DistillError, match="nothing to resume"):
        distill(recipe(iterations=2), out, resume=True)
    distill(recipe(iterations=2), out)
    assert len(events(out)) == 2
    with pytest.raises(DistillError, match="already holds a run"):
        distill(recipe(iterations=2), out)


def test_a_folder_that_only_has_the_name_of_a_run_is_left_alone(recipe: Recipes, tmp_path: Path) -> None:
    mine = tmp_path / "s" / "run" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(DistillError, match="already holds a run"):
        distill(recipe(iterations=1), tmp_path / "s")
    assert mine.read_text() == "mine"


def test_a_collapse_leaves_the_student_of_the_newest_checkpoint(
    recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, shown = tmp_path / "s", []
    check = Trainer.check

    def collapse(self: Trainer, *arguments: object) -> None:
        if self.state.iteration == 3:
            raise RunFailed("pictures have collapsed")
        check(self, *arguments)  # type: ignore[arg-type]
        shown.append({name: value.clone() for name, value in self.student.state_dict().items()})

    monkeypatch.setattr(Trainer, "check", collapse)
    wanted = {"iterations": 9, "checkpoint_every": 1, "save_dtype": "float32", "quality": None}
    with pytest.raises(RunFailed, match="collapsed; the student of the newest checkpoint is in"):
        distill(recipe(**wanted), out)
    kept = load_pipeline(str(out)).transformer.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in shown[1].items())


def test_a_run_out_of_time_ends_with_its_student(recipe: Recipes, tmp_path: Path) -> None:
    out = tmp_path / "s"
    distill(recipe(iterations=50, max_minutes=1e-6), out)
    assert [event["iteration"] for event in events(out)] == [1]
    assert load_pipeline(str(out)).spec is not None
    assert list((out / "run" / "samples").glob("*.png"))


def test_the_limit_is_no_part_of_what_a_student_is(recipe: Recipes) -> None:
    assert recipe(max_minutes=3).digest == recipe().digest


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"batch": True}, "batch: expected a number"),
        ({"batch": 4.0}, "batch: expected a whole number"),
        ({"ema": True}, "ema: expected a number"),
        ({"alpha": float("nan")}, "alpha: Input should be a finite number"),
        ({"guidance": {"teacher": float("inf")}}, "guidance.teacher: Input should be a finite number"),
        ({"seed": False}, "seed: expected a number"),
    ],
)
def test_what_only_looks_like_a_number_is_refused(
    wrong: dict[str, object], said: str, tmp_path: Path
) -> None:
    from distill.recipe import load_recipe

    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"teacher": "shapes-sana", **wrong}))
    with pytest.raises(DistillError, match=said):
        load_recipe(str(path))


def test_words_and_switches_are_no_numbers_and_stay_what_they_are(recipe: Recipes) -> None:
    assert recipe(embedding_cache=True).embedding_cache is True
    assert recipe(text={"instruction": False}).text.instruction is False
    assert recipe(alpha=1).alpha == 1
