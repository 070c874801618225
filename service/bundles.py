"""Where the bundles of versions come from, and how those that may come back are kept."""

from __future__ import annotations

from collections.abc import Mapping

from engines.bundle import MANIFEST, SHIPPED, Bundle
from engines.errors import EngineError
from engines.runtime import load_runtime
from engines.runtime.base import Runtime
from engines.store import Store, find_bundle

from .settings import Settings
from .versions import Version


class Bundles:
    """Bundles by reference: a folder, a shipped name, a name or a digest of the store."""

    def __init__(self, settings: Settings, runtimes: Mapping[str, Runtime] | None = None) -> None:
        """
        Args:
            runtimes: In place of the bundles that have these references.
        """
        self._settings, self._runtimes = settings, runtimes or {}
        self._store = Store(settings.store)
        self._found: dict[str, Bundle] = {}

    def find(self, reference: str) -> Bundle:
        """
        Raises:
            EngineError: there is none, or it is not whole.
        """
        if reference in self._runtimes:
            bundle = self._runtimes[reference].bundle
        else:
            bundle = Bundle.load(find_bundle(reference, self._settings.store))
        self._found[bundle.digest] = bundle
        return bundle

    def of(self, version: Version) -> Bundle:
        """The bundle of a version, which has not changed since it was published.

        Raises:
            EngineError: it is gone, or another one is in its place.
        """
        if version.digest in self._found:
            return self._found[version.digest]
        bundle = self.find(version.bundle)
        if bundle.digest != version.digest:
            raise EngineError(f"{version.bundle} is now {bundle.digest}; {version.id} was {version.digest}")
        return bundle

    def keep(self, version: Version) -> str:
        """A reference under which the bundle will be there after a restart: it is copied into the store.

        Raises:
            EngineError: it cannot be copied.
        """
        if version.bundle in self._runtimes or _is_shipped(version.bundle):
            return version.bundle
        if self._store.find(version.digest) is None:
            kept = self._store.add(self.of(version).path, _name(version))
            self._found[kept.digest] = kept
        else:
            self._store.name(_name(version), version.digest)
            self.find(version.digest)
        return version.digest

    def release(self, version: Version) -> None:
        """Leaves the bundle of a version that is not coming back to the store's collection of garbage."""
        if self._store.find(_name(version)) is not None:
            self._store.remove(_name(version))

    def load(self, version: Version) -> Runtime:
        """
        Raises:
            EngineError: it is not there, or no backend here can run it.
        """
        if version.bundle in self._runtimes:
            return self._runtimes[version.bundle]
        return load_runtime(self.of(version), self._settings.backend, self._settings.threads)


def _is_shipped(reference: str) -> bool:
    """By its name; joined with an absolute path, a folder gives way to it."""
    folder = SHIPPED / reference
    return folder.parent == SHIPPED and (folder / MANIFEST).is_file()


def size_of(bundle: Bundle) -> int:
    """Bytes of its graphs, which hold the weights."""
    files = [bundle.path / name for name in bundle.manifest.files]
    return sum(file.stat().st_size for file in files if file.is_file())


def _name(version: Version) -> str:
    """Of the bundle in the store, so that it is nobody's garbage."""
    name, _, number = version.id.rpartition("@")
    return f"{name.replace('/', '..')}.v{number}"
