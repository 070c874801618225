"""Prompt files of an evaluation: COCO captions, choices by seed, and broken lines by their number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.errors import DistillError
from distill.prompts import load_prompts, sample_prompts

PICTURES, CAPTIONS = 12, 5


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> str:
    """As `captions_val2014.json`: captions in no order, each with its picture."""
    annotations = [
        {
            "image_id": 1000 + picture,
            "id": 7 * picture + caption,
            "caption": f"picture {picture}, {caption}.\n",
        }
        for caption in range(CAPTIONS)
        for picture in range(PICTURES)
    ]
    path = tmp_path_factory.mktemp("coco") / "captions.json"
    path.write_text(json.dumps({"info": {}, "images": [], "licenses": [], "annotations": annotations}))
    return str(path)


def picture_of(prompt: str) -> int:
    return int(prompt.split()[1].rstrip(","))


def test_every_caption_is_a_prompt_to_learn_from(coco: str) -> None:
    prompts = load_prompts(coco)
    assert len(set(prompts)) == PICTURES * CAPTIONS
    assert "picture 3, 4." in prompts


def test_one_caption_for_each_picture(coco: str) -> None:
    assert [picture_of(prompt) for prompt in sample_prompts(coco)] == list(range(PICTURES))


@given(st.integers(0, 2**43), st.integers(1, PICTURES))
def test_the_seed_decides_and_fewer_are_part_of_more(coco: str, seed: int, count: int) -> None:
    some, every = sample_prompts(coco, count, seed), sample_prompts(coco, seed=seed)
    assert some == sample_prompts(coco, count, seed)
    assert len(some) == count
    assert set(some) <= set(every)
    assert [picture_of(prompt) for prompt in some] == sorted({picture_of(prompt) for prompt in some})
    if count > 1:
        assert set(sample_prompts(coco, count - 1, seed)) < set(some)


def test_other_seeds_choose_other_pictures_and_captions(coco: str) -> None:
    chosen = [sample_prompts(coco, 6, seed) for seed in range(8)]
    assert len({tuple(map(picture_of, prompts)) for prompts in chosen}) > 1
    assert len({sample_prompts(coco, seed=seed)[0] for seed in range(40)}) == CAPTIONS


@pytest.mark.parametrize(
    ("name", "content"),
    [("p.txt", "a\nb\n\nc\n"), ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}')],
)
def test_lines_are_sampled_too(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    source = str(tmp_path / name)
    assert sample_prompts(source) == load_prompts(source) == ["a", "b", "c"]
    assert len({tuple(sample_prompts(source, 2, seed)) for seed in range(30)}) == 3


def test_the_shapes_world_is_a_source_too() -> None:
    assert len(sample_prompts("shapes:held-out", 20)) == 20


def test_more_than_there_are_is_refused(coco: str) -> None:
    with pytest.raises(DistillError, match=f"has prompts for {PICTURES} pictures; 13 are wanted"):
        sample_prompts(coco, PICTURES + 1)


GOOD = {"image_id": 1, "caption": "a cat"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"annotations": [\n{"image_id": 1,\n"caption": }\n]}', r"c\.json:3: not valid JSON"),
        ("[]", "the file: .*; expected COCO captions"),
        ("{}", "annotations: Field required; expected COCO captions"),
        ({"annotations": None}, "annotations: Input should be a valid list"),
        ({"annotations": {"a": 1}}, "annotations: Input should be a valid list"),
        ({"annotations": []}, "holds no prompt"),
        ({"annotations": [GOOD, {"image_id": 1}]}, r"c\.json: annotations\.1\.caption: Field required"),
        ({"annotations": [GOOD, GOOD, {"caption": "a dog"}]}, r"annotations\.2\.image_id: Field required"),
        ({"annotations": [{"image_id": [1], "caption": "a"}]}, r"annotations\.0\.image_id"),
        ({"annotations": [GOOD, "a dog"]}, r"annotations\.1: Input should be"),
        ({"annotations": [{"image_id": 1, "caption": 3}]}, r"annotations\.0\.caption: .*valid string"),
        ({"annotations": [GOOD, {"image_id": 2, "caption": " \n"}]}, r"annotations\.1: the prompt is empty"),
        ({"annotations": [{"image_id": 1, "caption": "x" * 4001}]}, r"annotations\.0: prompt of 4001"),
    ],
)
def test_broken_captions_are_found(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    for read in (load_prompts, sample_prompts):
        with pytest.raises(DistillError, match=message):
            read(str(path))


def test_captions_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(b'{"annotations": "\xff"}')
    with pytest.raises(DistillError, match=r"c\.json is not UTF-8 text \(byte 17\)"):
        load_prompts(str(tmp_path / "c.json"))
