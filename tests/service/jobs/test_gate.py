"""The gate: every threshold and margin, and what was not measured never passes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.jobs.gate import HIGHER_IS_BETTER, Gate, judge, read_figures

GOOD = {1: {"accuracy": 0.95, "frechet_distance": 45.0}, 4: {"accuracy": 0.99, "frechet_distance": 30.0}}
QUALITY = Path(__file__).parents[3] / "engines/shipped/shapes-sana-sid/bundle.json"


def test_thresholds_hold_at_every_step_count() -> None:
    gate = Gate(at_least={"accuracy": 0.9, "psnr_db": 40}, at_most={"frechet_distance": 50})
    verdict = judge(gate, GOOD, None, psnr_db=55.0)
    assert verdict.passed
    assert len(verdict.checks) == 5
    assert verdict.reasons == []


def test_one_step_count_that_misses_is_enough_and_is_named() -> None:
    verdict = judge(Gate(at_least={"accuracy": 0.97}), GOOD, None, psnr_db=None)
    assert not verdict.passed
    assert verdict.reasons == ["accuracy in 1 step(s) is 0.95, at least 0.97 is needed"]


def test_what_was_not_measured_does_not_pass() -> None:
    verdict = judge(Gate(at_least={"clip_score": 20, "psnr_db": 40}), GOOD, None, psnr_db=None)
    assert verdict.reasons == [
        "clip_score in 1 step(s) was not measured",
        "clip_score in 4 step(s) was not measured",
        "psnr_db was not measured",
    ]
    assert not judge(Gate(at_least={"accuracy": 0.1}), {}, None, None).passed
    nan = judge(Gate(at_most={"frechet_distance": 1e9}), {1: {"frechet_distance": math.nan}}, None, None)
    assert not nan.passed


def test_not_worse_than_the_model_served_now() -> None:
    gate = Gate(worse_by={"accuracy": 0.01, "frechet_distance": 5})
    serving = {4: {"accuracy": 0.995, "frechet_distance": 26.0}, 2: {"accuracy": 1.0}}
    assert judge(gate, GOOD, serving, None).passed
    better = {4: {"accuracy": 0.99, "frechet_distance": 20.0}}
    assert judge(gate, GOOD, better, None).reasons == [
        "frechet_distance in 4 step(s) is 30, at most 25 is needed, the model served now has 20"
    ]
    assert judge(gate, GOOD, None, None).passed, "nothing is served yet"


def test_models_without_a_common_step_count_cannot_be_compared() -> None:
    verdict = judge(Gate(worse_by={"accuracy": 0.5}), GOOD, {2: {"accuracy": 0.1}}, None)
    assert verdict.reasons == ["accuracy was not measured at a step count that both models have"]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"at_least": {"beauty": 1}}, "beauty is no measure; known: accuracy"),
        ({"at_least": {"fid": 1}}, "at_least.fid: less of it is better; use at_most"),
        ({"at_most": {"accuracy": 1}}, "at_most.accuracy: more of it is better; use at_least"),
        ({"worse_by": {"accuracy": -0.1}}, "expected 0 or more"),
        ({"worse_by": {"psnr_db": 1}}, "it is a distance from PyTorch"),
        ({"steps": [9]}, "expected 1 ... 4"),
        ({"images": 1}, "greater than or equal to 2"),
        ({"patience": 1}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_gate_says_what_would_be_right(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words.replace(".", r"\.")):
        Gate.model_validate(wrong)


def test_the_rows_of_evaluate_are_understood() -> None:
    """Those of the shipped bundle, whose card `fewstep evaluate --card` has written."""
    figures = read_figures(json.loads(QUALITY.read_text())["quality"])
    assert sorted(figures) == [1, 2, 4]
    assert figures[4]["accuracy"] == pytest.approx(0.9947)
    fidelity = {"student, 1 step": {"fid": 12.5, "clip_score": {"mean": 30.1, "spread": 0.1}, "protocol": {}}}
    assert read_figures(fidelity) == {1: {"fid": 12.5, "clip_score": 30.1}}
    assert read_figures({"teacher, 28 steps, guidance 2": {"fid": 1.0}}) == {}


measures = st.sampled_from([name for name in HIGHER_IS_BETTER if name != "psnr_db"])
values = st.floats(-1e6, 1e6)


@given(measures, values, values, st.floats(0, 1e6))
def test_a_margin_is_never_tighter_than_being_as_good(
    name: str, value: float, serving: float, margin: float
) -> None:
    gate = Gate(worse_by={name: margin})
    passed = judge(gate, {1: {name: value}}, {1: {name: serving}}, None).passed
    as_good = value >= serving if HIGHER_IS_BETTER[name] else value <= serving
    assert passed or not as_good
    wider = Gate(worse_by={name: margin * 2 + 1})
    assert not passed or judge(wider, {1: {name: value}}, {1: {name: serving}}, None).passed


@given(measures, values, values)
def test_thresholds_are_reached_at_their_bound(name: str, value: float, bound: float) -> None:
    higher = HIGHER_IS_BETTER[name]
    gate = Gate(**{"at_least" if higher else "at_most": {name: bound}})
    assert judge(gate, {1: {name: value}}, None, None).passed == (
        value >= bound if higher else value <= bound
    )
