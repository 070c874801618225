"""Teachers by their id on the hub: what is fetched, and what is said when that does not work."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import pytest
from diffusers import DiffusionPipeline
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from distill import hub
from distill.errors import DistillError
from distill.pipeline import find_pipeline, load_pipeline
from distill.recipe import Recipe
from distill.student import new_spec

REPOSITORY = "black-forest-labs/FLUX.1-dev"


def answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", f"https://huggingface.co/{REPOSITORY}"))


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, wrapped: bool = False) -> None:
    def download(repository: str, **_: Any) -> str:
        if wrapped:  # as diffusers does when it finds nothing in its cache either
            raise OSError(f"Cannot load model {repository}") from error
        raise error

    monkeypatch.setattr(DiffusionPipeline, "download", download)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            GatedRepoError("Access is restricted", response=answer(403)),
            f"{REPOSITORY} is gated: accept its licence at https://huggingface.co/{REPOSITORY} and log in",
        ),
        (
            RepositoryNotFoundError("Not found", response=answer(404)),
            "no such repository at .*; if it is private, log in with `hf auth login` or set HF_TOKEN",
        ),
        (LocalEntryNotFoundError("offline"), r"the hub cannot be reached \(LocalEntryNotFoundError\)"),
        (httpx.ConnectError("no route"), "the hub cannot be reached .*`hf download black-forest-labs/FLUX"),
    ],
)
def test_what_is_said(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str, wrapped: bool) -> None:
    failing(monkeypatch, error, wrapped)
    with pytest.raises(DistillError, match=message) as caught:
        load_pipeline(REPOSITORY)
    assert "hf auth login" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_of_its_own_is_fetched_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, AttributeError("module diffusers has no attribute SiDFluxPipeline"))
    with pytest.raises(DistillError, match="names a pipeline class that diffusers does not have: fetch it"):
        find_pipeline("YGu1998/SiD-DiT-Flux-1024-res")


def test_offline_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real download, with the hub's own switch."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DistillError, match="no folder nobody/nothing-here here, and the hub cannot be"):
        load_pipeline("nobody/nothing-here")


def test_a_repository_is_loaded_and_named(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "models--owner--some-model" / "snapshots" / "0123abcd"
    shutil.copytree(tiny_teacher, cached)
    monkeypatch.setattr(DiffusionPipeline, "download", lambda repository, **_: str(cached))
    teacher = load_pipeline("owner/some-model")
    assert teacher.name == "owner/some-model"
    assert new_spec(teacher, Recipe(teacher="owner/some-model")).teacher == "owner/some-model"


def test_folders_and_shipped_names_are_not_looked_for_on_the_hub(
    tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, AssertionError("asked the hub"))
    monkeypatch.chdir(tiny_teacher.parent.parent)
    relative = f"{tiny_teacher.parent.name}/{tiny_teacher.name}"
    assert find_pipeline(relative) == Path(relative)
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name, message in [("a/b", "not a diffusers pipeline folder"), ("nowhere", "a hub id or one of")]:
        with pytest.raises(DistillError, match=message):
            find_pipeline(name)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [(REPOSITORY, True), ("a/b", True), ("shapes-sana", False), ("/a/b", False), ("a/b/c", False)],
)
def test_what_an_id_looks_like(name: str, is_one: bool) -> None:
    assert hub.is_repository(name) is is_one


def test_names_of_folders(tmp_path: Path) -> None:
    assert hub.name_of(tmp_path / "my-model") == "my-model"
    cached = tmp_path / "models--a-b--c.d" / "snapshots" / "0"
    assert hub.name_of(cached) == "a-b/c.d"
