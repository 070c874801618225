"""A whole distillation: which student is kept, and a record that other programs can read."""

from __future__ import annotations

import copy
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill import distillation
from distill.distillation import _shapes_quality, distill
from distill.errors import RunFailed
from distill.evaluation import evaluate
from distill.pipeline import load_pipeline
from distill.recipe import Recipe, load_recipe
from distill.run import SAMPLE_PROMPTS, Run, Training, fixed_prompts
from distill.spec import GeneratorSpec
from distill.student import new_spec
from distill.trainer import Trainer

from .conftest import TINY, Recipes, events
from .states import part_of

FAST = {"optimizer": {"lr_generator": 1e-2, "lr_fake": 1e-2}, "save_dtype": "float32"}


class Scores:
    """A judge that has made up its mind before, and keeps the weights that it was shown."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.shown = list(scores), []

    def __call__(self, training: Training) -> dict[str, Any]:
        self.shown.append(copy.deepcopy(training.student.state_dict()))
        return {"score": self.scores[len(self.shown) - 1], "accuracy_4": 0.5}


@pytest.fixture
def judged(recipe: Recipes, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scores]:
    """Runs a distillation under a judge with the scores given, one at every iteration."""

    def run(out: Path, *scores: float, **changes: Any) -> Scores:
        judge = Scores(*scores)
        monkeypatch.setattr(distillation, "_quality", lambda _: judge)
        wanted = {**FAST, "iterations": len(scores), "quality_every": 1, **changes}
        distill(recipe(**wanted), out)
        return judge

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_pipeline(str(folder)).transformer.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("scores", "best"), [((3, 1, 2), 1), ((1, 2, 3), 0), ((3, 2, 1), 2), ((2, 2, 2), 0)])
def test_the_student_is_the_one_with_the_lowest_score(
    judged: Callable[..., Scores], tmp_path: Path, scores: tuple[float, ...], best: int
) -> None:
    judge = judged(tmp_path / "s", *scores)
    assert same(weights(tmp_path / "s"), judge.shown[best])
    assert not same(judge.shown[0], judge.shown[1])
    assert json.loads((tmp_path / "s" / "quality.json").read_text())["score"] == scores[best]


def test_a_score_that_is_no_number_is_never_the_best(judged: Callable[..., Scores], tmp_path: Path) -> None:
    judge = judged(tmp_path / "s", 2.0, float("nan"), 3.0)
    assert same(weights(tmp_path / "s"), judge.shown[0])


def test_without_a_judge_the_last_student_is_kept(recipe: Recipes, tmp_path: Path) -> None:
    out = distill(recipe(**FAST), tmp_path / "s")
    assert same(weights(out), part_of(out, 4, "generator"))
    assert not (out / "quality.json").exists()


@pytest.mark.parametrize(
    ("keep", "student", "live"),
    [(None, "ema", False), ("ema", "ema", False), ("live", "generator", False), ("both", "ema", True)],
)
def test_which_weights_are_kept(
    recipe: Recipes, tmp_path: Path, keep: str | None, student: str, live: bool
) -> None:
    out = distill(recipe(**FAST, ema=0.9, keep=keep), tmp_path / "s")
    assert same(weights(out), part_of(out, 4, student))
    assert not same(part_of(out, 4, "ema"), part_of(out, 4, "generator"))
    assert (out / "run/live").is_dir() == live
    if live:
        assert same(weights(out / "run/live"), part_of(out, 4, "generator"))


def test_a_run_that_fails_before_its_first_check_keeps_nothing(
    recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Trainer, _: object) -> None:
        raise RunFailed("the loss is NaN")

    monkeypatch.setattr(Trainer, "check", fail)
    with pytest.raises(RunFailed, match="the loss is NaN; there is no checkpoint yet, so no student is kept"):
        distill(recipe(), tmp_path / "s")
    assert not (tmp_path / "s" / "generator.json").exists()


def test_the_score_is_mean_error_times_mean_distance(
    recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([(0.5, 4.0), (0.75, 2.0), (1.0, 3.0)])

    def measured(*_: object, **__: object) -> dict[str, float]:
        accuracy, distance = next(figures)
        return {"accuracy": accuracy, "frechet_distance": distance}

    wanted = recipe()
    teacher = load_pipeline(wanted.teacher)
    run = Run(tmp_path / "s", wanted, new_spec(teacher, wanted))
    monkeypatch.setattr(distillation, "evaluate", measured)
    got = _shapes_quality(Trainer(wanted, teacher, ["a"], run))
    assert got["score"] == pytest.approx((0.25 + 0.01) * 3)
    assert [got[f"accuracy_{steps}"] for steps in (1, 2, 4)] == [0.5, 0.75, 1.0]
    assert [got[f"frechet_{steps}"] for steps in (1, 2, 4)] == [4, 2, 3]


def test_the_curve_is_what_evaluate_says_of_the_student(recipe: Recipes, tmp_path: Path) -> None:
    """The card of a student and a later evaluation of its folder agree."""
    wanted = recipe(quality="shapes", quality_every=4, save_dtype="float32")
    out = distill(wanted, tmp_path / "s")
    card = json.loads((out / "quality.json").read_text())
    pipeline = load_pipeline(str(out))

    from distill.pictures import to_images
    from distill.sampler import sample_student

    again = evaluate(lambda p, s: to_images(sample_student(pipeline, p, s, 4)), count=wanted.quality_images)
    assert card["accuracy_4"] == pytest.approx(again["accuracy"], abs=1e-4)
    assert card["frechet_4"] == pytest.approx(again["frechet_distance"], rel=1e-3)


@pytest.fixture(scope="module")
def record(tiny_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a quality curve."""
    recipe = Recipe.model_validate({"teacher": str(tiny_teacher), **TINY, "quality": "shapes", "ema": 0.9})
    return distill(recipe, tmp_path_factory.mktemp("run") / "student")


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_every_line_of_the_record_is_strict_json(record: Path) -> None:
    lines = (record / "run/events.jsonl").read_text().splitlines()
    parsed = [json.loads(line, parse_constant=no_constant) for line in lines]
    assert [event["type"] for event in parsed] == [
        "iteration", "iteration", "quality", "iteration", "iteration", "quality",
    ]  # fmt: skip
    assert [event["iteration"] for event in parsed] == [1, 2, 2, 3, 4, 4]


def test_events_have_the_promised_keys(record: Path) -> None:
    common = {"type", "iteration", "images"}
    for event in events(record):
        assert set(event) == common | {
            "k", "loss_fake", "loss_generator", "grad_norm_fake", "grad_norm_generator",
            "spread", "dropped", "images_per_second", "eta_seconds",
        }  # fmt: skip
        assert 1 <= event["k"] <= 4
        assert event["images_per_second"] > 0
    for event in events(record, "quality"):
        figures = {f"{name}_{steps}" for name in ("accuracy", "frechet") for steps in (1, 2, 4)}
        assert set(event) == common | {"score"} | figures


def test_the_estimate_ends_at_zero(record: Path) -> None:
    left = [event["eta_seconds"] for event in events(record)]
    assert left[-1] == 0
    assert all(seconds > 0 for seconds in left[:-1])


def test_tensorboard_reads_the_same_curves(record: Path) -> None:
    curves = EventAccumulator(str(record / "run/tensorboard"))
    curves.Reload()
    tags = set(curves.Tags()["scalars"])
    assert {"train/loss_fake", "train/loss_generator", "train/spread", "quality/score"} <= tags
    written = [(event["iteration"], event["loss_fake"]) for event in events(record)]
    drawn = [(scalar.step, scalar.value) for scalar in curves.Scalars("train/loss_fake")]
    assert drawn == [(step, pytest.approx(value, rel=1e-6)) for step, value in written]
    for event in events(record):
        by_step = {s.step: s.value for s in curves.Scalars(f"loss_generator/k={event['k']}")}
        assert by_step[event["iteration"]] == pytest.approx(event["loss_generator"], rel=1e-6)


def test_the_resolved_recipe_is_kept_and_names_the_student(record: Path) -> None:
    written = load_recipe(str(record / "run/recipe.yaml"))
    assert written.digest == GeneratorSpec.load(record).recipe_digest
    assert set(yaml.safe_load((record / "run/recipe.yaml").read_text())) == set(Recipe.model_fields)


def test_the_best_student_is_a_folder_of_its_own(record: Path) -> None:
    assert same(weights(record / "run/best"), weights(record))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_gives_the_signals_back(recipe: Recipes, tmp_path: Path, number: int) -> None:
    before = signal.getsignal(number)
    wanted = recipe()
    run = Run(tmp_path / "s", wanted, new_spec(load_pipeline(wanted.teacher), wanted))
    run.prepare(resume=False)
    with pytest.raises(ZeroDivisionError), run.recording(0):
        assert signal.getsignal(number) is not before
        signal.raise_signal(number)
        assert run.stopping
        raise ZeroDivisionError
    assert signal.getsignal(number) is before
    assert run.events.closed


@given(st.lists(st.text(), min_size=1, max_size=100))
def test_sample_prompts_are_a_few_of_the_set_spread_over_it(prompts: list[str]) -> None:
    chosen = fixed_prompts(prompts)
    assert chosen == fixed_prompts(list(prompts))
    assert len(chosen) == min(SAMPLE_PROMPTS, len(prompts))
    places = iter(prompts)
    assert all(prompt in places for prompt in chosen), "in the order of the set"
