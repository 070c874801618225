"""Encoders by folder or id: the same numbers as transformers itself, and refusals in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from PIL import Image
from transformers import AutoModel, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from distill.errors import DistillError
from distill.metrics.clip_score import load_scorer
from distill.metrics.encoders import load_encoder
from distill.metrics.features import FeatureNetwork, load_features
from distill.pictures import square

from ..tiny_encoders import DIMENSIONS, Colours, Floats, Halves, Pair, save_encoder, save_script

Folders = Callable[[str], Path]
PROMPTS = ["a red circle", "two blue stars on a white background, and very many more words", "x"]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return cache(lambda name: save_encoder(name, tmp_path_factory.mktemp("encoders") / f"tiny-{name}"))


def pictures(count: int = 3, width: int = 48, height: int = 40, seed: int = 0) -> list[Image.Image]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


@pytest.mark.parametrize("name", sorted(DIMENSIONS))
def test_any_vision_model_gives_pooled_features(encoder_folder: Folders, name: str) -> None:
    network = load_features(str(encoder_folder(name)), side=40)
    assert network(pictures()).shape == (3, DIMENSIONS[name])
    assert network.name == f"tiny-{name}"


def test_features_are_those_of_transformers(encoder_folder: Folders) -> None:
    folder = encoder_folder("dinov2")
    model, processor = AutoModel.from_pretrained(folder).eval(), CLIPImageProcessorPil.from_pretrained(folder)
    squares = [square(picture, 36) for picture in pictures()]
    with torch.no_grad():
        expected = model(**processor(images=squares, return_tensors="pt")).pooler_output
    np.testing.assert_allclose(load_features(str(folder), 36)(pictures()), expected, rtol=1e-6)


def test_pictures_of_any_size_and_form_are_read(encoder_folder: Folders) -> None:
    network = load_features(str(encoder_folder("vit")))
    mixed = [*pictures(1), *pictures(1, width=200, height=30), *pictures(1, width=7, height=9)]
    assert np.isfinite(network(mixed)).all()


def test_cosines_are_those_of_transformers(encoder_folder: Folders) -> None:
    """Computed by `CLIPModel` itself: its logits are cosines times its scale."""
    folder = encoder_folder("clip")
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    seen = CLIPImageProcessorPil.from_pretrained(folder)(images=pictures(), return_tensors="pt")
    read = tokenizer(PROMPTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**seen, **read).logits_per_image.diagonal() / model.logit_scale.exp()
    cosines = load_scorer(str(folder)).cosines(pictures(), PROMPTS)
    np.testing.assert_allclose(cosines, logits, atol=1e-6)
    assert len(np.unique(cosines)) == 3


def test_a_cosine_does_not_depend_on_its_neighbours(encoder_folder: Folders) -> None:
    scorer = load_scorer(str(encoder_folder("clip")))
    together = scorer.cosines(pictures(), PROMPTS)
    alone = [scorer.cosines([one], [prompt])[0] for one, prompt in zip(pictures(), PROMPTS, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_a_network_that_reads_no_text_is_no_clip(encoder_folder: Folders) -> None:
    with pytest.raises(DistillError, match="is a ViTModel, which reads no text; --clip needs a CLIP"):
        load_scorer(str(encoder_folder("vit")))


def test_missing_weights_are_not_made_up(encoder_folder: Folders) -> None:
    """A classifier has no pooling layer: stock transformers fills it with random numbers."""
    with pytest.raises(DistillError, match=r"lacks weights of a ViTModel: pooler\.dense\.bias"):
        load_encoder(str(encoder_folder("vit-classifier")))


def test_digests_tell_weights_and_preparation_apart(encoder_folder: Folders, tmp_path: Path) -> None:
    folder = encoder_folder("vit")
    other_seed = save_encoder("vit", tmp_path / "seed", seed=1)
    other_mean = Path(shutil.copytree(folder, tmp_path / "mean"))
    CLIPImageProcessorPil(image_mean=[0.5, 0.5, 0.5]).save_pretrained(other_mean)
    moved = shutil.copytree(folder, tmp_path / "moved")
    digests = {load_encoder(str(path)).digest() for path in (folder, moved, other_seed, other_mean)}
    assert len(digests) == 3
    assert load_encoder(str(folder)).digest() == load_encoder(str(moved)).digest()
    sides = {load_features(str(folder), side).digest for side in (64, 256)}
    assert len(sides) == 2


def test_folders_that_hold_no_encoder(tmp_path: Path, encoder_folder: Folders) -> None:
    broken = Path(shutil.copytree(encoder_folder("vit"), tmp_path / "broken"))
    (broken / "model.safetensors").write_bytes(b"junk")
    no_processor = Path(shutil.copytree(encoder_folder("vit"), tmp_path / "bare"))
    (no_processor / "preprocessor_config.json").unlink()
    for folder in (tmp_path, broken, no_processor):
        with pytest.raises(DistillError, match="cannot be loaded as an encoder of pictures") as caught:
            load_encoder(str(folder))
        assert "\n" not in str(caught.value)
    with pytest.raises(DistillError, match="no encoder 'nowhere': give a folder"):
        load_encoder("nowhere")


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (GatedRepoError, "facebook/dinov2-large is gated: accept its licence"),
        (LocalEntryNotFoundError, "the hub cannot be reached .*`hf download facebook/dinov2-large`"),
    ],
)
def test_what_is_said_of_the_hub(
    cause: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(source: str, **_: Any) -> None:
        raise OSError("We couldn't connect") from cause.__new__(cause)

    monkeypatch.setattr(AutoModel, "from_pretrained", gone)
    with pytest.raises(DistillError, match=message):
        load_encoder("facebook/dinov2-large")


def script(tmp_path: Path, module: torch.nn.Module, name: str = "net.pt") -> FeatureNetwork:
    return load_features(str(save_script(module, tmp_path / name)), side=24)


def test_a_script_is_asked_for_its_features(tmp_path: Path) -> None:
    seen = script(tmp_path, Colours())(pictures())
    squares = np.stack([np.array(square(picture, 24)) for picture in pictures()]) / 255
    mean = squares.mean((1, 2))
    np.testing.assert_allclose(seen, np.concatenate([mean, mean**2], axis=1), rtol=1e-5)


def test_a_script_without_that_argument_gives_them_at_once(tmp_path: Path) -> None:
    assert script(tmp_path, Halves())(pictures()).shape == (3, 6)


def test_scripts_are_told_apart_by_content(tmp_path: Path) -> None:
    one, other = script(tmp_path, Colours()), script(tmp_path, Halves(), "other.pt")
    assert one.digest != other.digest
    assert one.name == "net"


def test_what_is_no_script(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"no feature network .*gone\.pt"):
        load_features(str(tmp_path / "gone.pt"))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pth")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    for name in ("weights.pth", "junk.pt"):
        with pytest.raises(DistillError, match=f"{name} is not a TorchScript file"):
            load_features(str(tmp_path / name))
    with pytest.raises(DistillError, match="gives no features; expected one tensor"):
        script(tmp_path, Pair())(pictures())
    with pytest.raises(DistillError, match=r"takes no uint8 pictures \[N, 3, H, W\]: RuntimeError: .*type"):
        script(tmp_path, Floats())(pictures())


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_a_device_that_is_not_there(device: str, encoder_folder: Folders, tmp_path: Path) -> None:
    save_script(Colours(), tmp_path / "net.pt")
    for source in (tmp_path / "net.pt", encoder_folder("vit")):
        with pytest.raises(DistillError, match=f"device '{device}' cannot be used"):
            load_features(str(source), device=device)


def test_squares_are_cut_from_the_middle() -> None:
    wide = Image.new("RGB", (90, 30), "white")
    wide.paste("red", (30, 0, 60, 30))
    assert set(square(wide, 30).get_flattened_data()) == {(255, 0, 0)}
    assert square(wide, 8).size == (8, 8)
    same = pictures(1, 24, 24)[0]
    assert square(same, 24).tobytes() == same.tobytes()
