"""Sources of real images: folders, shards, renders."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from distill.data.shards import read_shard
from distill.data.sources import list_pictures
from distill.errors import DistillError
from distill.pictures import FORMATS
from distill.recipe import Data
from distill.shapes.scenes import parse_caption

Tiny = Callable[[str], Path]


def png(colour: int = 0, size: tuple[int, int] = (64, 64), kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (colour, 10, 200)).save(stream, kind)
    return stream.getvalue()


def folder_of(path: Path, captions: dict[str, str | None]) -> Path:
    """Pictures, each with a text file beside it unless its caption is None."""
    for number, (name, caption) in enumerate(captions.items()):
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(
            png(number, kind="JPEG" if file.suffix.lower() in (".jpg", ".jpeg") else file.suffix[1:])
        )
        if caption is not None:
            file.with_suffix(".txt").write_text(caption)
    return path


def shard_of(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def listed(source: Path | str, **settings: Any) -> list[tuple[str, str]]:
    return [(p.name, p.caption) for p in list_pictures(Data(source=str(source), **settings))]


# Folders.


def test_a_folder_of_pictures_with_text_files(tmp_path: Path) -> None:
    captions = {"b.png": "second\n", "a.JPG": "first", "deep/c.webp": "third", "deep/d.jpeg": "fourth"}
    folder = folder_of(tmp_path / "p", captions)
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.md").write_text("no picture")
    expected = [("a.JPG", "first"), ("b.png", "second"), ("deep/c.webp", "third"), ("deep/d.jpeg", "fourth")]
    assert listed(folder) == expected
    assert listed(folder, count=2) == expected[:2]
    assert [p.open().size for p in list_pictures(Data(source=str(folder)))] == [(64, 64)] * 4


def test_a_folder_with_metadata_as_of_imagefolder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "p", {"a.png": None, "deep/b.png": None})
    lines = [
        {"file_name": "deep/b.png", "text": "second", "width": 64},
        {"file_name": "a.png", "text": "first"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert listed(folder) == [("a.png", "first"), ("deep/b.png", "second")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"metadata.jsonl:1: expected \{\"file_name\""),
        ('["a.png"]', r"metadata.jsonl:1: expected \{\"file_name\""),
        ('{"file_name": "a.png"}', r"metadata.jsonl:1: expected \{\"file_name\""),
        ('{"file_name": "a.png", "text": 3}', "metadata.jsonl:1: file_name and text must be texts"),
        ('{"file_name": "z.png", "text": "x"}', "metadata.jsonl:1: there is no file z.png"),
        ('{"file_name": "a.png", "text": " "}', "a.png: the prompt is empty"),
        ("", "a.png: a picture without caption; expected a line in metadata.jsonl"),
    ],
)
def test_bad_metadata_is_refused_by_its_line(tmp_path: Path, line: str, message: str) -> None:
    folder = folder_of(tmp_path / "p", {"a.png": None})
    (folder / "metadata.jsonl").write_text(line)
    with pytest.raises(DistillError, match=message):
        listed(folder)


def test_a_picture_without_caption_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "p", {"a.png": "x", "b.png": None})
    with pytest.raises(DistillError, match=r"p/b.png: a picture without caption; expected b.txt beside it"):
        listed(folder)


def test_captions_that_are_no_text_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "p", {"a.png": ""})
    with pytest.raises(DistillError, match=r"a.png: the prompt is empty"):
        listed(folder)
    (folder / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DistillError, match=r"a.txt is not UTF-8 text \(byte 3\)"):
        listed(folder)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        DistillError, match="no data .*nowhere.*: give a folder of pictures, .tar shards or shapes"
    ):
        listed(tmp_path / "nowhere")
    with pytest.raises(
        DistillError, match=r"holds no picture; expected .png, .jpg, .jpeg, .webp or .tar shards"
    ):
        listed(tmp_path)
    (tmp_path / "a.png").mkdir()
    with pytest.raises(DistillError, match="holds no picture"):
        listed(tmp_path)


# Shards.


def test_shards_with_text_or_json(tmp_path: Path) -> None:
    first = {
        "000.png": png(),
        "000.txt": b"one\n",
        "001.jpg": png(kind="JPEG"),
        "001.json": b'{"caption": "two"}',
    }
    second = {"x/002.json": b'{"id": 3, "text": "three", "caption": "no"}', "x/002.WEBP": png(kind="WEBP")}
    shard_of(tmp_path / "s-0.tar", first)
    shard_of(tmp_path / "s-1.tar", {**second, "x/002.cls": b"7"})
    expected = [("s-0.tar/000.png", "one"), ("s-0.tar/001.jpg", "two"), ("s-1.tar/x/002.WEBP", "three")]
    for source in (tmp_path, tmp_path / "*.tar", tmp_path / "s-{0..1}.tar"):
        assert listed(source) == expected
    assert listed(tmp_path / "s-1.tar") == expected[2:]
    assert [p.open().format for p in list_pictures(Data(source=str(tmp_path)))] == ["PNG", "JPEG", "WEBP"]


def test_counted_names_keep_their_zeros(tmp_path: Path) -> None:
    for name in ("s-008", "s-009", "s-010", "s-011"):
        shard_of(tmp_path / f"{name}.tar", {"a.png": png(), "a.txt": name.encode()})
    assert [caption for _, caption in listed(tmp_path / "s-{009..010}.tar")] == ["s-009", "s-010"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": b""}, "s.tar: a.png: a picture without caption; expected .txt or .json"),
        ({"a.txt": b"x"}, "s.tar: sample a has no picture; expected .png"),
        ({"a.png": b"", "a.json": b"{}"}, "its .json is no object with a text or caption or prompt"),
        ({"a.png": b"", "a.json": b"["}, "its .json is no object"),
        ({"a.png": b"", "a.json": b"[]"}, "its .json is no object"),
        ({"a.png": b"", "a.txt": b"\xff"}, "s.tar: a.png is not UTF-8 text"),
        ({"a.png": b"", "a.txt": b" "}, "s.tar: a.png: the prompt is empty"),
        ({}, "s.tar is empty"),
    ],
)
def test_a_wrong_sample_is_named(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(DistillError, match=message):
        listed(shard_of(tmp_path / "s.tar", members))


def test_a_shard_that_is_no_whole_tar_file_is_refused(tmp_path: Path) -> None:
    good = shard_of(tmp_path / "s.tar", {"a.txt": b"x", "a.png": png(size=(512, 512))})
    cut = tmp_path / "cut.tar"
    cut.write_bytes(good.read_bytes()[:1600])
    (tmp_path / "text.tar").write_text("no tar " * 100)
    (tmp_path / "none.tar").touch()
    packed = shard_of(tmp_path / "packed.tar", {"a.png": png()}, "w:gz")
    for path in (cut, tmp_path / "text.tar", tmp_path / "none.tar", packed):
        with pytest.raises(DistillError, match=f"{path.name} is not a whole, uncompressed tar file"):
            listed(path)


@given(
    st.dictionaries(
        st.text("abc/", min_size=1).filter(lambda n: not n.endswith("/")), st.binary(), max_size=5
    )
)
def test_members_are_read_back_where_they_lie(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    path = tmp_path_factory.mktemp("shard") / "s.tar"
    shard_of(path, {f"k{i}.{kind}": b for i, b in enumerate(content.values()) for kind in ("txt", "png")})
    if content:
        assert [sample.caption for sample in read_shard(path, FORMATS)] == list(content.values())


# The renderer.


def test_renders_are_of_training_scenes_and_always_the_same() -> None:
    pictures = list_pictures(Data(source="shapes", count=5))
    again = list_pictures(Data(source="shapes", count=9))[:5]
    assert [p.caption for p in pictures] == [p.caption for p in again]
    assert not any(parse_caption(p.caption).held_out for p in pictures)
    for one, other in zip(pictures, again):
        assert np.array_equal(np.asarray(one.open()), np.asarray(other.open()))
    assert len(list_pictures(Data(source="shapes"))) == 8192
