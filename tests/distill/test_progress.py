"""Progress: a bar on a terminal, one plain line every few seconds elsewhere, and honest estimates."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill import progress as module
from distill.progress import SECONDS_BETWEEN_LINES, Progress, progress

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    moved = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=moved.monotonic))
    return moved


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return Terminal()


def test_the_estimate_is_the_pace_so_far(clock: Clock) -> None:
    shown = Progress("work", 100, stream=io.StringIO())
    clock.now += 30
    shown.update(10)
    assert shown.seconds_left == pytest.approx(30 / 10 * 90)


def test_a_continued_work_counts_its_own_pace_only(clock: Clock) -> None:
    shown = Progress("work", 100, start=80, stream=io.StringIO())
    clock.now += 10
    shown.update(85)
    assert shown.seconds_left == pytest.approx(10 / 5 * 15)


def test_before_the_first_update_the_end_is_unknown(clock: Clock) -> None:
    shown = Progress("work", 3, start=1, stream=io.StringIO())
    clock.now += 5
    assert shown.seconds_left == float("inf")
    shown.update(1)
    assert shown.seconds_left == float("inf")


def test_at_the_end_nothing_is_left(clock: Clock) -> None:
    shown = Progress("work", 3, stream=io.StringIO())
    clock.now += 5
    shown.update(3)
    assert shown.seconds_left == 0


def test_elsewhere_lines_come_every_few_seconds(clock: Clock) -> None:
    out = io.StringIO()
    shown = Progress("work", 1000, stream=out)
    for done in range(1, 101):
        clock.now += 0.25
        shown.update(done)
    assert len(out.getvalue().splitlines()) == 25 / SECONDS_BETWEEN_LINES


def test_a_line_has_label_count_note_and_estimate(clock: Clock) -> None:
    out = io.StringIO()
    shown = Progress("drawing", 8, stream=out)
    clock.now += 10
    shown.update(2, "loss 0.5")
    assert out.getvalue() == "drawing 2/8 loss 0.5 ETA 0:00:30\n"


def test_the_last_line_is_never_left_out(clock: Clock) -> None:
    out = io.StringIO()
    shown = Progress("work", 2, stream=out)
    shown.update(1)
    shown.update(2)
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["2/2"]


def test_elsewhere_there_are_no_control_characters(clock: Clock) -> None:
    out = io.StringIO()
    shown = Progress("work", 1, stream=out)
    shown.say("by the way [bold]x[/bold]")
    shown.update(1)
    shown.close()
    assert "\x1b" not in out.getvalue()
    assert "\r" not in out.getvalue()
    assert "by the way [bold]x[/bold]\n" in out.getvalue()


def test_work_inside_other_work_leaves_the_display_alone(clock: Clock, terminal: Terminal) -> None:
    plain = io.StringIO()
    for out in (plain, terminal):
        shown = Progress("", 2, stream=out)
        clock.now += 10
        shown.update(1)
        shown.update(2)
        shown.close()
        assert out.getvalue() == ""


def test_a_terminal_gets_a_bar_with_count_note_and_estimate(terminal: Terminal) -> None:
    shown = Progress("drawing", 8, stream=terminal)
    shown.update(3, "loss 0.5")
    shown.close()
    text = terminal.getvalue()
    assert HIDE_CURSOR in text
    for part in ("drawing", "3/8", "ETA", "loss 0.5"):
        assert part in text


def test_a_bar_starts_where_a_continued_work_does(terminal: Terminal) -> None:
    Progress("work", 8, start=5, stream=terminal).close()
    assert "5/8" in terminal.getvalue()


def test_words_above_the_bar_are_not_taken_for_markup(terminal: Terminal) -> None:
    shown = Progress("work", 8, stream=terminal)
    shown.say("levels [1, 0.5] are [red]fine[/red]")
    shown.close()
    assert "levels [1, 0.5] are [red]fine[/red]" in terminal.getvalue()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_terminal_as_it_was(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    monkeypatch.setattr(module.sys, "stderr", terminal)
    with pytest.raises(error), progress("work", 3) as shown:
        shown.update(1)
        raise error
    text = terminal.getvalue()
    assert text.rindex(SHOW_CURSOR) > text.rindex(HIDE_CURSOR)


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("work", 1) as shown:
        shown.update(1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0:00:00"),
        (0.4, "0:00:00"),
        (59.6, "0:01:00"),
        (61, "0:01:01"),
        (3599.6, "1:00:00"),
        (100 * 3600 + 62, "100:01:02"),
        (float("inf"), "unknown"),
    ],
)
def test_times_are_written_as_clocks(seconds: float, written: str) -> None:
    assert module.clock(seconds) == written


@given(st.floats(0, 1e6))
def test_a_clock_reads_back(seconds: float) -> None:
    hours, minutes, rest = map(int, module.clock(seconds).split(":"))
    assert minutes < 60
    assert rest < 60
    assert hours * 3600 + minutes * 60 + rest == round(seconds)
