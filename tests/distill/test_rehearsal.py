"""The rehearsal of an iteration against real ones, and against itself without its short cut."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from distill.planning.outline import Weightless, outline
from distill.planning.plan import Mode, _outline, _setting, _sizes, resting_memory
from distill.planning.rehearsal import Setting, Stage, around, block_kinds, rehearse, runs, shortened
from distill.recipe import Recipe
from distill.shapes.architectures import new_transformer
from tests.tiny import sana

Tiny = Callable[[str], Path]
STATED = 0.03  # docs/plan.md
ROOT = Path(__file__).parents[2]


def recipe_for(folder: Path, **changes: Any) -> Recipe:
    return Recipe.model_validate({"teacher": str(folder), "batch": 16, "iterations": 4, **changes})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "accumulation"), [("sana", 1), ("sd3.5", 2), ("flux", 1)])
def test_the_peak_is_that_of_a_real_iteration(
    tiny: Tiny, tmp_path: Path, name: str, accumulation: int
) -> None:
    recipe = recipe_for(tiny(name), accumulation=accumulation, ema=0.9)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    program = [sys.executable, "-m", "tests.distill.measured", str(tmp_path / "recipe.yaml")]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout)

    part = recipe.model_copy(update={"batch": 16 // accumulation, "accumulation": 1})
    with _outline(recipe) as pipeline:
        stages = rehearse(part, pipeline, Setting(accumulating=accumulation > 1, cuda=False))
        resting = resting_memory(_sizes(pipeline, 1), Mode(), average=True)
    static = resting.total - resting.gradients
    assert static == pytest.approx(measured["resting"], rel=0.001)
    predicted = static + max(stage.peak for stage in stages.values())
    assert measured["peak"] > 1.2 * static, "activations are part of what is compared"
    assert predicted == pytest.approx(measured["peak"], rel=STATED)


@pytest.fixture(scope="module")
def deep(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SANA of five blocks."""
    pipeline = sana()
    torch.manual_seed(0)
    pipeline.register_modules(transformer=new_transformer(width=32, layers=5))
    folder = tmp_path_factory.mktemp("deep")
    pipeline.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        Setting(checkpointing=True, accumulating=True),
        Setting(rank=2, checkpointing=True),
        Setting(cuda=False),
    ],
    ids=["checkpointing", "lora", "cpu"],
)
def test_few_blocks_tell_of_many(deep: Path, setting: Setting) -> None:
    recipe = recipe_for(deep)
    with _outline(recipe) as pipeline:
        short, full = rehearse(recipe, pipeline, setting), rehearse(recipe, pipeline, setting, short=5)
        assert (runs(pipeline.transformer), runs(pipeline.transformer, 5)) == (2, 1)
    assert max(s.peak for s in short.values()) == pytest.approx(max(s.peak for s in full.values()), rel=0.01)
    for name, stage in full.items():
        assert short[name].flops == stage.flops
        assert (short[name].start, short[name].end) == (
            pytest.approx(stage.start, rel=1e-3),
            pytest.approx(stage.end, rel=1e-3),
        )


@pytest.mark.slow
def test_what_each_setting_saves(deep: Path) -> None:
    recipe = recipe_for(deep)
    settings = {"kept": Setting(), "again": Setting(checkpointing=True), "lora": Setting(rank=1)}
    with _outline(recipe) as pipeline:
        stages = {name: rehearse(recipe, pipeline, setting).values() for name, setting in settings.items()}
    peak = {name: max(stage.peak for stage in each) for name, each in stages.items()}
    flops = {name: sum(stage.flops for stage in each) for name, each in stages.items()}
    assert peak["again"] < 0.7 * peak["kept"]
    assert flops["again"] > flops["kept"] > flops["lora"], "blocks run again; no gradients of the base"


def test_the_networks_work_and_the_text_is_read_elsewhere(deep: Path) -> None:
    recipe = recipe_for(deep)
    with _outline(recipe) as pipeline:
        stages = around(recipe, pipeline, Setting())
    assert set(stages) == {"text", "decode"}
    assert all(stage.flops > 0 and stage.above > 0 for stage in stages.values())
    assert all(stage.end < 1e6 for stage in stages.values()), "nothing stays behind"


def test_kinds_of_blocks(tiny: Tiny) -> None:
    with Weightless():
        transformer = outline(str(tiny("sd3.5"))).transformer
        kinds = block_kinds(transformer)
        assert sorted(kinds.values()) == [1, 1], "dual attention in the first, no text behind the last"
        assert len(shortened(transformer, {}).transformer_blocks) == 2
        only = shortened(transformer, {next(iter(kinds)): 0})
        assert len(only.transformer_blocks) == 1
        assert len(transformer.transformer_blocks) == 2


def test_stages_add_up() -> None:
    stage = Stage(10, 1, 5, 2)
    assert stage.peak == 7
    assert stage.plus(Stage(1, 1, 1, 0), 3) == Stage(13, 4, 8, 2)


def test_the_settings_of_a_mode() -> None:
    assert _setting(Mode(), 1) == Setting()
    assert _setting(Mode(checkpointing=True, adapter="lora", rank=8), 2) == Setting(True, 8, True)
    assert _setting(Mode(gpus=2), 1).accumulating
