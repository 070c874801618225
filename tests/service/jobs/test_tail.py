"""Progress as read from the files of a run, also while they are written, replaced and cut."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from service.jobs.tail import Checkpoint, Follower, News, Progress, Tail

NOTHING = News([], [])


def iteration(number: int, **figures: float) -> str:
    known = {"images_per_second": 10.0, "eta_seconds": 90.0, "loss_fake": 0.5, **figures}
    return json.dumps({"type": "iteration", "iteration": number, "images": number * 8, **known}) + "\n"


def quality(number: int, accuracy: float) -> str:
    return json.dumps({"type": "quality", "iteration": number, "score": 0.2, "accuracy_1": accuracy}) + "\n"


def run(tmp_path: Path) -> Path:
    (tmp_path / "run/samples").mkdir(parents=True)
    (tmp_path / "run/recipe.yaml").write_text("batch: 8\niterations: 40\nsize: null\n")
    return tmp_path / "run/events.jsonl"


def test_where_a_run_is(tmp_path: Path) -> None:
    events = run(tmp_path)
    follower = Follower(tmp_path)
    assert follower.look() == NOTHING
    assert follower.progress == Progress(iterations=40)
    events.write_text(iteration(1) + iteration(2, loss_generator=-0.25))
    (tmp_path / "run/samples/000002.png").touch()
    follower.look()
    assert follower.progress == Progress(
        percent=5.0,
        iteration=2,
        iterations=40,
        images=16,
        images_per_second=10.0,
        eta_seconds=90.0,
        losses={"fake": 0.5, "generator": -0.25},
        sample="samples/000002.png",
    )


def test_each_point_of_the_quality_curve_comes_once_also_to_who_takes_over(tmp_path: Path) -> None:
    events = run(tmp_path)
    follower = Follower(tmp_path)
    events.write_text(iteration(1) + quality(1, 0.5))
    assert [event["accuracy_1"] for event in follower.look().quality] == [0.5]
    assert follower.progress.quality == {"score": 0.2, "accuracy_1": 0.5}
    assert follower.look() == NOTHING
    restarted = Follower(tmp_path, Progress(**follower.progress.as_dict()))
    assert restarted.look() == NOTHING
    with events.open("a") as stream:
        stream.write(iteration(2) + quality(2, 0.75))
    assert [event["accuracy_1"] for event in restarted.look().quality] == [0.75]


def test_a_resumed_run_goes_back_and_its_progress_with_it(tmp_path: Path) -> None:
    events = run(tmp_path)
    follower = Follower(tmp_path)
    events.write_text("".join(iteration(n) for n in range(1, 8)) + quality(7, 0.6))
    assert len(follower.look().quality) == 1
    replacement = tmp_path / "run/.events"
    replacement.write_text("".join(iteration(n) for n in range(1, 5)))
    replacement.replace(events)
    assert follower.look() == NOTHING
    assert follower.progress.iteration == 4
    with events.open("a") as stream:
        stream.write(iteration(5) + quality(7, 0.6))
    assert follower.look() == NOTHING
    assert follower.progress.iteration == 5


def test_states_are_told_with_the_figures_and_the_grid_of_their_time(tmp_path: Path) -> None:
    events = run(tmp_path)
    follower = Follower(tmp_path)
    events.write_text(iteration(1) + iteration(2))
    (tmp_path / "run/checkpoints/000002").mkdir(parents=True)
    (tmp_path / "run/checkpoints/.000004.abc").mkdir()
    (tmp_path / "run/samples/000002.png").touch()
    sample = f"student/{tmp_path.name}/run/samples/000002.png"
    assert follower.look().checkpoints == [Checkpoint(2, {"fake": 0.5}, sample)]
    assert follower.look().checkpoints == []
    events.write_text(iteration(1) + iteration(2) + quality(2, 0.5))
    (tmp_path / "run/checkpoints/000004").mkdir()
    assert [state.step for state in follower.look().checkpoints] == [4]


def test_lines_that_were_cut_or_hold_something_else_are_passed_over(tmp_path: Path) -> None:
    events = run(tmp_path)
    events.write_bytes(b'{"type": "iter\n\xff\xfe\n[1]\n{"iteration": 1}\n' + iteration(3).encode() + b'{"ty')
    follower = Follower(tmp_path)
    follower.look()
    assert follower.progress.iteration == 3


def test_figures_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    events = run(tmp_path)
    nan = '{"type": "iteration", "iteration": 1, "images": 8, "loss_fake": NaN, "eta_seconds": Infinity}\n'
    events.write_text(nan)
    follower = Follower(tmp_path)
    follower.look()
    assert follower.progress.losses == {}
    assert follower.progress.eta_seconds is None
    json.dumps(follower.progress.as_dict(), allow_nan=False)


@given(st.binary(max_size=60).filter(lambda content: b"\r" not in content), st.lists(st.integers(0, 60)))
def test_however_a_file_grows_its_lines_come_once_and_whole(content: bytes, cuts: list[int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        tail, seen, start = Tail(path), [], 0
        with path.open("ab", buffering=0) as file:
            for end in [*sorted(cuts), len(content)]:
                file.write(content[start:end])
                start = max(start, end)
                seen += tail.read()
        whole = content[: content.rfind(b"\n") + 1]
        assert "\n".join(seen) == "\n".join(whole.decode(errors="replace").splitlines())
