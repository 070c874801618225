"""A pipeline known by its configuration has the shapes of the one that is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distill import hub
from distill.errors import DistillError
from distill.pipeline import load_pipeline
from distill.planning.outline import Outline, Tokenizer, Weightless, outline, published
from distill.recipe import Text

Tiny = Callable[[str], Path]


@pytest.mark.parametrize("name", ["sana", "sana-sprint", "sd3.5", "sd3-without-t5", "flux"])
def test_an_outline_is_like_the_pipeline(tiny: Tiny, name: str) -> None:
    real = load_pipeline(str(tiny(name)))
    conditioning = real.embed(["a star", "a red circle"])
    with Weightless():
        sketch = outline(str(tiny(name)))
        shapes = {key: value.shape for key, value in sketch.embed(["x", "y"]).items()}
    assert shapes == {key: value.shape for key, value in conditioning.items()}
    assert (sketch.family, sketch.text, sketch.time_scale) == (real.family, real.text, real.time_scale)
    assert (sketch.default_size, sketch.latent_shape()) == (real.default_size, real.latent_shape())
    real_weights = {key: value.shape for key, value in real.transformer.state_dict().items()}
    assert {key: value.shape for key, value in sketch.transformer.state_dict().items()} == real_weights


def test_a_student_brings_its_own_specification() -> None:
    with Weightless():
        student = outline("shapes-sana-sid")
    assert student.spec == load_pipeline("shapes-sana-sid").spec


def test_an_instruction_makes_the_encoder_read_more_and_the_network_no_more() -> None:
    teacher = "Efficient-Large-Model/Sana_600M_512px_diffusers"
    with Weightless():
        plain, instructed = outline(teacher), outline(teacher, Text(instruction=True))
        shapes = [each.embed(["x"])["prompt_embeds"].shape for each in (plain, instructed)]
    assert shapes == [(1, 300, 2304)] * 2
    assert instructed.text[0].max_length > plain.text[0].max_length == 300


def test_the_encoders_run_once_for_each_feeding(tiny: Tiny) -> None:
    with Weightless():
        sketch = outline(str(tiny("sana")))
        sketch.embed(["a"] * 3)
        before = dict(sketch.embedded)
        assert isinstance(sketch, Outline)
        sketch.embed(["b"])
    assert sketch.embedded.keys() == before.keys()


def test_numbers_read_from_nothing_are_zero() -> None:
    with Weightless():
        assert int(torch.ones(3).sum()) == 0
        assert torch.ones(2, dtype=torch.long).tolist() == [0, 0]


def test_a_cached_repository_needs_no_network(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny("sana"), tmp_path / "snapshot")
    monkeypatch.setattr(hub, "cached", lambda name: Path(folder))
    with Weightless():
        assert outline("someone/model").folder == Path(folder)
    monkeypatch.setattr(hub, "cached", lambda name: None)
    with pytest.raises(DistillError, match="fetch it with `hf download someone/model"):
        outline("someone/model")


def test_a_damaged_configuration_is_named(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("sana"), tmp_path / "spoilt"))
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_layers": "many"}))
    with Weightless(), pytest.raises(DistillError, match="SanaTransformer2DModel cannot be built of"):
        outline(str(folder))


def test_the_table_of_published_pipelines() -> None:
    assert len(published()) == 8
    assert Tokenizer(77).encode("x" * 40) == range(10)
