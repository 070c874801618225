"""`generator.json`: round trip, and refusal of what cannot be sampled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from distill.errors import DistillError
from distill.pipeline import SHIPPED
from distill.spec import FILE_NAME, GeneratorSpec, TextSpec
from engines.bundle import SamplerSpec


def example(**changes: object) -> GeneratorSpec:
    fields = {
        "family": "sana",
        "levels": {1: (1.0,), 2: (1.0, 0.5)},
        "text": (TextSpec(max_length=32, lowercase=True),),
        "latent_channels": 8,
        "downsampling": 8,
        "default_size": (64, 32),
        "teacher": "t",
        "teacher_digest": "sha256:0",
    }
    return GeneratorSpec.model_validate({**fields, **changes})


def test_round_trip(tmp_path: Path) -> None:
    example().save(tmp_path)
    assert GeneratorSpec.load(tmp_path) == example()


def test_the_runtimes_read_the_same_settings_from_it() -> None:
    ours = example()
    theirs = SamplerSpec.model_validate(ours.model_dump(mode="json"))
    for name in SamplerSpec.model_fields:
        mine, other = getattr(ours, name), getattr(theirs, name)
        if name == "text":
            mine, other = [t.model_dump() for t in mine], [t.model_dump() for t in other]
        assert mine == other, name
    assert ours.latent_shape() == theirs.latent_shape((64, 32)) == (8, 4, 8)
    assert ours.text[0].apply(" A Cat ") == theirs.text[0].apply(" A Cat ") == "a cat"


def test_euler_goes_with_the_noise_that_x_implies(tmp_path: Path) -> None:
    euler = example(sampler="euler", renoise="ddim")
    euler.save(tmp_path)
    assert GeneratorSpec.load(tmp_path) == euler
    assert SamplerSpec.model_validate(euler.model_dump(mode="json")).sampler == "euler"
    for renoise in ("fresh", "fixed"):
        with pytest.raises(ValidationError, match=f"sampler euler goes with renoise ddim, got {renoise}"):
            example(sampler="euler", renoise=renoise)
    with pytest.raises(ValidationError, match="'sid' or 'euler'"):
        SamplerSpec.model_validate({**example().model_dump(mode="json"), "sampler": "heun"})


def test_files_from_before_the_sampler_was_named_stay_as_they_are() -> None:
    """So the digests of students and bundles do, too."""
    shipped = SHIPPED / "shapes-sana-sid"
    spec = GeneratorSpec.load(shipped)
    assert spec.sampler == "sid"
    assert spec.model_dump(mode="json") == json.loads((shipped / FILE_NAME).read_text())


@pytest.mark.parametrize(
    "levels", [{1: (0.9,)}, {2: (1.0,)}, {2: (1.0, 1.0)}, {2: (1.0, 0.0)}, {5: (1.0, 0.8, 0.6, 0.4, 0.2)}]
)
def test_levels_must_fall_from_one(levels: dict[int, tuple[float, ...]]) -> None:
    with pytest.raises(ValidationError):
        example(levels=levels)


def test_unknown_keys_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="has no generator.json"):
        GeneratorSpec.load(tmp_path)
    content = {**example().model_dump(mode="json"), "colour": "red"}
    (tmp_path / FILE_NAME).write_text(json.dumps(content))
    with pytest.raises(DistillError, match="colour"):
        GeneratorSpec.load(tmp_path)
    (tmp_path / FILE_NAME).write_text("{")
    with pytest.raises(DistillError, match="Invalid JSON"):
        GeneratorSpec.load(tmp_path)


def test_templates_may_hold_braces() -> None:
    spec = TextSpec(max_length=4, template="User {x}: {prompt}")
    assert spec.apply("a {cat}") == "User {x}: a {cat}"
