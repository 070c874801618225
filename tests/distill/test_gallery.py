"""Galleries: resumed as if never stopped, and never mixed with pictures of something else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import DistillError
from distill.metrics.gallery import MANIFEST, Order, draw_gallery
from distill.pictures import Images, open_picture

ORDER = Order(
    model="tiny",
    digest="sha256:0",
    steps=4,
    guidance=1.0,
    batch=3,
    prompts=[f"a picture of {number}" for number in range(8)],
    seeds=range(5_000_000, 5_000_008),
)


class Painter:
    """Pixels from seed, prompt and place in the batch, as rounding makes them; may be stopped."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.calls: list[tuple[int, ...]] = []
        self.stop_after = stop_after

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> Images:
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append(tuple(seeds))
        keys = [(seed, len(seeds), place) for place, seed in enumerate(seeds)]
        return np.stack([np.random.default_rng(key).integers(0, 256, (4, 6, 3), np.uint8) for key in keys])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery") / "whole"
    draw_gallery(folder, ORDER, Painter(), "")
    return folder


def test_every_picture_is_there_with_its_prompt_and_seed(whole: Path) -> None:
    manifest = json.loads((whole / MANIFEST).read_text())
    assert (manifest["steps"], manifest["guidance"], manifest["batch"]) == (4, 1.0, 3)
    assert [picture["prompt"] for picture in manifest["pictures"]] == ORDER.prompts
    assert [picture["seed"] for picture in manifest["pictures"]] == list(ORDER.seeds)
    assert sorted(path.name for path in whole.glob("*.png")) == [p["file"] for p in manifest["pictures"]]
    third = Painter()(ORDER.prompts[:3], ORDER.seeds[:3])[2]
    np.testing.assert_array_equal(np.array(open_picture(whole / "000002.png")), third)


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_a_stopped_run_goes_on_as_if_it_had_not(whole: Path, tmp_path: Path, stop_after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        draw_gallery(tmp_path, ORDER, Painter(stop_after), "")
    rest = Painter()
    files = draw_gallery(tmp_path, ORDER, rest, "")
    assert contents(tmp_path) == contents(whole)
    assert len(rest.calls) == 3 - stop_after
    assert files == sorted(tmp_path.glob("*.png"))


@settings(max_examples=25)  # each writes files, and waits for the disk
@given(st.sets(st.integers(0, 7)))
def test_whatever_is_missing_is_drawn_with_its_whole_batch(
    tmp_path_factory: pytest.TempPathFactory, whole: Path, missing: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("some")
    for name, content in contents(whole).items():
        if name == MANIFEST or int(name[:6]) not in missing:
            (folder / name).write_bytes(content)
    painter = Painter()
    draw_gallery(folder, ORDER, painter, "")
    assert contents(folder) == contents(whole)
    assert len(painter.calls) == len({number // 3 for number in missing})


def test_progress_starts_where_the_run_was_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        draw_gallery(tmp_path, ORDER, Painter(2), "")
    draw_gallery(tmp_path, ORDER, Painter(), "tiny, 4 steps")
    assert "drawing tiny, 4 steps 8/8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 2}, "holds pictures of steps 4, not 2"),
        ({"guidance": 3.0}, "holds pictures of guidance 1.0, not 3.0"),
        ({"batch": 4}, "holds pictures of batch 3, not 4"),
        ({"digest": "sha256:1"}, "holds pictures of digest sha256:0, not sha256:1"),
        ({"seeds": range(8)}, "holds pictures of other prompts or seeds"),
        ({"prompts": ["x"] * 8}, "holds pictures of other prompts or seeds"),
    ],
)
def test_pictures_of_something_else_are_not_taken(whole: Path, change: dict[str, Any], message: str) -> None:
    painter = Painter()
    with pytest.raises(DistillError, match=message):
        draw_gallery(whole, replace(ORDER, **change), painter, "")
    assert not painter.calls


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(DistillError, match=r"holds files but no manifest\.json"):
        draw_gallery(tmp_path, ORDER, Painter(), "")
    assert list(contents(tmp_path)) == ["holiday.jpg"]


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_manifest_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(DistillError, match="manifest.json is damaged"):
        draw_gallery(tmp_path, ORDER, Painter(), "")
