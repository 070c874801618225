"""The bundle store: bundles under their digests, names that point at them, nothing half-written.

    objects/<digest>/...    bundles, whole, never changed
    names/<name>            a file holding the digest that the name stands for

What no name stands for is garbage. Bundles travel to and from any place that fsspec can reach, and
repositories of the Hugging Face hub by their id.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from .bundle import MANIFEST, SHIPPED, Bundle
from .errors import EngineError
from .folder import size_of, swap, sync

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
ABANDONED_SECONDS = 24 * 3600
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """One bundle of a store.

    Attributes:
        digest: Of its manifest, `sha256:...`.
        path: Its folder.
        names: What it is called; empty if it is garbage.
        size: Bytes of its files.
    """

    digest: str
    path: Path
    names: tuple[str, ...]
    size: int


class Store:
    """A folder of bundles; it is made when the first one is added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._objects, self._names = folder / "objects", folder / "names"

    def add(self, source: Path, name: str | None = None) -> Bundle:
        """Copies the bundle at `source` into the store under `name`, by default its own.

        Raises:
            EngineError: not a whole bundle, or a name that cannot be used.
        """
        bundle = Bundle.load(source)

        def copy(folder: Path) -> None:
            for file in (MANIFEST, *bundle.manifest.files):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / file, folder / file)

        return self.receive(copy, name or bundle.manifest.name, bundle.digest)

    def receive(
        self, fill: Callable[[Path], None], name: str | None = None, expected: str | None = None
    ) -> Bundle:
        """Takes in the bundle that `fill` writes into an empty folder, once every digest is right.

        Raises:
            EngineError: not a whole bundle, not the one with the `expected` digest, a name that cannot
                be used, or the disk is full.
        """
        if name is not None:
            check_name(name)
        with self._staged() as staged:
            fill(staged)
            with self._locked():
                return self._publish(staged, name, expected)

    def find(self, name: str) -> Path | None:
        """The folder of the bundle called `name`, or with that digest; None if there is none."""
        digest = name if DIGEST.fullmatch(name) else self._digest(name)
        path = self._object(digest) if digest else None
        return path if path is not None and (path / MANIFEST).is_file() else None

    def entries(self) -> list[Entry]:
        """All bundles, by name; what has no name comes last."""
        names: dict[str, list[str]] = {}
        for file in sorted(self._names.glob("[!.]*")):
            names.setdefault(file.read_text().strip(), []).append(file.name)
        found = [
            Entry(digest, path, tuple(names.get(digest, ())), size_of(path))
            for path in sorted(self._objects.glob("[!.]*"))
            for digest in [f"sha256:{path.name}"]
        ]
        return sorted(found, key=lambda entry: (not entry.names, entry.names))

    def name(self, name: str, digest: str) -> None:
        """Gives a bundle that is here one name more.

        Raises:
            EngineError: there is no such bundle, or the name cannot be used.
        """
        with self._locked():
            if self.find(digest) is None:
                raise EngineError(f"no bundle {digest} in {self.folder}; it has {self.listed()}")
            self._point(check_name(name), digest)

    def remove(self, name: str) -> str:
        """Forgets a name; its bundle stays until `collect`. Returns the digest that it stood for.

        Raises:
            EngineError: there is no such name.
        """
        with self._locked():
            digest = self._digest(name)
            if digest is None:
                raise EngineError(f"no bundle {name!r} in {self.folder}; it has {self.listed()}")
            (self._names / name).unlink()
        return digest

    def collect(self, dry_run: bool = False) -> list[Entry]:
        """Removes, and returns, the bundles that no name stands for."""
        if not self.folder.is_dir():
            return []
        with self._locked():
            garbage = [entry for entry in self.entries() if not entry.names]
            for path in [] if dry_run else [*(entry.path for entry in garbage), *self._abandoned()]:
                shutil.rmtree(path)
        return garbage

    def _abandoned(self) -> list[Path]:
        """Folders of transfers that were cut off; a young one may still be going on."""
        return [path for path in self._objects.glob(".*") if _age(path) > ABANDONED_SECONDS]

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        folder = self._objects / f".{uuid4().hex[:8]}"
        try:
            folder.mkdir(parents=True)
            yield folder
        except OSError as error:
            raise EngineError(f"cannot write {self.folder}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _publish(self, staged: Path, name: str | None, expected: str | None) -> Bundle:
        """The bundle appears whole, and its name after it."""
        found = Bundle.load(staged)
        if expected is not None and found.digest != expected:
            raise EngineError(f"the bundle is {found.digest}; {expected} was expected")
        name = check_name(name or found.manifest.name)
        path = self._object(found.digest)
        if not _holds(path):
            sync(staged)
            swap(staged, path)
        self._point(name, found.digest)
        return Bundle(path, found.manifest, found.digest)

    def _point(self, name: str, digest: str) -> None:
        self._names.mkdir(exist_ok=True)
        temporary = self._names / f".{name}.{uuid4().hex[:8]}"
        temporary.write_text(digest + "\n")
        os.replace(temporary, self._names / name)

    def _object(self, digest: str) -> Path:
        return self._objects / digest.removeprefix("sha256:")

    def _digest(self, name: str) -> str | None:
        file = self._names / name
        if not NAME.fullmatch(name) or not file.is_file():
            return None
        return file.read_text().strip()

    def listed(self) -> str:
        """Its names, for messages."""
        return ", ".join(name for entry in self.entries() for name in entry.names) or "none"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time: a bundle that has no name yet must not be taken for garbage."""
        import fcntl  # reading, as the server does, works without

        try:
            self._objects.mkdir(parents=True, exist_ok=True)
            with (self.folder / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise EngineError(f"cannot write {self.folder}: {error.strerror or error}") from error


def find_bundle(name_or_path: str, store: Path | None = None) -> Path:
    """The folder of a bundle given by the name of a shipped one, by path, or by its name in a store.

    Raises:
        EngineError: there is none; the message lists the names.
    """
    for candidate in (SHIPPED / name_or_path, Path(name_or_path)):
        if (candidate / MANIFEST).is_file():
            return candidate
    kept = Store(store) if store else None
    if kept and (found := kept.find(name_or_path)):
        return found
    shipped = ", ".join(sorted(path.name for path in SHIPPED.glob("*") if path.is_dir())) or "none"
    stored = f", or a name in {store}: {kept.listed()}" if kept else ""
    raise EngineError(
        f"no bundle {name_or_path!r}: give a folder with {MANIFEST}, or a shipped name: {shipped}{stored}"
    )


def check_name(name: str) -> str:
    """
    Raises:
        EngineError: no file name, or that of a shipped bundle.
    """
    if not NAME.fullmatch(name):
        raise EngineError(f"name {name!r}: expected letters, digits, dots, dashes, underscores; at most 100")
    if (SHIPPED / name / MANIFEST).is_file():
        raise EngineError(f"name {name!r} is that of a shipped bundle: choose another with --name")
    return name


def _age(path: Path) -> float:
    """Seconds since it was changed; 0, it was taken away meanwhile."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _holds(path: Path) -> bool:
    """Whether a bundle that is here already is whole; else it makes room for the one that comes."""
    try:
        Bundle.load(path)
    except EngineError:
        return False
    return True
