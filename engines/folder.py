"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from .bundle import MANIFEST
from .errors import EngineError


def check_target(path: Path) -> None:
    """Refuses to write over anything but a bundle or an empty folder.

    Raises:
        EngineError: something else is there.
    """
    if not path.exists() or (path / MANIFEST).is_file() or (path.is_dir() and not any(path.iterdir())):
        return
    raise EngineError(f"{path} exists and is not a bundle: give a new folder, or one with a {MANIFEST}")


def check_disk(path: Path, needed: int, what: str) -> None:
    """
    Raises:
        EngineError: fewer than `needed` bytes are free where `path` is to be, for `what`.
    """
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise EngineError(
            f"{path}: not enough disk: {what} needs {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free"
        )


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, moved there when the block succeeds, removed when it fails.

    Raises:
        EngineError: the disk is full, read-only or failing.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        sync(temporary)
        swap(temporary, path)
    except OSError as error:
        raise EngineError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _reason(error: OSError) -> str:
    """Of a copied folder the first file's: `shutil.Error` holds (source, target, reason) of each."""
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        return str(error.args[0][0][2])
    return error.strerror or str(error)


def size_of(folder: Path) -> int:
    """Bytes of all files in it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sync(folder: Path) -> None:
    """Has the disk take in a folder and all that is in it."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def swap(new: Path, path: Path) -> None:
    """Renames `new` to `path`; what was there is set aside, and comes back if that fails."""
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
