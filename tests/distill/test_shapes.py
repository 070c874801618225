"""The shapes world: scenes and captions, splits, renders, and the judge that reads them back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.metrics.frechet import Gaussian, frechet_distance
from distill.prompts import load_prompts
from distill.shapes.judge import correct, read
from distill.shapes.render import PALETTE, SIZE, render, render_all
from distill.shapes.scenes import ATTRIBUTES, SINGLE_SHARE, Scene, SceneSet, Shape, all_scenes, parse_caption
from distill.shapes.text import MAX_SEQUENCE_LENGTH, new_tokenizer

SINGLES, PAIRS = all_scenes()
scenes = st.sampled_from(SINGLES + PAIRS)


@given(scenes)
def test_a_caption_says_all_there_is(scene: Scene) -> None:
    assert parse_caption(scene.caption) == scene


@given(scenes)
def test_labels_are_the_attributes(scene: Scene) -> None:
    named = [values[label] for values, label in zip(ATTRIBUTES.values(), scene.labels, strict=True)]
    assert dict(zip(ATTRIBUTES, named, strict=True)) == scene.attributes


@pytest.mark.parametrize("text", ["", "a red dog", "a red circle on a red background", "a red circle"])
def test_other_texts_are_no_captions(text: str) -> None:
    with pytest.raises(ValueError, match="not a shapes caption"):
        parse_caption(text)


def test_every_combination_is_in_exactly_one_split() -> None:
    train, held_out = SceneSet("train"), SceneSet("held-out")
    assert set(train.singles + train.pairs).isdisjoint(held_out.singles + held_out.pairs)
    assert len(train) + len(held_out) == len(SINGLES) + len(PAIRS) == 4512
    assert 0.1 < len(held_out) / 4512 < 0.2
    with pytest.raises(ValueError, match="expected 'train' or 'held-out'"):
        SceneSet("test")


def test_draws_keep_single_shapes_from_being_rare() -> None:
    drawn = SceneSet("train").draw(np.random.default_rng(0), 4000)
    assert np.mean([scene.second is None for scene in drawn]) == pytest.approx(SINGLE_SHARE, abs=0.03)


def test_training_prompts_have_the_same_share_of_single_shapes() -> None:
    prompts = load_prompts("shapes:train")
    singles = np.mean([parse_caption(prompt).second is None for prompt in prompts])
    assert singles == pytest.approx(SINGLE_SHARE, abs=0.03)


def test_renders_depend_on_the_generator_only() -> None:
    scene = PAIRS[7]
    first, again, other = (render(scene, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@given(scenes, st.integers(0, 2**31))
def test_a_picture_has_its_colours_and_at_most_the_tip_of_a_corner_is_cut(scene: Scene, seed: int) -> None:
    picture = render(scene, np.random.default_rng(seed))
    edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    assert (edge == PALETTE[scene.background]).all(axis=-1).mean() > 0.97
    for shape in (scene.first, scene.second):
        if shape is not None:
            assert (picture == PALETTE[shape.colour]).all(axis=-1).sum() > 50


def test_relations_are_where_they_say() -> None:
    red, blue = Shape("circle", "red"), Shape("square", "blue")
    for relation, axis in (("left of", 1), ("above", 0)):
        picture = render(Scene(red, "white", relation, blue), np.random.default_rng(0))
        centres = [np.argwhere((picture == PALETTE[s.colour]).all(-1)).mean(0)[axis] for s in (red, blue)]
        assert centres[0] < centres[1]


def test_the_judge_reads_held_out_renders_without_error() -> None:
    rng = np.random.default_rng(11)
    drawn = SceneSet("held-out").draw(rng, 500)
    assert correct(render_all(drawn, rng), drawn).all(axis=1).mean() >= 0.998


def test_the_judge_notices_a_wrong_picture() -> None:
    rng = np.random.default_rng(0)
    asked, drawn = Scene(Shape("circle", "red"), "white"), Scene(Shape("star", "red"), "white")
    verdict = correct(render_all([drawn], rng), [asked])[0]
    assert dict(zip(ATTRIBUTES, verdict.tolist(), strict=True))["first_shape"] is False
    assert verdict.sum() == 5


def test_frechet_distance_tells_sets_of_pictures_apart() -> None:
    rng = np.random.default_rng(0)
    all_train = SceneSet("train")
    same = [Gaussian.of(read(render_all(all_train.draw(rng, 600), rng))[0]) for _ in range(2)]
    red = [scene for scene in all_train.pairs if scene.first.colour == "red"][:600]
    other = Gaussian.of(read(render_all(red, rng))[0])
    assert frechet_distance(*same) < frechet_distance(same[0], other) / 5


@given(scenes)
def test_captions_are_one_token_a_word(scene: Scene) -> None:
    ids = new_tokenizer_once()(scene.caption).input_ids
    assert len(ids) == len(scene.caption.split()) + 1 <= MAX_SEQUENCE_LENGTH


def new_tokenizer_once(cache: list = []) -> object:  # noqa: B006
    if not cache:
        cache.append(new_tokenizer())
    return cache[0]


@given(st.text(max_size=40))
def test_any_text_can_be_tokenized(text: str) -> None:
    assert new_tokenizer_once()(text).input_ids[0] == 2
