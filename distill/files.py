"""Files and folders that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; renamed onto it if the block succeeds, removed if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        with full_disk_is_an_os_error(path.parent):
            yield temporary
        open_to_others(temporary)
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """An empty temporary folder beside `path`, removed with whatever is left in it at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        with full_disk_is_an_os_error(path.parent):
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """As `atomic_file`, for a folder. A folder that was there before is replaced."""
    with staging_folder(path) as temporary:
        yield temporary
        open_to_others(temporary)
        _swap(temporary, path)


def open_to_others(path: Path) -> None:
    """Gives a new file, or those in a new folder, the permissions that any new file gets here (the umask's).

    safetensors writes for the owner alone, and a server need not run as whoever distilled. Files that have
    another name or a link elsewhere are not new, and left alone.
    """
    sample = (path.parent if path.is_file() else path) / f".{uuid4().hex[:8]}"
    sample.touch()
    usual = stat.S_IMODE(sample.stat().st_mode)
    sample.unlink()
    for file in [path] if path.is_file() else path.rglob("*"):
        status = file.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and not status.st_mode & 0o077:
            file.chmod(usual)


def write_json(path: Path, content: Any) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


@contextmanager
def full_disk_is_an_os_error(folder: Path) -> Iterator[None]:
    """torch and safetensors have error types of their own for it."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if "No space left" in str(error) or shutil.disk_usage(folder).free == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise


def _swap(new: Path, path: Path) -> None:
    """Renames `new` to `path`; the old folder is set aside first and comes back if that fails."""
    if not path.exists():
        new.rename(path)
        return
    old = path.with_name(f".{path.name}.{uuid4().hex[:8]}.old")
    path.rename(old)
    try:
        new.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old)


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
