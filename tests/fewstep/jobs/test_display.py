"""What is shown of a job, without a server."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.jobs.display import BARS, JsonView, PlainView, line_of, make_view, sparkline
from service.jobs.tail import Progress


def job(status: str = "running", **progress: Any) -> dict[str, Any]:
    told = Progress(**progress).as_dict() if progress else {}
    return {"id": "ftjob-1", "status": status, "requested": None, "progress": told}


def test_what_is_not_known_yet_is_not_shown() -> None:
    assert line_of(job()) == "running"
    assert line_of(job(stage="distill")) == "running  distill 0 %"
    assert line_of({**job(), "requested": "pause"}) == "running, to pause"
    assert line_of(job("succeeded", stage="export", percent=100.0)) == "succeeded"
    full = job(
        stage="distill",
        percent=25.0,
        iteration=30,
        iterations=120,
        images_per_second=3.25,
        eta_seconds=3723.4,
        losses={"fake": 0.51234567},
        quality={"accuracy_1": 0.9},
    )
    assert line_of(full) == (
        "running  distill 25 %  iteration 30/120  3.25 images/s  ETA 1:02:03  losses: fake 0.5123"
        "  quality: accuracy_1 0.9"
    )


def test_lines_come_every_few_seconds_and_at_every_change(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr("fewstep.jobs.display.time.monotonic", lambda: clock)
    stream = io.StringIO()
    view = PlainView(stream)
    for second, percent in ((0, 1.0), (1, 2.0), (4, 3.0), (6, 4.0), (7, 5.0)):
        clock = 100.0 + second
        view.job(job(percent=percent))
    view.job(job("succeeded", percent=100.0))
    lines = [line[9:] for line in stream.getvalue().splitlines()]
    assert lines == ["running  distill 1 %", "running  distill 4 %", "succeeded"]


def test_json_is_a_line_for_each_thing() -> None:
    stream = io.StringIO()
    view = JsonView(stream)
    event = {"type": "message", "message": "a\nb", "data": {}}
    view.event(event)
    view.gone("away")
    view.back()
    view.sample("x.png")
    view.close()
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert found == [{"event": event}, {"connection": "away"}, {"connection": "back"}, {"sample": "x.png"}]


def test_elsewhere_than_on_a_terminal_there_is_no_table() -> None:
    assert type(make_view(False, io.StringIO())) is PlainView
    assert type(make_view(True, io.StringIO())) is JsonView


@given(st.lists(st.floats(-1e6, 1e6), max_size=30))
def test_the_little_curve_has_a_bar_for_each_value(values: list[float]) -> None:
    curve = sparkline(values)
    if len(values) < 2:
        assert curve == ""
        return
    assert len(curve) == len(values)
    heights = [BARS.index(bar) for bar in curve]
    assert [height for _, height in sorted(zip(values, heights))] == sorted(heights)
    assert curve[values.index(min(values))] == BARS[0]
    if max(values) > min(values):
        assert curve[values.index(max(values))] == BARS[-1]
