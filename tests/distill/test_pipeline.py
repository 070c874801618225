"""Loading teachers: what is refused, and what the family makes of a pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SanaPipeline

from distill.errors import DistillError
from distill.families import family_named
from distill.pictures import to_images
from distill.pipeline import find_pipeline, load_pipeline
from distill.prompts import load_prompts
from distill.sampler import sample_student, sample_teacher


def edited(teacher: Path, tmp_path: Path, file: str, **changes: Any) -> str:
    """A copy of the teacher with some keys of one JSON file changed."""
    copy = tmp_path / "copy"
    shutil.copytree(teacher, copy)
    path = copy / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(copy)


def test_a_missing_teacher_lists_the_shipped_ones() -> None:
    with pytest.raises(DistillError, match="no model 'nowhere'.*shapes-sana"):
        find_pipeline("nowhere")


def test_a_folder_without_a_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="not a diffusers pipeline folder.*model_index.json"):
        load_pipeline(str(tmp_path))


def test_an_unknown_family_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = edited(tiny_teacher, tmp_path, "model_index.json", _class_name="StableDiffusionPipeline")
    with pytest.raises(
        DistillError, match="family of a StableDiffusionPipeline; known pipelines: SanaPipeline"
    ):
        load_pipeline(folder)


def test_a_pipeline_that_is_not_flow_matching_is_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    file = "scheduler/scheduler_config.json"
    folder = edited(tiny_teacher, tmp_path, file, _class_name="DDIMScheduler", prediction_type="epsilon")
    with pytest.raises(DistillError, match="scheduler DDIMScheduler is not flow matching"):
        load_pipeline(folder)


def test_damaged_parts_are_named(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = Path(edited(tiny_teacher, tmp_path, "model_index.json"))
    (folder / "scheduler/scheduler_config.json").write_text("{")
    with pytest.raises(DistillError, match=r"scheduler_config.json is not valid JSON"):
        load_pipeline(str(folder))
    shutil.rmtree(folder / "scheduler")
    with pytest.raises(DistillError, match="is the download complete"):
        load_pipeline(str(folder))


def test_missing_weights_are_refused(tiny_teacher: Path, tmp_path: Path) -> None:
    folder = Path(edited(tiny_teacher, tmp_path, "model_index.json"))
    next((folder / "transformer").glob("*.safetensors")).unlink()
    with pytest.raises(DistillError, match="cannot be loaded"):
        load_pipeline(str(folder))


def test_an_unknown_family_name_lists_the_known_ones() -> None:
    with pytest.raises(DistillError, match="unknown family 'dit'; known: sana"):
        family_named("dit")


def test_embeddings_are_those_of_the_stock_pipeline(tiny_teacher: Path) -> None:
    ours, stock = load_pipeline(str(tiny_teacher)), SanaPipeline.from_pretrained(tiny_teacher)
    prompts = ["A red CIRCLE on a white background", ""]
    with torch.no_grad():
        states, mask, *_ = stock.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=32, complex_human_instruction=None
        )
    got = ours.embed(prompts)
    assert torch.equal(got["prompt_attention_mask"], mask)
    torch.testing.assert_close(got["prompt_embeds"], states)


def test_a_teacher_is_sampled_as_by_the_stock_pipeline(tiny_teacher: Path) -> None:
    ours, stock = load_pipeline(str(tiny_teacher)), SanaPipeline.from_pretrained(tiny_teacher)
    stock.set_progress_bar_config(disable=True)
    from distill.sampler import seeded_noise

    expected = stock(
        "a red circle",
        num_inference_steps=6,
        guidance_scale=2.5,
        latents=seeded_noise([3], (8, 8, 8))(0),
        height=64,
        width=64,
        max_sequence_length=32,
        use_resolution_binning=False,
        complex_human_instruction=None,
        output_type="np",
    ).images
    got = to_images(sample_teacher(ours, ["a red circle"], [3], steps=6, guidance=2.5))
    assert abs(got.astype(float) - (expected * 255).round()).max() <= 1


def test_only_students_are_sampled_in_few_steps(tiny_teacher: Path) -> None:
    with pytest.raises(DistillError, match="is a teacher"):
        sample_student(load_pipeline(str(tiny_teacher)), ["a"], [0], 4)


def test_prompt_files(tmp_path: Path) -> None:
    text, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    text.write_text("a cat\n\n  a dog \n")
    lines.write_text('{"prompt": "a cat"}\n{"prompt": "a dog", "more": 1}\n')
    assert load_prompts(str(text)) == load_prompts(str(lines)) == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "x"}\n{"text": "y"}\n', 'a.jsonl:2: expected {"prompt": "..."}'),
        ("b.jsonl", b'{"prompt": "x"}\nnot json\n', "b.jsonl:2"),
        ("c.jsonl", b'{"prompt": 3}\n', "c.jsonl:1: prompt must be a non-empty text"),
        ("d.txt", b"\n\n", "holds no prompt"),
        ("e.txt", b"\xff\xfe", "not UTF-8 text (byte 0)"),
        ("f.txt", b"x" * 4001, "f.txt:1: prompt of 4001 characters; at most 4000"),
    ],
)
def test_bad_prompt_files_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DistillError) as caught:
        load_prompts(str(tmp_path / name))
    assert message in str(caught.value)


@pytest.mark.parametrize("source", ["nowhere.txt", "shapes:test"])
def test_unknown_prompt_sets_are_refused(source: str) -> None:
    with pytest.raises(DistillError, match="no prompts"):
        load_prompts(source)
