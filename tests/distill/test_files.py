"""Files and folders are whole or not there, also when the disk is full and writers are many."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from distill.files import atomic_file, atomic_folder, staging_folder, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_what_safetensors_writes_is_as_open_as_any_other_new_file(umask: int, tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a.safetensors") as temporary:
        save_file({"a": torch.zeros(2)}, temporary)
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "part").mkdir()
        save_file({"a": torch.zeros(2)}, folder / "part" / "a.safetensors")
    expected = 0o666 & ~umask
    assert mode(tmp_path / "a.safetensors") == mode(tmp_path / "model/part/a.safetensors") == expected
    assert names(tmp_path) == ["a.safetensors", "model"]
    assert names(tmp_path / "model") == ["part"]


def test_files_that_lie_elsewhere_too_keep_their_permissions(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    for path in (mine, other):
        path.write_text("x")
        path.chmod(0o600)
    with atomic_folder(tmp_path / "model") as folder:
        (folder / "link").symlink_to(mine)
        (folder / "name").hardlink_to(other)
    assert mode(mine) == mode(other) == 0o600


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; where none may be mounted, a limit on the size of files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    old_limit, old_handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, old_limit[1]))
    try:
        yield folder
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)


def test_a_file_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file"
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent, "a rename between file systems is a copy"
    assert path.read_text() == "half"
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_a_failed_write_leaves_the_older_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), atomic_file(path) as temporary:
        temporary.write_text("ne")
        raise error
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "file"):
        pass
    assert names(tmp_path) == []


def test_content_reaches_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: order.append("content") or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: order.append("name") or replace(a, b))
    with atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("x")
    assert order == ["content", "name"]


def test_a_full_disk_leaves_the_older_file(small_disk: Path) -> None:
    path = small_disk / "file"
    write_json(path, "old")
    with pytest.raises(OSError, match=r"No space left|too large") as caught, atomic_file(path) as temporary:
        temporary.write_bytes(bytes(100_000))
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert json.loads(path.read_text()) == "old"
    assert names(small_disk) == ["file"]


def test_a_full_disk_leaves_the_older_folder(small_disk: Path) -> None:
    out = small_disk / "out"
    with atomic_folder(out) as folder:
        (folder / "part").write_text("old")
    with pytest.raises(OSError, match=r"No space left|too large"), atomic_folder(out) as folder:
        (folder / "part").write_text("new")
        (folder / "other").write_bytes(bytes(100_000))
    assert names(out) == ["part"]
    assert (out / "part").read_text() == "old"
    assert names(small_disk) == ["out"]


def test_the_disk_is_free_again_after_a_failure(small_disk: Path) -> None:
    for _ in range(3):
        with pytest.raises(OSError, match=r"No space left|too large"), staging_folder(small_disk / "o") as at:
            (at / "file").write_bytes(bytes(100_000))
    (small_disk / "file").write_bytes(bytes(40_000))


def test_many_writers_of_one_file_leave_one_whole_version(tmp_path: Path) -> None:
    path = tmp_path / "file.json"

    def write(number: int) -> None:
        write_json(path, [number] * 2000)

    def read(_: int) -> bool:
        return not path.exists() or len(set(json.loads(path.read_text()))) == 1

    with ThreadPoolExecutor(8) as pool:
        writing = [pool.submit(write, number) for number in range(40)]
        assert all(pool.map(read, range(40)))
    for done in writing:
        done.result()
    assert len(set(json.loads(path.read_text()))) == 1
    assert names(tmp_path) == ["file.json"]


@pytest.mark.parametrize("whole", [atomic_file, atomic_folder])
def test_a_killed_writer_leaves_the_name_alone(tmp_path: Path, whole: AbstractContextManager[Path]) -> None:
    """SIGKILL in the middle: what was there stays, and what is left over starts with a dot."""
    script = f"""
        import os, signal
        from pathlib import Path
        from distill.files import {whole.__name__}
        with {whole.__name__}(Path({str(tmp_path / "out")!r})) as temporary:
            (temporary / "x" if temporary.is_dir() else temporary).write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)])
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert all(name.startswith(".out.") for name in names(tmp_path))


def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for content in ("first", "second"):
        with atomic_folder(out) as folder:
            (folder / content).write_text(content)
    assert names(out) == ["second"]
    assert names(tmp_path) == ["out"]


def test_the_older_folder_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with atomic_folder(out) as folder:
        assert names(out) == ["old"]
        assert folder.parent == out.parent


def test_an_older_folder_comes_back_when_the_new_one_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    rename = Path.rename

    def stuck(self: Path, target: Path) -> Path:
        if target == out and not self.name.endswith(".old"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stuck)
    with pytest.raises(OSError, match="Input/output error"), atomic_folder(out) as folder:
        (folder / "new").write_text("new")
    assert names(out) == ["old"]
    assert names(tmp_path) == ["out"]


def test_a_staging_folder_never_stays(tmp_path: Path) -> None:
    with staging_folder(tmp_path / "out") as folder:
        (folder / "left").write_text("")
    with pytest.raises(ZeroDivisionError), staging_folder(tmp_path / "out") as folder:
        (folder / "left").write_text("")
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_json_is_written_for_people_and_ends_with_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1]})
    assert (tmp_path / "a.json").read_text() == '{\n  "b": [\n    1\n  ]\n}\n'


def test_what_json_cannot_say_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, {"b": object()})
    assert json.loads(path.read_text()) == 1
    assert names(tmp_path) == ["a.json"]
