"""Each family does what the stock pipeline of its architecture does, part by part and as a whole."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from torch.testing import assert_close

from distill.errors import DistillError
from distill.families import FAMILIES, Conditioning, with_guidance
from distill.families.flux import pack, positions, unpack
from distill.pictures import to_images
from distill.pipeline import Pipeline, load_pipeline
from distill.recipe import Recipe, Text
from distill.sampler import guided_network, rollout, sample_student, sample_teacher, seeded_noise
from distill.student import new_spec, save_student

from ..tiny import CLIP_LENGTH, SIDE, T5_LENGTH, T5_WIDTH

Tiny = Callable[[str], Path]

PROMPTS = ["A red circle, on a white background", "blue star 42"]
NEW = ("sd3", "sd3.5", "sd3-without-t5", "flux", "flux-schnell")
INSTRUCTION = "Given a prompt, name what is in it:\n- A circle -> a circle\nPrompt: "


def stock_of(folder: Path) -> DiffusionPipeline:
    import diffusers

    index = DiffusionPipeline.load_config(folder)
    empty = {name: None for name in ("text_encoder_3", "tokenizer_3") if not any(index.get(name, [1]))}
    pipeline = getattr(diffusers, index["_class_name"]).from_pretrained(folder, **empty)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_call(name: str, prompts: list[str], guidance: float, cfg: float, **settings: Any) -> dict[str, Any]:
    """The arguments under which a stock pipeline does what a family does."""
    length = CLIP_LENGTH if name == "sd3-without-t5" else T5_LENGTH
    call = {"prompt": prompts, "height": SIDE, "width": SIDE, "max_sequence_length": length, **settings}
    if name.startswith("flux"):
        negative = {"negative_prompt": [""] * len(prompts), "true_cfg_scale": cfg} if cfg != 1 else {}
        return {**call, "guidance_scale": guidance, **negative}
    return {**call, "guidance_scale": cfg}


def stock_latents(name: str, noise: Tensor) -> Tensor:
    return pack(noise) if name.startswith("flux") else noise


def assert_same_pictures(found: Tensor, expected: Any) -> None:
    difference = to_images(found).astype(float) - (expected * 255).round()
    assert np.abs(difference).max() <= 1
    assert (expected * 255).round().std() > 1  # there is something to see


@pytest.mark.parametrize("name", ["sd3", "sd3.5"])
def test_text_of_sd3_is_encoded_as_by_the_stock_pipeline(tiny: Tiny, name: str) -> None:
    ours, stock = load_pipeline(str(tiny(name))), stock_of(tiny(name))
    with torch.no_grad():
        states, _, pooled, _ = stock.encode_prompt(
            PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=T5_LENGTH
        )
    found = ours.embed(PROMPTS)
    assert torch.equal(found["prompt_embeds"], states)
    assert torch.equal(found["pooled_projections"], pooled)


def test_without_t5_its_place_is_taken_by_zeros(tiny: Tiny) -> None:
    """The width of the zeros is known to the transformer only, so it is `velocity` that pads."""
    ours, stock = load_pipeline(str(tiny("sd3-without-t5"))), stock_of(tiny("sd3-without-t5"))
    with torch.no_grad():
        states, _, pooled, _ = stock.encode_prompt(
            PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=CLIP_LENGTH
        )
    found = ours.embed(PROMPTS)
    padded = torch.nn.functional.pad(found["prompt_embeds"], (0, T5_WIDTH - 20))
    assert torch.equal(padded, states)
    assert torch.equal(found["pooled_projections"], pooled)


def test_text_of_flux_is_encoded_as_by_the_stock_pipeline(tiny: Tiny) -> None:
    ours, stock = load_pipeline(str(tiny("flux"))), stock_of(tiny("flux"))
    with torch.no_grad():
        states, pooled, _ = stock.encode_prompt(PROMPTS, max_sequence_length=T5_LENGTH)
    found = ours.embed(PROMPTS)
    assert torch.equal(found["prompt_embeds"], states)
    assert torch.equal(found["pooled_projections"], pooled)


def test_sanas_instruction_is_read_and_dropped_as_by_the_stock_pipeline(tiny: Tiny) -> None:
    ours = load_pipeline(str(tiny("sana")), text=Text(length=20, instruction=INSTRUCTION))
    with torch.no_grad():
        states, mask, unconditional, unconditional_mask = stock_of(tiny("sana")).encode_prompt(
            PROMPTS, max_sequence_length=20, complex_human_instruction=INSTRUCTION.split("\n")
        )
    found, empty = ours.embed(PROMPTS), ours.unconditional(len(PROMPTS))
    assert_close(found["prompt_embeds"], states)
    assert torch.equal(found["prompt_attention_mask"], mask)
    assert_close(empty["prompt_embeds"], unconditional)
    assert torch.equal(empty["prompt_attention_mask"], unconditional_mask)
    assert states.shape == unconditional.shape == (2, 20, 128)


def test_sanas_own_instruction_is_that_of_stock_diffusers() -> None:
    from diffusers import SanaSprintPipeline

    assert FAMILIES["sana"].instruction is not None
    instruction = FAMILIES["sana"].instruction()
    assert instruction.startswith("Given a user prompt, generate an 'Enhanced prompt'")
    assert instruction.endswith("\nUser Prompt: ")
    parameters = inspect.signature(SanaSprintPipeline.__call__).parameters
    assert instruction.split("\n") == parameters["complex_human_instruction"].default


@pytest.mark.parametrize(
    ("name", "wish", "message"),
    [
        ("sd3", Text(instruction=True), "sd3 was trained without one"),
        ("sd3-without-t5", Text(length=77), "this model has no tokenizer_3"),
        ("flux-schnell", Text(instruction=True), "flux was trained without one"),
    ],
)
def test_wishes_that_a_teacher_cannot_fulfil(tiny: Tiny, name: str, wish: Text, message: str) -> None:
    with pytest.raises(DistillError, match=message):
        load_pipeline(str(tiny(name)), text=wish)


def test_lengths_of_text_are_those_of_training() -> None:
    lengths = {name: [spec.max_length for spec in family.text] for name, family in FAMILIES.items()}
    assert lengths == {"sana": [300], "sana-sprint": [300], "sd3": [77, 77, 77], "flux": [77, 512]}


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_recipe_sets_the_length_of_t5(tiny: Tiny, name: str) -> None:
    text = load_pipeline(str(tiny(name)), text=Text(length=7)).text
    assert [spec.max_length for spec in text] == [CLIP_LENGTH] * (len(text) - 1) + [7]


@torch.no_grad()
@pytest.mark.parametrize("name", NEW)
def test_the_network_is_called_as_by_the_stock_pipeline(tiny: Tiny, name: str) -> None:
    """Two steps of the stock pipeline; what goes into its transformer and what comes out is ours."""
    stock, ours, calls = stock_of(tiny(name)), load_pipeline(str(tiny(name))), []
    stock.transformer.register_forward_hook(
        lambda module, args, inputs, output: calls.append((inputs, output[0])), with_kwargs=True
    )
    noise = seeded_noise([1, 2], ours.latent_shape())(0)
    settings = {"num_inference_steps": 2, "latents": stock_latents(name, noise), "output_type": "latent"}
    stock(**stock_call(name, PROMPTS, 3.5, 1, **settings))
    assert len(calls) == 2
    conditioning = with_guidance(ours.embed(PROMPTS), 3.5)
    for inputs, velocity in calls:
        x = inputs["hidden_states"]
        x = unpack(x, noise) if name.startswith("flux") else x
        found = ours.family.velocity(ours.transformer, x, inputs["timestep"], conditioning)
        assert_close(stock_latents(name, found), velocity)


@pytest.mark.parametrize(("name", "guidance", "cfg"), [(n, g, 2.5) for n in NEW[:4] for g in (3.5,)])
def test_a_teacher_is_sampled_as_by_the_stock_pipeline(
    tiny: Tiny, name: str, guidance: float, cfg: float
) -> None:
    ours, stock = load_pipeline(str(tiny(name))), stock_of(tiny(name))
    noise = seeded_noise([3], ours.latent_shape())(0)
    settings = {"num_inference_steps": 5, "latents": stock_latents(name, noise), "output_type": "np"}
    expected = stock(**stock_call(name, PROMPTS[:1], guidance, cfg, **settings)).images
    scales = {"guidance": guidance, "true_cfg": cfg} if ours.guidance_input else {"guidance": cfg}
    assert_same_pictures(sample_teacher(ours, PROMPTS[:1], [3], steps=5, **scales), expected)


def saved_student(folder: Path, out: Path, recipe: Recipe) -> Pipeline:
    teacher = load_pipeline(str(folder), text=recipe.text, time_scale=recipe.time_scale)
    weights = {name: value + 0.01 for name, value in teacher.transformer.state_dict().items()}
    save_student(teacher, weights, new_spec(teacher, recipe), out, torch.float32)
    return load_pipeline(str(out))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "steps"),
    [("sd3", 2), ("sd3.5", 4), ("sd3-without-t5", 1), ("flux", 4), ("flux-schnell", 2), ("sana-sprint", 4)],
)
def test_stock_diffusers_and_our_sampler_draw_the_same_picture(
    tiny: Tiny, tmp_path: Path, name: str, steps: int
) -> None:
    """The stock pipeline's noises are drawn from torch's own generator; ours are handed the same ones.

    SD3's and FLUX's pipelines do not hand a generator on to the scheduler.
    """
    recipe = Recipe.model_validate({"teacher": "t", "guidance": {"student_embed": 2.0}})
    ours = saved_student(tiny(name), tmp_path / "student", recipe)
    assert ours.spec is not None
    settings = {"sigmas": list(ours.spec.levels[steps]), "num_inference_steps": steps}
    call = stock_call(name, PROMPTS, ours.spec.guidance_embedding or 1, 1, output_type="np", **settings)
    if ours.family.name == "sana":
        call["max_sequence_length"] = ours.text[-1].max_length
        call.update(ours.family.stock_arguments(ours.text))
    stock = stock_of(ours.folder)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        expected = stock(**call).images
    assert_same_pictures(drawn(ours, noises_drawn(name, ours, steps), steps), expected)


def noises_drawn(name: str, student: Pipeline, steps: int) -> list[Tensor]:
    """The first is drawn as latents, FLUX's later ones as packed tokens."""
    source = torch.Generator().manual_seed(7)
    first = torch.randn(len(PROMPTS), *student.latent_shape(), generator=source)
    shape = stock_latents(name, first).shape
    later = [torch.randn(shape, generator=source) for _ in range(steps - 1)]
    return [first, *(unpack(noise, first) if name.startswith("flux") else noise for noise in later)]


def drawn(student: Pipeline, noises: list[Tensor], steps: int) -> Tensor:
    spec, conditioning = student.spec, student.embed(PROMPTS)
    assert spec is not None
    network = guided_network(
        student.transformer, student.family, spec.time_scale, conditioning, embed=spec.guidance_embedding
    )
    return student.decode(rollout(network, spec.levels[steps], noises.__getitem__))


def test_a_student_of_flux_is_told_its_own_guidance(tiny: Tiny, tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"teacher": "t", "guidance": {"student_embed": 2.0}})
    student, asked = saved_student(tiny("flux"), tmp_path / "s", recipe), []
    assert student.spec is not None
    assert student.spec.guidance_embedding == 2.0
    assert "guidance_scale=2.0," in (tmp_path / "s" / "README.md").read_text()
    student.transformer.register_forward_pre_hook(
        lambda module, args, inputs: asked.append(inputs["guidance"].tolist()), with_kwargs=True
    )
    sample_student(student, PROMPTS, [0, 1], 2)
    assert asked == [[2.0, 2.0]] * 2


def test_students_without_a_guidance_input_have_no_value_for_it(tiny: Tiny) -> None:
    for name in ("sana", "sd3", "flux-schnell"):
        assert new_spec(load_pipeline(str(tiny(name))), Recipe(teacher="t")).guidance_embedding is None


def test_the_card_of_a_student_says_how_its_text_is_fed(tiny: Tiny, tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"teacher": "t", "text": {"instruction": "Say:\nPrompt: ", "length": 9}})
    student = saved_student(tiny("sana"), tmp_path / "s", recipe)
    assert student.text[0].kept == 9
    card = (tmp_path / "s" / "README.md").read_text()
    assert "max_sequence_length=9,\n" in card
    assert "complex_human_instruction=['Say:', 'Prompt: '],\n" in card


def test_packing_numbers_squares_row_by_row() -> None:
    x = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    packed = pack(x)
    assert packed.shape == (2, 6, 12)
    assert torch.equal(packed[1, 4], x[1, :, 2:4, 2:4].flatten())
    assert torch.equal(unpack(packed, x), x)
    assert positions(x).tolist() == [[0, row, column] for row in range(2) for column in range(3)]


def test_a_size_that_tokens_do_not_cover_is_refused(tiny: Tiny) -> None:
    teacher = load_pipeline(str(tiny("flux")))
    assert teacher.latent_shape((96, 64)) == (16, 8, 12)
    with pytest.raises(DistillError, match="size 72x64: width and height have to be multiples of 16"):
        teacher.latent_shape((72, 64))


def test_guidance_is_added_for_each_image() -> None:
    some: Conditioning = {"prompt_embeds": torch.zeros(3, 2, 1)}
    assert with_guidance(some, None) is some
    assert with_guidance(some, 3.5)["guidance"].tolist() == [3.5, 3.5, 3.5]
