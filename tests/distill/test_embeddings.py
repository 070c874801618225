"""Prompt embeddings on disk: the encoders' own numbers, encoded once, found again by what made them."""

from __future__ import annotations

import copy
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.distillation import distill
from distill.embeddings import AT_ONCE, EmbeddingCache
from distill.errors import Interrupted
from distill.parallel import ALONE, Ranks
from distill.pipeline import Pipeline, load_pipeline
from distill.recipe import Text

from .conftest import Recipes, losses

Tiny = Callable[[str], Path]
PROMPTS = ["a red circle", "a blue star", "ein Kreis, größer", "a red circle"]


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that are encoded from now on."""
    encoded: list[str] = []
    embed = Pipeline.embed

    def spy(self: Pipeline, prompts: Sequence[str]) -> Any:
        encoded.extend(prompts)
        return embed(self, prompts)

    monkeypatch.setattr(Pipeline, "embed", spy)
    return encoded


@pytest.mark.parametrize("name", ["sana", "sd3.5", "flux"])
def test_what_comes_back_is_what_the_encoders_say(tiny: Tiny, tmp_path: Path, name: str) -> None:
    teacher = load_pipeline(str(tiny(name)))
    cache = EmbeddingCache(teacher, tmp_path, ALONE)
    cache.fill(PROMPTS)
    assert len(files(tmp_path)) == 3
    expected, got = teacher.embed(PROMPTS[::-1]), cache.embed(PROMPTS[::-1])
    assert got.keys() == expected.keys()
    for key in got:
        assert got[key].dtype == expected[key].dtype
        torch.testing.assert_close(got[key], expected[key], rtol=1e-5, atol=1e-5)


def test_a_stopped_filling_goes_on_where_it_was(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [f"a circle {number}" for number in range(AT_ONCE + 3)]
    cache = EmbeddingCache(load_pipeline(str(tiny("sana"))), tmp_path, ALONE)
    cache.fill(prompts[:5])
    (tmp_path / "ab").mkdir(exist_ok=True)
    (tmp_path / "ab" / ".half.safetensors.1234").write_bytes(b"half")
    encoded = counting(monkeypatch)
    cache.fill(prompts)
    assert encoded == prompts[5:]
    cache.fill(prompts)
    cache.embed(prompts[:2])
    assert encoded == prompts[5:], "nothing is encoded twice"
    cache.embed(["another", "another"])
    assert encoded == [*prompts[5:], "another"]


def test_ranks_share_the_work(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, prompts = load_pipeline(str(tiny("sana"))), [str(number) for number in range(5)]
    monkeypatch.setattr(Ranks, "wait", lambda self: None)
    monkeypatch.setattr(Ranks, "once", lambda self, work: work())
    encoded = counting(monkeypatch)
    for rank, share in ((0, ["0", "2", "4"]), (1, ["1", "3"])):
        EmbeddingCache(teacher, tmp_path, Ranks(rank, 2)).fill(prompts)
        assert encoded[-len(share) :] == share, "whatever the other has done meanwhile"
    assert len(encoded) == 5


def test_a_key_is_all_that_makes_an_embedding(tiny: Tiny, tmp_path: Path) -> None:
    """Prompt, feeding, weights of an encoder; where the folder lies and the denoiser do not matter."""
    original = tiny("sana")
    moved, other = tmp_path / "moved", tmp_path / "other"
    for folder in (moved, other):
        shutil.copytree(original, folder)
    for folder, part in ((moved, "transformer"), (other, "text_encoder")):
        (weights,) = (folder / part).glob("*.safetensors")
        content = bytearray(weights.read_bytes())
        content[-2] ^= 1
        weights.write_bytes(content)

    def path(folder: Path, prompt: str = "a", **text: Any) -> Path:
        teacher = load_pipeline(str(folder), text=Text(**text))
        return EmbeddingCache(teacher, tmp_path, ALONE).path(prompt)

    assert path(moved) == path(original)
    different = [path(original), path(original, "b"), path(original, length=8), path(other)]
    assert len(set(different)) == 4


def test_the_encoders_leave_for_the_cpu(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, moved = load_pipeline(str(tiny("sd3"))), []
    for encoder in teacher.family.encoders(teacher.modules):
        monkeypatch.setattr(encoder, "to", moved.append)
    EmbeddingCache(teacher, tmp_path, ALONE).fill(["a"])
    assert moved == ["cpu"] * 3


def test_encoders_may_be_on_another_device_than_the_transformer(tiny: Tiny) -> None:
    """On the meta device there are no numbers, but it is a device of its own."""
    teacher = load_pipeline(str(tiny("sana")))
    elsewhere = replace(teacher, modules=copy.copy(teacher.modules))
    elsewhere.modules.register_modules(transformer=copy.deepcopy(teacher.transformer).to("meta"))
    assert all(value.device.type == "meta" for value in elsewhere.embed(["b"]).values())


def test_a_signal_stops_the_filling_and_the_run_goes_on(
    recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"a circle {number}" for number in range(2 * AT_ONCE)))
    wanted = recipe(iterations=2, prompts=str(prompts), embedding_cache=str(tmp_path / "shared"))
    encode = EmbeddingCache._encode

    def interrupting(self: EmbeddingCache, prompts: Sequence[str]) -> None:
        encode(self, prompts)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(EmbeddingCache, "_encode", interrupting)
    with pytest.raises(Interrupted, match="stopped at iteration 0; go on with --resume"):
        distill(wanted, tmp_path / "s")
    assert len(files(tmp_path / "shared")) == AT_ONCE
    monkeypatch.undo()
    distill(wanted, tmp_path / "s", resume=True)
    assert len(losses(tmp_path / "s")) == 2
    assert len(files(tmp_path / "shared")) == 2 * AT_ONCE


@pytest.mark.parametrize("where", [True, "shared"])
def test_a_run_has_the_losses_that_it_has_without(
    recipe: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: bool | str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    short = {"iterations": 2, "prompts": "prompts.txt"}
    plain = distill(recipe(**short), tmp_path / "plain")
    cached = distill(recipe(**short, embedding_cache=where), tmp_path / "cached")
    torch.testing.assert_close(
        torch.tensor(losses(cached)), torch.tensor(losses(plain)), rtol=1e-5, atol=1e-4
    )
    folder = cached / "run/embeddings" if where is True else tmp_path / "shared"
    assert len(files(folder)) == 3
