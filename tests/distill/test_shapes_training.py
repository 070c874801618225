"""The shapes world from scratch, in miniature: each command's folder is what stock libraries load."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from distill.errors import DistillError
from distill.families import family_named
from distill.pipeline import load_pipeline
from distill.shapes import architectures, autoencoder, teacher
from distill.shapes.architectures import ARCHITECTURES
from distill.shapes.autoencoder import KINDS, to_tensor, train_autoencoder
from distill.shapes.corpus import Corpus
from distill.shapes.fit import Schedule
from distill.shapes.judge import FEATURES, Judge, load_judge, read, train_judge
from distill.shapes.render import render_all
from distill.shapes.scenes import ATTRIBUTES, SceneSet
from distill.shapes.teacher import Trainee, _reading_loss, summary, teach_guidance
from distill.shapes.text import CAPTION_LENGTH
from fewstep.cli import main

TINY = Schedule(steps=2, batch=4, lr=1e-3, warmup=1)
AUTOENCODERS = {"AutoencoderDC": AutoencoderDC, "AutoencoderKL": AutoencoderKL}
FAMILY_OF = {"AutoencoderDC": family_named("sana"), "AutoencoderKL": family_named("sd3")}

families = pytest.mark.parametrize("family", ARCHITECTURES)
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def vae_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind, trained for two steps by the command."""
    folders = {}
    for family in ("sana", "sd3"):
        out = folders[ARCHITECTURES[family].autoencoder] = tmp_path_factory.mktemp("vae") / "vae"
        command = ["shapes", "train-autoencoder", "--family", family, "--steps", "2", "--seed", "1"]
        assert main([*command, "--out", str(out)]) == 0
    return folders


@pytest.fixture(scope="module")
def teacher_folders(
    vae_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A teacher of each family, trained for two steps by the command."""
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "TRAINING_PICTURES", 120)
        flux = replace(ARCHITECTURES["flux"], guidance=TINY)
        patch.setitem(architectures.ARCHITECTURES, "flux", flux)
        for family, wanted in ARCHITECTURES.items():
            out = folders[family] = tmp_path_factory.mktemp(family) / "teacher"
            vae = str(vae_folders[wanted.autoencoder])
            command = ["shapes", "train-teacher", "--family", family, "--autoencoder", vae, "--steps", "2"]
            assert main([*command, "--out", str(out)]) == 0
    return folders


@pytest.fixture
def unscaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the hundreds of pictures that the latents' scale is measured on."""
    monkeypatch.setattr(autoencoder, "_scaling", lambda *_: {})


@kinds
def test_the_autoencoder_is_a_stock_one(vae_folders: dict[str, Path], kind: str) -> None:
    vae = AUTOENCODERS[kind].from_pretrained(vae_folders[kind])
    latents = FAMILY_OF[kind].encode(vae, torch.zeros(2, 3, 64, 64))
    assert latents.shape == (2, 8, 8, 8)
    assert vae.decode(latents).sample.shape == (2, 3, 64, 64)


@kinds
def test_latents_are_scaled_to_unit_variance(vae_folders: dict[str, Path], kind: str) -> None:
    vae, rng = AUTOENCODERS[kind].from_pretrained(vae_folders[kind]), np.random.default_rng(5)
    pictures = to_tensor(render_all(SceneSet("train").draw(rng, 128), rng))
    with torch.no_grad():
        scaled = FAMILY_OF[kind].encode(vae, pictures)
    assert float(scaled.std()) == pytest.approx(1, rel=0.05)
    if kind == "AutoencoderKL":
        assert float(scaled.mean()) == pytest.approx(0, abs=0.05)


@kinds
@pytest.mark.usefixtures("unscaled")
def test_training_changes_every_part_of_the_autoencoder(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    before = KINDS[kind].new().state_dict()
    after = train_autoencoder(tmp_path / "vae", seed=0, schedule=TINY, kind=kind).state_dict()
    assert not [name for name in before if torch.equal(before[name], after[name])]


@kinds
@pytest.mark.usefixtures("unscaled")
def test_the_same_seed_trains_the_same_autoencoder(tmp_path: Path, kind: str) -> None:
    one, two = (train_autoencoder(tmp_path / name, 3, TINY, kind).state_dict() for name in ("a", "b"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.usefixtures("unscaled")
def test_a_stopped_autoencoder_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.shapes import fit

    monkeypatch.setattr(fit, "CHECKPOINT_EVERY", 1)
    whole = train_autoencoder(tmp_path / "whole", 0, TINY)
    out = tmp_path / "parts"
    with monkeypatch.context() as patch:
        patch.setattr(autoencoder, "_scaling", lambda *_: pytest.fail("stopped"))
        with pytest.raises(pytest.fail.Exception):
            train_autoencoder(out, 0, TINY)
    assert out.with_suffix(".checkpoint").is_file()
    assert not out.exists()
    parts = train_autoencoder(out, 0, TINY)
    assert not out.with_suffix(".checkpoint").exists(), "another training would take it for its own"
    pairs = zip(whole.state_dict().values(), parts.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_pictures_are_scaled_to_the_range_of_the_networks() -> None:
    images = np.array([0, 255], np.uint8).reshape(1, 1, 2, 1).repeat(3, axis=3)
    tensor = to_tensor(images)
    assert tensor.shape == (1, 3, 1, 2)
    assert tensor[0, 0, 0].tolist() == [-1, 1]


@families
def test_the_teacher_is_a_stock_pipeline(teacher_folders: dict[str, Path], family: str) -> None:
    pipeline = DiffusionPipeline.from_pretrained(teacher_folders[family])
    assert type(pipeline).__name__ == family_named(family).pipeline
    assert isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler)
    assert pipeline.scheduler.config.shift == 1
    pipeline.set_progress_bar_config(disable=True)
    limit = getattr(pipeline, family_named(family).text[-1].tokenizer).model_max_length
    sana = {"use_resolution_binning": False, "complex_human_instruction": None}
    picture = pipeline(
        "a red circle on a white background",
        num_inference_steps=2,
        height=64,
        width=64,
        max_sequence_length=limit,
        **(sana if family == "sana" else {}),
    ).images[0]
    assert picture.size == (64, 64)


@families
def test_the_teacher_can_be_distilled(teacher_folders: dict[str, Path], family: str) -> None:
    pipeline = load_pipeline(str(teacher_folders[family]))
    assert pipeline.spec is None
    assert pipeline.latent_shape() == (8, 8, 8)
    assert pipeline.default_size == (64, 64)
    assert pipeline.guidance_input == (family == "flux")


@families
def test_large_parts_of_the_teacher_are_kept_in_half_precision(
    teacher_folders: dict[str, Path], family: str
) -> None:
    for part in ("transformer", "vae"):
        weights = load_file(teacher_folders[family] / part / "diffusion_pytorch_model.safetensors")
        bfloat16 = part == "transformer" and ARCHITECTURES[family].bfloat16
        assert {value.dtype for value in weights.values()} == {torch.bfloat16 if bfloat16 else torch.float16}


@families
def test_the_teachers_autoencoder_is_the_one_it_was_given(
    teacher_folders: dict[str, Path], vae_folders: dict[str, Path], family: str
) -> None:
    kind = ARCHITECTURES[family].autoencoder
    paths = teacher_folders[family] / "vae", vae_folders[kind]
    kept, given = (AUTOENCODERS[kind].from_pretrained(path) for path in paths)
    assert kept.config.scaling_factor == given.config.scaling_factor
    assert kept.config.get("shift_factor") == given.config.get("shift_factor")
    for a, b in zip(given.state_dict().values(), kept.state_dict().values(), strict=True):
        torch.testing.assert_close(a.half().float(), b)


@families
def test_nothing_but_the_teacher_is_left_behind(teacher_folders: dict[str, Path], family: str) -> None:
    folder = teacher_folders[family]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    index = json.loads((folder / "model_index.json").read_text())
    assert {path.name for path in folder.iterdir()} == {
        "model_index.json",
        *(name for name, value in index.items() if isinstance(value, list) and value[0]),
    }


def test_an_autoencoder_of_another_family_is_refused(
    vae_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vae = str(vae_folders["AutoencoderDC"])
    command = ["shapes", "train-teacher", "--family", "flux", "--autoencoder", vae]
    assert main([*command, "--out", str(tmp_path / "t")]) == 2
    assert "holds an AutoencoderDC, and this family takes an AutoencoderKL" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_goes_on_from_another(
    teacher_folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "TRAINING_PICTURES", 120)
    before, after = teacher_folders["sana"], tmp_path / "t"
    command = ["shapes", "train-teacher", "--init", str(before), "--steps", "1", "--rate", "1e-9"]
    assert main([*command, "--out", str(after)]) == 0
    for part, name in [("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")]:
        old, new = (load_file(folder / part / f"{name}.safetensors") for folder in (before, after))
        assert old.keys() == new.keys()
        for key in old:
            torch.testing.assert_close(new[key].float(), old[key].float(), rtol=1e-3, atol=1e-4)
    assert (before / "vae/config.json").read_text() == (after / "vae/config.json").read_text()
    DiffusionPipeline.from_pretrained(after)


def test_a_teacher_of_another_family_is_no_start(
    teacher_folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["shapes", "train-teacher", "--family", "flux", "--init", str(teacher_folders["sd3"])]
    assert main([*command, "--out", str(tmp_path / "t")]) == 2
    assert "a sd3 teacher; --family says flux" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_starts_from_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["shapes", "train-teacher", "--out", str(tmp_path / "t")])
    assert "--autoencoder --init" in capsys.readouterr().err
    with pytest.raises(DistillError, match="needs an --autoencoder"):
        teacher.train_teacher("sana", None, tmp_path / "t")


@families
def test_captions_of_the_corpus_fit_and_some_are_left_out(
    teacher_folders: dict[str, Path], family: str
) -> None:
    pipeline = DiffusionPipeline.from_pretrained(teacher_folders[family])
    corpus = Corpus(family_named(family), pipeline, count=40)
    x0, tokens, labels, captioned = corpus.draw(np.random.default_rng(0), 400)
    assert x0.shape == (400, 8, 8, 8)
    assert labels.shape == (400, len(ATTRIBUTES))
    assert 0.84 < float(captioned.float().mean()) < 0.96
    for name in tokens:
        assert tokens[name].shape == (400, CAPTION_LENGTH)
        assert torch.equal(tokens[name][~captioned], corpus.empty[name].expand(int((~captioned).sum()), -1))
        assert (tokens[name][captioned] != corpus.empty[name]).any(1).all()
        if name.startswith("attention_mask"):
            assert (corpus.tokens[name][:, -1] == 0).any(), "room for the longest caption"


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


def test_a_caption_is_summed_up_where_all_of_its_words_are_seen() -> None:
    states = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    gemma = {"prompt_embeds": states, "prompt_attention_mask": mask}
    assert summary(gemma).tolist() == [[2.0, 3.0], [10.0, 11.0]]
    pooled = {"prompt_embeds": states, "pooled_projections": torch.tensor([[7.0], [8.0]])}
    assert summary(pooled).tolist() == [[7.0, 2.0, 3.0], [8.0, 8.0, 9.0]]


@families
def test_the_reading_head_is_no_part_of_the_pipeline(teacher_folders: dict[str, Path], family: str) -> None:
    for path in teacher_folders[family].glob("*/*.safetensors"):
        assert not any("reader" in key for key in load_file(path))


def test_guidance_moves_into_the_guidance_input(vae_folders: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    wanted = replace(ARCHITECTURES["flux"], guidance=Schedule(steps=60, batch=16, lr=3e-3, warmup=5, ema=0.5))
    family, vae = family_named("flux"), AutoencoderKL.from_pretrained(vae_folders["AutoencoderKL"])
    pipeline = architectures.flux(vae, width=64, layers=(1, 1))
    corpus = Corpus(family, pipeline, 64)
    model = Trainee(family, pipeline, corpus.empty)
    for parameter in model.transformer.proj_out.parameters():  # which starts at zero
        torch.nn.init.normal_(parameter, std=0.05)
    before = copy.deepcopy(model)
    x0, tokens, _, _ = corpus.draw(np.random.default_rng(1), 32)
    t_B, conditional = torch.full((32,), 0.6), before.embed(tokens)
    empty = {name: value.expand(32, *value.shape[1:]) for name, value in before.embed(corpus.empty).items()}
    with torch.no_grad():
        u, v = before.velocity(x0, t_B, empty), before.velocity(x0, t_B, conditional)
        wish = u + 3 * (v - u)

        def error(of: Trainee) -> float:
            guided = of.velocity(x0, t_B, {**conditional, "guidance": torch.full((32,), 3.0)})
            return float((guided - wish).square().mean())

        start = error(before)
    teach_guidance(model, corpus, wanted, 0, tmp_path / "g.checkpoint")
    with torch.no_grad():
        assert error(model) < 0.3 * start


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
