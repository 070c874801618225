"""`make demo`: the whole line once, what it leaves behind and what it says; and the rows of `evaluate`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill.errors import Interrupted, RunFailed
from distill.recipe import load_recipe
from distill.shapes.scenes import parse_caption
from engines.store import find_bundle
from fewstep import demo
from fewstep.cli import main
from fewstep.models import Model


@pytest.fixture
def recipe(tiny_teacher: Path, tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"teacher: {tiny_teacher}\niterations: 1\nbatch: 2\n")
    return str(path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Measures few pictures, and takes the export's word; the export has tests of its own."""
    exported: list[Path] = []

    def export(student: Path, out: Path) -> SimpleNamespace:
        assert (student / "generator.json").is_file()
        exported.append(student)
        psnr = [SimpleNamespace(psnr_db=value) for value in (None, 61.24, 99.0)]
        certificate = SimpleNamespace(measurements=psnr)
        manifest = SimpleNamespace(certificate=certificate)
        return SimpleNamespace(path=out, manifest=manifest, digest="sha256:" + "0" * 64)

    monkeypatch.setattr(demo, "PICTURES", 4)
    monkeypatch.setattr(demo, "export_student", export)
    yield exported
    assert len(exported) <= 1


def test_the_line_leaves_a_student_and_a_picture_of_five_rows(
    recipe: str, quick: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    (out / "student" / "run").mkdir(parents=True)
    (out / "bundle").mkdir()
    (out / "of-the-user").mkdir()
    demo.run(recipe, out)
    assert quick == [out / "student"]
    assert (out / "of-the-user").exists()
    assert not (out / "bundle").exists()
    with Image.open(out / "before-after.png") as picture:
        assert picture.size == (2 * (len(demo.PROMPTS) * 66 + 2), 2 * (5 * 66 + 2))
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("distilled 1 iterations of 2 images in ")
    assert "within 61.2 dB of PyTorch" in said[1]
    assert [line.split(":")[0] for line in said[-5:]] == [
        "teacher, 28 steps",
        "student at its start, 1 step",
        "student now, 1 step",
        "student at its start, 4 steps",
        "student now, 4 steps",
    ]
    assert all("of 4 held-out prompts right in every attribute" in line for line in said[-5:])


def test_rows_have_the_same_prompts_and_seeds(tmp_path: Path) -> None:
    asked: list[tuple[list[str], list[int]]] = []

    def generator(prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        asked.append((list(prompts), list(seeds)))
        return np.zeros((len(prompts), 8, 8, 3), np.uint8)

    demo.draw_rows(dict.fromkeys("abc", generator), tmp_path / "rows.png")
    assert asked == [(list(demo.PROMPTS), list(range(len(demo.PROMPTS))))] * 3


@pytest.mark.parametrize("prompt", demo.PROMPTS)
def test_prompts_of_the_demo_can_be_judged_by_eye(prompt: str) -> None:
    assert parse_caption(prompt).caption == prompt


def test_the_recipe_of_the_demo_is_short_enough_for_two_cores() -> None:
    recipe = load_recipe("shapes-sana-demo")
    assert recipe.teacher == "shapes-sana"
    assert recipe.iterations * recipe.batch <= 5000
    assert recipe.quality is None, "a quality curve would take longer than the training"


def test_the_demo_ends_as_the_server_of_the_shipped_student(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    order: list[Any] = []
    monkeypatch.setattr(demo, "run", lambda recipe, out: order.append((recipe, out)))
    monkeypatch.setattr(demo.os, "execv", lambda program, command: order.append((program, command)))
    monkeypatch.setattr(sys, "argv", ["demo", "--port", "8123", "--out", str(tmp_path)])
    demo.main()
    serve = [sys.executable, "-m", "fewstep", "serve", "--port", "8123"]
    assert order == [("shapes-sana-demo", tmp_path), (sys.executable, serve)]


@pytest.mark.parametrize(
    ("error", "code"), [(Interrupted("stopped at 3"), 130), (RunFailed("NaN"), 1), (OSError(28, "full"), 1)]
)
def test_a_demo_that_does_not_end_well_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(demo, "run", fail)
    monkeypatch.setattr(sys, "argv", ["demo"])
    assert demo.main() == code
    assert capsys.readouterr().err == f"fewstep demo: {error}\n"


def test_a_picture_of_a_given_student_trains_and_serves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[tuple[str, Path]] = []
    monkeypatch.setattr(demo, "run", lambda *_: pytest.fail("trains"))
    monkeypatch.setattr(demo.os, "execv", lambda *_: pytest.fail("serves"))
    monkeypatch.setattr(demo, "compare", lambda recipe, student, out: seen.append((student, out)))
    arguments = ["demo", "--picture-of", "shapes-sana-sid", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    demo.main()
    assert seen == [("shapes-sana-sid", tmp_path)]


class Draws:
    """Stands in for loaded models, and keeps what they were asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, float]] = []

    def open(self, name: str, device: str | None = None, few_step: bool = False) -> Model:
        kind = "teacher" if name == "teacher" else "student"
        counts = () if kind == "teacher" else (1, 2, 4)

        def draw(prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> np.ndarray:
            self.asked.append((name, steps, guidance))
            return np.zeros((len(prompts), 64, 64, 3), np.uint8)

        return Model(kind, Path(name), counts, draw, lambda: "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["student"], [("student", 1, 1.0), ("student", 2, 1.0), ("student", 4, 1.0)]),
        (["student", "--steps", "2"], [("student", 2, 1.0)]),
        (["teacher"], [("teacher", 28, 1.0)]),
        (
            ["teacher", "--steps", "4,28", "--guidance", "1,2.5"],
            [("teacher", 4, 1.0), ("teacher", 4, 2.5), ("teacher", 28, 1.0), ("teacher", 28, 2.5)],
        ),
        (
            ["student", "--steps", "4", "--reference", "teacher", "--guidance", "2"],
            [("teacher", 28, 2.0), ("student", 4, 1.0)],
        ),
    ],
)
def test_evaluate_measures_a_row_for_every_setting(
    arguments: list[str],
    expected: list[tuple[str, int, float]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    draws = Draws()
    monkeypatch.setattr("fewstep.evaluate.open_model", draws.open)
    assert main(["evaluate", *arguments, "--images", "2", "--seeds", "0", "--json"]) == 0
    assert draws.asked == expected
    rows = json.loads(capsys.readouterr().out)
    assert [label.split(",")[0] for label in rows] == [name for name, _, _ in expected]
    assert len(rows) == len(expected), "no row hides another"
    for label, (name, steps, guidance) in zip(rows, expected, strict=True):
        assert f", {steps} step" in label
        assert (f"guidance {guidance:g}" in label) == (name == "teacher")


def test_evaluate_prints_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(find_bundle("shapes-sana-sid"))
    assert main(["evaluate", bundle, "--images", "8", "--seeds", "0", "--steps", "4"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("| model | accuracy |")
    assert lines[2].startswith("| shapes-sana-sid, 4 steps | ")


def test_a_grid_from_a_bundle_has_a_picture_for_each_prompt(tmp_path: Path) -> None:
    bundle, out = str(find_bundle("shapes-sana-sid")), tmp_path / "new" / "row.png"
    assert main(["sample", bundle, "a", "b", "c", "--out", str(out), "--zoom", "2"]) == 0
    with Image.open(out) as picture:
        assert picture.size == (2 * (3 * 66 + 2), 2 * 68)


def test_the_seed_is_that_of_the_first_picture(tmp_path: Path) -> None:
    """The second picture of seed 4 is the first one of seed 5."""
    bundle = str(find_bundle("shapes-sana-sid"))
    two, one = tmp_path / "two.png", tmp_path / "one.png"
    assert main(["sample", bundle, "a star", "a star", "--seed", "4", "--out", str(two)]) == 0
    assert main(["sample", bundle, "a star", "--seed", "5", "--out", str(one)]) == 0
    with Image.open(two) as pair, Image.open(one) as single:
        second = pair.crop((68, 2, 132, 66))
        assert second.tobytes() == single.crop((2, 2, 66, 66)).tobytes()
        assert second.tobytes() != pair.crop((2, 2, 66, 66)).tobytes()
