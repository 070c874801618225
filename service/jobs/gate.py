"""The gate before a student is served: figures against thresholds and against what is served now."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

HIGHER_IS_BETTER = {
    "accuracy": True,
    "frechet_distance": False,
    "clip_score": True,
    "clip_cosine": True,
    "fid": False,
    "psnr_db": True,
}
"""What can be asked for. `psnr_db` is the bundle's parity with PyTorch; the others are those of `fewstep evaluate`."""
BY_NETWORKS = ("clip_score", "clip_cosine", "fid")
"""Measured with networks that the settings name."""
STEPS = re.compile(r", (\d+) steps?$")

Figures = Mapping[int, Mapping[str, float]]
"""Step count -> measure -> value."""


class Gate(BaseModel):
    """What a student has to show to be served.

    Attributes:
        steps: Step counts that are measured; by default all that the student offers.
        images, seeds: How many pictures, and which; the model served now draws the same.
        at_least, at_most: Thresholds, e.g. `{"accuracy": 0.95}`, `{"frechet_distance": 60}`; at every step
            count.
        worse_by: By how much it may be worse than the model served now, e.g. `{"accuracy": 0.01}`; 0: not
            at all. Holds if none is served yet.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: tuple[int, ...] = ()
    images: int = Field(default=256, ge=2, le=100_000)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, max_length=16)
    at_least: dict[str, float] = {}
    at_most: dict[str, float] = {}
    worse_by: dict[str, float] = {}

    @model_validator(mode="after")
    def _known(self) -> Gate:
        for name in (*self.at_least, *self.at_most, *self.worse_by):
            if name not in HIGHER_IS_BETTER:
                raise ValueError(f"{name} is no measure; known: {', '.join(HIGHER_IS_BETTER)}")
        for name in self.at_least:
            if not HIGHER_IS_BETTER[name]:
                raise ValueError(f"at_least.{name}: less of it is better; use at_most")
        for name in self.at_most:
            if HIGHER_IS_BETTER[name]:
                raise ValueError(f"at_most.{name}: more of it is better; use at_least")
        if "psnr_db" in self.worse_by:
            raise ValueError("worse_by.psnr_db: it is a distance from PyTorch; use at_least")
        if any(not 1 <= count <= 4 for count in self.steps):
            raise ValueError("steps: expected 1 ... 4")
        if any(not math.isfinite(margin) or margin < 0 for margin in self.worse_by.values()):
            raise ValueError("worse_by: expected 0 or more")
        return self

    @property
    def measures(self) -> set[str]:
        return {*self.at_least, *self.at_most, *self.worse_by}


class Publish(BaseModel):
    """What is to become of a student that passes.

    Attributes:
        model: The name that it is served under; the version that has it until then is kept for a rollback.
        canary: Share of that name's requests that it gets at first, 0 ... 1; 0: it gets all of them at once.
        canary_seconds: For how long; if its pictures fail in that time, the old version stays.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(pattern=r"^[A-Za-z0-9][\w.-]{0,63}$")
    canary: float = Field(default=0.1, ge=0, le=1)
    canary_seconds: float = Field(default=60.0, ge=0, le=7 * 24 * 3600)


class Check(BaseModel):
    """One condition and what came of it."""

    model_config = ConfigDict(frozen=True)

    measure: str
    steps: int | None
    value: float | None
    """None: it was not measured."""
    bound: float
    serving: float | None = None
    margin: bool = False
    """Whether it is about the model served now."""
    holds: bool

    def __str__(self) -> str:
        where = self.measure if self.steps is None else f"{self.measure} in {self.steps} step(s)"
        if self.value is None:
            common = " at a step count that both models have" if self.margin else ""
            return f"{where} was not measured{common}"
        side = "at least" if HIGHER_IS_BETTER[self.measure] else "at most"
        against = "" if self.serving is None else f", the model served now has {self.serving:.4g}"
        return f"{where} is {self.value:.4g}, {side} {self.bound:.4g} is needed{against}"


class Verdict(BaseModel):
    """Whether a student may be served, and every reason."""

    model_config = ConfigDict(frozen=True)

    passed: bool
    checks: tuple[Check, ...]

    @property
    def reasons(self) -> list[str]:
        """What does not hold."""
        return [str(check) for check in self.checks if not check.holds]


def judge(gate: Gate, student: Figures, serving: Figures | None, psnr_db: float | None) -> Verdict:
    """
    Args:
        student: As measured on the gate's pictures.
        serving: The same of the model served now; None if there is none.
        psnr_db: The lowest of the bundle's pictures against PyTorch; None if no certificate says it.
    """
    checks = tuple(_checks(gate, student, serving, psnr_db))
    return Verdict(passed=all(check.holds for check in checks), checks=checks)


def _checks(gate: Gate, student: Figures, serving: Figures | None, psnr_db: float | None) -> Iterator[Check]:
    for name, bound in (gate.at_least | gate.at_most).items():
        if name == "psnr_db":
            yield _check(name, None, psnr_db, bound)
            continue
        for steps in student or {0: {}}:
            yield _check(name, steps, student.get(steps, {}).get(name), bound)
    if serving is not None:
        yield from _against(gate, student, serving)


def _against(gate: Gate, student: Figures, serving: Figures) -> Iterator[Check]:
    """At the step counts that both offer."""
    for name, margin in gate.worse_by.items():
        shared = sorted(steps for steps in student if name in serving.get(steps, {}))
        if not shared:
            yield Check(measure=name, steps=None, value=None, bound=margin, margin=True, holds=False)
        for steps in shared:
            now = serving[steps][name]
            bound = now - margin if HIGHER_IS_BETTER[name] else now + margin
            yield _check(name, steps, student[steps].get(name), bound, now)


def _check(
    name: str, steps: int | None, value: float | None, bound: float, serving: float | None = None
) -> Check:
    if value is None or not math.isfinite(value):
        return Check(measure=name, steps=steps, value=None, bound=bound, serving=serving, holds=False)
    holds = value >= bound if HIGHER_IS_BETTER[name] else value <= bound
    return Check(measure=name, steps=steps, value=value, bound=bound, serving=serving, holds=holds)


def read_figures(rows: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """The rows that `fewstep evaluate --json` prints for a student or bundle."""
    found: dict[int, dict[str, float]] = {}
    for label, row in rows.items():
        steps = STEPS.search(label)
        if steps is not None:
            found[int(steps[1])] = {name: _mean(row[name]) for name in HIGHER_IS_BETTER if name in row}
    return found


def _mean(figure: Any) -> float:
    return float(figure["mean"] if isinstance(figure, Mapping) else figure)
