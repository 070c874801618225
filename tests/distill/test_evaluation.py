"""Evaluation: exact where the pictures are known, the same scenes for every model, a readable table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from distill import evaluation
from distill.evaluation import BATCH, evaluate, evaluate_seeds, markdown_table
from distill.shapes.judge import read
from distill.shapes.render import Images, render, render_all
from distill.shapes.scenes import ATTRIBUTES, BACKGROUNDS, Scene, SceneSet, parse_caption

COUNT = 100


class Draughtsman:
    """Renders what it is asked for, but changes the scene of each prompt in `wrong` first."""

    def __init__(self, wrong: Sequence[int] = ()) -> None:
        self.wrong = set(wrong)
        self.prompts: list[str] = []
        self.seeds: list[int] = []
        self.batches: list[int] = []

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> Images:
        drawn = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            scene = parse_caption(prompt)
            number = len(self.prompts)
            self.prompts.append(prompt)
            self.seeds.append(seed)
            shown = other_background(scene) if number in self.wrong else scene
            drawn.append(render(shown, np.random.default_rng(seed)))
        self.batches.append(len(drawn))
        return np.stack(drawn)


def other_background(scene: Scene) -> Scene:
    following = BACKGROUNDS[(BACKGROUNDS.index(scene.background) + 1) % len(BACKGROUNDS)]
    return Scene(scene.first, following, scene.relation, scene.second)


@pytest.fixture(scope="module")
def features() -> dict[str, np.ndarray]:
    """Fewer fresh renders to compare with than in earnest."""
    rng = np.random.default_rng(0)
    return {s: read(render_all(SceneSet(s).draw(rng, 300), rng))[0] for s in ("train", "held-out")}


@pytest.fixture(autouse=True)
def _small_reference(features: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_reference", features.__getitem__)


def test_a_perfect_draughtsman_makes_no_mistake() -> None:
    measured = evaluate(Draughtsman(), count=COUNT)
    assert measured["accuracy"] == 1.0
    assert set(measured["attributes"].values()) == {1.0}
    assert measured["images"] == COUNT


def test_accuracy_counts_the_wrong_pictures_exactly() -> None:
    """Pictures with another background are wrong in that attribute and right in all others."""
    measured = evaluate(Draughtsman(wrong=range(0, 35)), count=COUNT)
    assert measured["accuracy"] == pytest.approx(0.65)
    assert measured["attributes"] == dict.fromkeys(ATTRIBUTES, 1.0) | {"background": 0.65}


def test_one_attribute_wrong_makes_a_picture_wrong() -> None:
    all_wrong = evaluate(Draughtsman(wrong=range(COUNT)), count=COUNT)
    assert all_wrong["accuracy"] == 0
    assert all_wrong["attributes"]["first_shape"] == 1


def test_distance_grows_when_pictures_are_alike() -> None:
    def always_the_same(prompts: Sequence[str], seeds: Sequence[int]) -> Images:
        scene = SceneSet("held-out").pairs[0]
        return np.stack([render(scene, np.random.default_rng(seed)) for seed in seeds])

    fair, dull = (evaluate(g, count=COUNT)["frechet_distance"] for g in (Draughtsman(), always_the_same))
    assert dull > 3 * fair > 0


def test_every_model_is_asked_for_the_same_scenes() -> None:
    one, other = Draughtsman(), Draughtsman(wrong=[1, 2])
    evaluate(one, count=COUNT, seed=4, label="one")
    evaluate(other, count=COUNT, seed=4, label="other")
    assert one.prompts == other.prompts
    assert one.seeds == other.seeds


def test_prompts_are_held_out_unless_told_otherwise() -> None:
    held_out, train = Draughtsman(), Draughtsman()
    evaluate(held_out, count=COUNT)
    evaluate(train, split="train", count=COUNT)
    assert all(parse_caption(prompt).held_out for prompt in held_out.prompts)
    assert not any(parse_caption(prompt).held_out for prompt in train.prompts)


def test_seeds_choose_scenes_and_noise() -> None:
    first, second = Draughtsman(), Draughtsman()
    evaluate(first, count=COUNT, seed=0)
    evaluate(second, count=COUNT, seed=3)
    assert first.prompts != second.prompts
    assert first.seeds == list(range(COUNT))
    assert second.seeds == list(range(3_000_000, 3_000_000 + COUNT))


def test_batches_are_bounded_and_none_is_lost() -> None:
    generator = Draughtsman()
    evaluate(generator, count=2 * BATCH + 5)
    assert generator.batches == [BATCH, BATCH, 5]


def test_several_seeds_give_mean_and_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {5: (0.5, 2.0), 6: (0.75, 4.0), 7: (1.0, 3.0)}

    def measured(generator: object, split: str, count: int, seed: int, label: str) -> dict[str, object]:
        accuracy, distance = figures[seed]
        attributes = dict.fromkeys(ATTRIBUTES, accuracy)
        return {"accuracy": accuracy, "frechet_distance": distance, "attributes": attributes}

    monkeypatch.setattr(evaluation, "evaluate", measured)
    summary = evaluate_seeds(Draughtsman(), "train", 10, [5, 6, 7])
    assert summary["accuracy"] == {"mean": 0.75, "spread": 0.5}
    assert summary["frechet_distance"] == {"mean": 3.0, "spread": 2.0}
    assert summary["attributes"]["relation"] == {"mean": 0.75, "spread": 0.5}
    assert (summary["seeds"], summary["images"], summary["split"]) == ([5, 6, 7], 10, "train")


def row(accuracy: float, distance: float) -> dict[str, object]:
    def cell(mean: float) -> dict[str, float]:
        return {"mean": mean, "spread": 0.02}

    attributes = {name: cell(accuracy) for name in ATTRIBUTES}
    return {"accuracy": cell(accuracy), "frechet_distance": cell(distance), "attributes": attributes}


def test_the_table_is_markdown_with_a_row_for_each_model() -> None:
    lines = markdown_table({"teacher": row(0.97, 12.345), "student": row(0.9, 6)}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in cells}) == 1
    assert cells[0][:4] == ["model", "accuracy", "Fréchet distance", "first shape"]
    assert set(cells[1]) == {"---"}
    assert cells[2][:4] == ["teacher", "0.970 ± 0.010", "12.35 ± 0.01", "0.970"]
    assert cells[3][0] == "student"


def test_progress_is_shown_under_the_models_name(capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(Draughtsman(), count=8, label="4 steps")
    assert "evaluating 4 steps 8/8" in capsys.readouterr().err
