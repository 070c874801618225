"""The rows compare what they say, each is done once, and the table is the mean of its runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import presets
from benchmarks.presets import ROWS, command, judge, main, report, train
from distill.evaluation import fresh_renders
from distill.recipe import Recipe, load_recipe
from fewstep.models import Images

KAPPAS = {  # kappa 1, 2, 3 of the fake network; kappa 4 of the teacher
    "teacher-only, 1.5": (1, 1, 1, 1.5),
    "lsg, 1.5": (1.5, 1.5, 1.5, 1.5),
    "zero-cfg": (0, 0, 0, 1),
    "anti-cfg": (-1, -1, -1, 1),
    "no guidance": (1, 1, 1, 1),
    "LoRA, teacher-only, 1.5": (1, 1, 1, 1.5),
    "data-aided, teacher-only, 1.5": (1, 1, 1, 1.5),
    "its control": (1, 1, 1, 1.5),
    "data-aided, zero-cfg": (0, 0, 0, 1),
    "data-aided, anti-cfg": (-1, -1, -1, 1),
    "SD3, teacher-only, 1.25": (1, 1, 1, 1.25),
    "SD3, lsg, 1.25": (1.25, 1.25, 1.25, 1.25),
    "SD3, zero-cfg": (0, 0, 0, 1),
    "SD3, anti-cfg": (-1, -1, -1, 1),
    "SD3, no guidance": (1, 1, 1, 1),
    "FLUX, teacher input 1.25": (1, 1, 1, 1),
    "FLUX, all inputs 1.25": (1, 1, 1, 1),
    "FLUX, zero-cfg": (0, 0, 0, 1),
    "FLUX, anti-cfg": (-1, -1, -1, 1),
    "FLUX, no guidance": (1, 1, 1, 1),
}

INPUTS = {"FLUX, teacher input 1.25": (1.25, 1, 1), "FLUX, all inputs 1.25": (1.25, 1.25, 1)}
"""The guidance input of teacher, fake network and student, where it is not 1 for all."""


def recipe_of(name: str, seed: int = 5) -> Recipe:
    """Of the command as it is typed."""
    program, distill, recipe, option, *changes = command(name, seed)
    assert (program, distill, option) == ("fewstep", "distill", "--set")
    return load_recipe(recipe, changes)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_its_recipe_with_its_guidance(name: str) -> None:
    recipe = recipe_of(name)
    scales = recipe.guidance
    assert (scales.fake_train, scales.fake_outer, scales.fake_inner, scales.teacher) == KAPPAS[name]
    assert (recipe.seed, recipe.iterations, recipe.quality) == (5, 120, None)
    assert recipe.optimizer.schedule == "cosine"  # which ends where the run ends
    assert (recipe.data is not None) == ("aided" in name or name == "its control")
    assert (recipe.adapter is not None) == name.startswith("LoRA")


@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith("FLUX")])
def test_what_the_network_of_flux_is_told(name: str) -> None:
    scales = recipe_of(name).guidance
    assert (scales.teacher_embed, scales.fake_embed, scales.student_embed) == INPUTS.get(name, (1, 1, 1))


@pytest.mark.parametrize("name", ["SD3, teacher-only, 1.25", "FLUX, teacher input 1.25"])
def test_the_first_row_of_a_family_is_its_shipped_recipe(name: str) -> None:
    row, shipped = recipe_of(name).guidance, load_recipe(ROWS[name][0]).guidance
    assert row.model_dump(exclude={"preset"}) == shipped.model_dump(exclude={"preset"})


@pytest.mark.parametrize(
    "first", ["teacher-only, 1.5", "data-aided, teacher-only, 1.5", "SD3, no guidance", "FLUX, no guidance"]
)
def test_rows_of_one_recipe_differ_in_guidance_alone(first: str) -> None:
    others = [name for name in ROWS if ROWS[name][0] == ROWS[first][0] and name != "its control"]
    assert len(others) >= 3
    contents = [recipe_of(name).model_dump(exclude={"guidance"}) for name in others]
    assert all(content == contents[0] for content in contents)


def test_the_control_differs_in_the_weights_of_the_images_alone() -> None:
    aided, control = recipe_of("data-aided, teacher-only, 1.5"), recipe_of("its control")
    without = {"adversarial": {"weight", "discriminator_weight"}}
    assert aided.model_dump(exclude=without) == control.model_dump(exclude=without)  # type: ignore[arg-type]
    assert aided.adversarial.weight > control.adversarial.weight == 0
    assert aided.adversarial.discriminator_weight > control.adversarial.discriminator_weight == 0


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What would have been trained; the figures of a student follow from its folder's name."""
    trained: list[tuple[str, int]] = []

    def training(name: str, seed: int, folder: Path) -> float:
        trained.append((name, seed))
        return 1.6

    def judging(folder: Path, images: int) -> dict[str, dict[str, float]]:
        seed = int(folder.name[-1])
        return {"1": {"accuracy": 0.5 + 0.1 * seed, "frechet_distance": 40.0 - 4 * seed}}

    monkeypatch.setattr(presets, "train", training)
    monkeypatch.setattr(presets, "judge", judging)
    return trained


def start(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["presets", *arguments])
    main()


def test_every_row_of_a_seed_comes_before_the_next_seed_and_none_twice(
    done: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = ["--out", str(tmp_path / "found.json"), "--images", "7"]
    start(monkeypatch, "zero-cfg", "anti-cfg", "--seeds", "0", "1", *where)
    assert done == [("zero-cfg", 0), ("anti-cfg", 0), ("zero-cfg", 1), ("anti-cfg", 1)]
    done.clear()
    start(monkeypatch, "zero-cfg", "its control", "--seeds", "1", "2", *where)
    assert done == [("its control", 1), ("zero-cfg", 2), ("its control", 2)]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["images"] == 7
    assert found["machine"]["torch"]
    assert set(found["rows"]["zero-cfg"]["seeds"]) == {"0", "1", "2"}
    assert found["rows"]["zero-cfg"]["seeds"]["1"]["seconds"] == 2
    assert found["rows"]["its control"]["command"].endswith("seed=SEED")
    assert "| zero-cfg | 3 | 0.600 ± 0.100 | 36.0 ± 4.0 |" in capsys.readouterr().out


def test_a_run_that_fails_leaves_what_was_found_before(
    done: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "found.json"
    start(monkeypatch, "zero-cfg", "--seeds", "0", "--out", str(out))
    before = out.read_text()

    def failing(name: str, seed: int, folder: Path) -> float:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(presets, "train", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        start(monkeypatch, "zero-cfg", "--seeds", "0", "1", "--out", str(out))
    assert out.read_text() == before


def test_an_unknown_row_is_refused_with_those_that_there_are(
    done: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, "zero")
    assert stop.value.code == 2
    assert "no row 'zero'" in (said := capsys.readouterr().err)
    assert "anti-cfg" in said
    assert not done


def test_a_stopped_run_goes_on_from_its_checkpoint_and_one_without_begins_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Sequence[str]] = []

    def running(words: Sequence[str], check: bool, env: dict[str, str]) -> None:
        assert check
        assert env["OMP_NUM_THREADS"] == "1"
        asked.append(words)

    monkeypatch.setattr(presets, "subprocess", SimpleNamespace(run=running))
    (tmp_path / "run" / "checkpoints" / ".000060.half").mkdir(parents=True)
    train("lsg, 1.5", 3, tmp_path)
    (tmp_path / "run" / "checkpoints" / "000060").mkdir()
    train("lsg, 1.5", 3, tmp_path)
    assert ["--resume" in words for words in asked] == [False, True]
    assert "seed=3" in asked[0]
    assert asked[0][1:4] == ["-m", "fewstep", "distill"]


def test_the_judge_sees_each_step_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator that is right in two steps alone."""
    drawn: list[tuple[int, int]] = []

    def draw(prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> Images:
        drawn.append((steps, len(prompts)))
        assert guidance == 1
        pictures = fresh_renders(prompts, seeds)
        return pictures if steps == 2 else 255 - pictures

    monkeypatch.setattr(presets, "open_model", lambda *where: SimpleNamespace(draw=draw))
    found = judge(Path("student"), 6)
    assert drawn == [(steps, 6) for steps in (1, 2, 4) for _ in range(3)]
    assert found["2"]["accuracy"] == 1
    assert found["1"] == found["4"]
    assert found["1"]["accuracy"] < 1
    assert found["1"]["frechet_distance"] > found["2"]["frechet_distance"]


def run_of(accuracy: Sequence[float], distance: Sequence[float]) -> dict[str, Any]:
    figures = zip((1, 2, 4), accuracy, distance)
    return {"steps": {str(n): {"accuracy": a, "frechet_distance": d} for n, a, d in figures}}


def test_the_table_has_means_and_half_the_spread() -> None:
    rows = {
        "a": {"seeds": {"0": run_of((0.8, 0.9, 1.0), (80, 50, 40))}},
        "b": {
            "seeds": {"0": run_of((0.7, 0.9, 1), (90, 50, 30)), "1": run_of((0.8, 0.9, 0.99), (70, 50, 31))}
        },
        "not yet": {"seeds": {}},
    }
    lines = report({"rows": rows}).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| a | 1 | 0.800 ± 0.000 / 0.900 ± 0.000 / 1.000 ± 0.000 | 80.0 ± 0.0 / ")
    assert lines[3] == (
        "| b | 2 | 0.750 ± 0.050 / 0.900 ± 0.000 / 0.995 ± 0.005 | 80.0 ± 10.0 / 50.0 ± 0.0 / 30.5 ± 0.5 |"
    )
