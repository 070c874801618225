"""The shapes world from scratch, in miniature: each command's folder is what stock libraries load."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline
from safetensors.torch import load_file

from distill.pipeline import load_pipeline
from distill.shapes import autoencoder, teacher
from distill.shapes.autoencoder import new_autoencoder, to_tensor, train_autoencoder
from distill.shapes.fit import Schedule
from distill.shapes.judge import FEATURES, Judge, load_judge, read, train_judge
from distill.shapes.render import render_all
from distill.shapes.scenes import ATTRIBUTES, SceneSet
from distill.shapes.teacher import CAPTION_LENGTH, Corpus, Trainee, _last, _reading_loss
from fewstep.cli import main

TINY = Schedule(steps=2, batch=4, lr=1e-3, warmup=1)


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vae") / "vae"
    assert main(["shapes", "train-autoencoder", "--steps", "2", "--seed", "1", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def teacher_folder(vae_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "teacher"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "TRAINING_PICTURES", 120)
        arguments = ["shapes", "train-teacher", "--autoencoder", str(vae_folder), "--steps", "2"]
        assert main([*arguments, "--out", str(out)]) == 0
    return out


@pytest.fixture
def unscaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the hundreds of pictures that the latents' scale is measured on."""
    monkeypatch.setattr(autoencoder, "_scaling_factor", lambda *_: 1.0)


def test_the_autoencoder_is_a_stock_one(vae_folder: Path) -> None:
    vae = AutoencoderDC.from_pretrained(vae_folder)
    latents = vae.encode(torch.zeros(2, 3, 64, 64)).latent
    assert latents.shape == (2, 8, 8, 8)
    assert vae.decode(latents).sample.shape == (2, 3, 64, 64)


def test_latents_are_scaled_to_unit_variance(vae_folder: Path) -> None:
    vae, rng = AutoencoderDC.from_pretrained(vae_folder), np.random.default_rng(5)
    pictures = to_tensor(render_all(SceneSet("train").draw(rng, 128), rng))
    with torch.no_grad():
        scaled = vae.encode(pictures).latent * vae.config.scaling_factor
    assert float(scaled.std()) == pytest.approx(1, rel=0.05)


@pytest.mark.usefixtures("unscaled")
def test_training_changes_every_part_of_the_autoencoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = new_autoencoder().state_dict()
    after = train_autoencoder(tmp_path / "vae", seed=0, schedule=TINY).state_dict()
    assert not [name for name in before if torch.equal(before[name], after[name])]


@pytest.mark.usefixtures("unscaled")
def test_the_same_seed_trains_the_same_autoencoder(tmp_path: Path) -> None:
    one, two = (train_autoencoder(tmp_path / name, 3, TINY).state_dict() for name in ("a", "b"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.usefixtures("unscaled")
def test_a_stopped_autoencoder_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.shapes import fit

    monkeypatch.setattr(fit, "CHECKPOINT_EVERY", 1)
    whole = train_autoencoder(tmp_path / "whole", 0, TINY)
    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(autoencoder, "_scaling_factor", lambda *_: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception):
            train_autoencoder(out, 0, TINY)
    assert out.with_suffix(".checkpoint").is_file()
    assert not out.exists()
    parts = train_autoencoder(out, 0, TINY)
    pairs = zip(whole.state_dict().values(), parts.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_pictures_are_scaled_to_the_range_of_the_networks() -> None:
    images = np.array([0, 255], np.uint8).reshape(1, 1, 2, 1).repeat(3, axis=3)
    tensor = to_tensor(images)
    assert tensor.shape == (1, 3, 1, 2)
    assert tensor[0, 0, 0].tolist() == [-1, 1]


def test_the_teacher_is_a_stock_pipeline(teacher_folder: Path) -> None:
    pipeline = SanaPipeline.from_pretrained(teacher_folder)
    assert isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler)
    assert pipeline.scheduler.config.shift == 1
    assert pipeline.tokenizer.model_max_length == 32
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(
        "a red circle on a white background",
        num_inference_steps=2,
        height=64,
        width=64,
        max_sequence_length=32,
        use_resolution_binning=False,
        complex_human_instruction=None,
    ).images[0]
    assert picture.size == (64, 64)


def test_the_teacher_can_be_distilled(teacher_folder: Path) -> None:
    pipeline = load_pipeline(str(teacher_folder))
    assert pipeline.spec is None
    assert pipeline.latent_shape() == (8, 8, 8)
    assert pipeline.default_size == (64, 64)


def test_large_parts_of_the_teacher_are_kept_in_half_precision(teacher_folder: Path) -> None:
    for part in ("transformer", "vae"):
        weights = load_file(teacher_folder / part / "diffusion_pytorch_model.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.float16}


def test_the_teachers_autoencoder_is_the_one_it_was_given(teacher_folder: Path, vae_folder: Path) -> None:
    given, kept = (AutoencoderDC.from_pretrained(path) for path in (vae_folder, teacher_folder / "vae"))
    assert kept.config.scaling_factor == given.config.scaling_factor
    for a, b in zip(given.state_dict().values(), kept.state_dict().values(), strict=True):
        torch.testing.assert_close(a.half().float(), b)


def test_nothing_but_the_teacher_is_left_behind(teacher_folder: Path) -> None:
    assert [path.name for path in teacher_folder.parent.iterdir()] == [teacher_folder.name]
    index = json.loads((teacher_folder / "model_index.json").read_text())
    assert index["_class_name"] == "SanaPipeline"
    assert {path.name for path in teacher_folder.iterdir()} == {
        "model_index.json",
        *(name for name, value in index.items() if isinstance(value, list) and value[0]),
    }


def test_captions_of_the_corpus_fit_and_some_are_left_out(vae_folder: Path) -> None:
    corpus = Corpus(AutoencoderDC.from_pretrained(vae_folder), count=40)
    latents, ids, labels, captioned = corpus.draw(np.random.default_rng(0), 400)
    assert latents.shape == (400, 8, 8, 8)
    assert ids.shape == (400, CAPTION_LENGTH)
    assert (corpus.ids[:, -1] == corpus.pad).all(), "a caption was cut"
    assert 0.84 < float(captioned.float().mean()) < 0.96
    assert torch.equal(ids[~captioned], corpus.empty.expand(int((~captioned).sum()), -1))
    assert (ids[captioned] != corpus.empty).any(1).all()
    assert labels.shape == (400, len(ATTRIBUTES))


def test_reading_is_asked_of_captioned_pictures_only() -> None:
    widths = [len(values) for values in ATTRIBUTES.values()]
    labels = torch.zeros(2, len(widths), dtype=torch.long)
    sure = torch.cat(
        [torch.nn.functional.one_hot(torch.zeros(2).long(), width) * 50.0 for width in widths], 1
    )
    wrong = -sure
    assert float(_reading_loss(sure, labels, torch.tensor([True, True]))) == pytest.approx(0, abs=1e-6)
    assert float(_reading_loss(wrong, labels, torch.tensor([False, False]))) == 0
    half = _reading_loss(wrong, labels, torch.tensor([True, False]))
    assert float(half) == pytest.approx(float(_reading_loss(wrong, labels, torch.tensor([True, True]))) / 2)


def test_the_last_token_is_the_one_before_the_padding() -> None:
    text = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert _last(text, mask).tolist() == [[2.0, 3.0], [10.0, 11.0]]


def test_the_reading_head_is_no_part_of_the_pipeline(teacher_folder: Path) -> None:
    assert Trainee().reader.out_features == sum(len(values) for values in ATTRIBUTES.values())
    names = (teacher_folder / "text_encoder" / "model.safetensors", teacher_folder / "transformer")
    assert not any("reader" in key for key in load_file(names[0]))


def test_a_judge_is_trained_saved_and_read_back(tmp_path: Path) -> None:
    out = tmp_path / "judge.safetensors"
    assert main(["shapes", "train-judge", "--steps", "2", "--out", str(out)]) == 0
    judge = load_judge(out)
    features, labels = read(render_all(SceneSet("train").singles[:3], np.random.default_rng(0)), judge)
    assert features.shape == (3, FEATURES)
    assert labels.shape == (3, len(ATTRIBUTES))
    assert {value.dtype for value in load_file(out).values()} == {torch.float16}


def test_training_a_judge_lowers_its_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = train_judge(
        tmp_path / "j.safetensors", 0, Schedule(steps=25, batch=32, lr=2e-3, warmup=1, ema=0.5)
    )
    rng = np.random.default_rng(0)
    scenes = SceneSet("held-out").draw(rng, 60)
    labels = torch.tensor([scene.labels for scene in scenes])
    pictures = to_tensor(render_all(scenes, rng))

    def loss(model: Judge) -> float:
        with torch.no_grad():
            logits = model(pictures)[1].values()
        return sum(float(torch.nn.functional.cross_entropy(x, y)) for x, y in zip(logits, labels.T))

    torch.manual_seed(0)
    assert loss(judge) < 0.9 * loss(Judge())
