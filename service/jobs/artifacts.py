"""What jobs leave, at any place that fsspec reaches: whole or not there, and checked on both ways.

URL/<job>/<part>/<file>       the files of a part: `student`, `bundle`, `samples`
URL/<job>/<part>.json         their digests; written last, so that a part that has it is whole
URL/jobs/<job>.json           that the job has left all it had to leave, and when
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

import fsspec

from engines.folder import sync

from ..errors import ServiceError

CHUNK = 1 << 20

Say = Callable[[str], None]


class Artifacts:
    """The parts of jobs below one URL."""

    def __init__(self, url: str, say: Say = lambda line: None) -> None:
        """
        Args:
            url: An fsspec URL or a folder.
            say: Is told of each file.

        Raises:
            ServiceError: no such kind of place, or its package is not installed.
        """
        self.url, self._say = url.rstrip("/"), say
        with self._reaching():
            self._system, root = fsspec.core.url_to_fs(self.url)
            self._root = root.rstrip("/")

    def put(self, folder: Path, job: str, part: str, skip: tuple[str, ...] = ()) -> str:
        """Copies `folder`, but for the entries in `skip`, and reads every file back; returns the part's digest.

        Raises:
            ServiceError: the place cannot be written, or holds something else than was sent.
        """
        files = _digests(folder, skip)
        with self._reaching():
            self._forget(f"{job}/{part}.json")
            for name, digest in files.items():
                self._send(folder / name, f"{job}/{part}/{name}", digest)
            content = json.dumps({"files": files}, sort_keys=True).encode()
            self._write(f"{job}/{part}.json", content)
        return _sha256(content)

    def get(self, job: str, part: str, folder: Path, expected: str | None = None) -> None:
        """Fetches a part into `folder`, which appears whole or not at all.

        Raises:
            ServiceError: there is none, it is not the `expected` one, or a file does not match its digest.
        """
        files = self._listing(job, part, expected)
        temporary = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}")
        try:
            with self._reaching():
                for name, digest in files.items():
                    self._fetch(f"{job}/{part}/{name}", temporary / name, digest)
                temporary.mkdir(parents=True, exist_ok=True)
                sync(temporary)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def parts(self, job: str) -> list[str]:
        """The whole parts of a job."""
        with self._reaching():
            if not self._system.exists(self._path(job)):
                return []
            self._system.invalidate_cache()
            names = [str(path).rpartition("/")[2] for path in self._system.ls(self._path(job), detail=False)]
        return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def remove(self, job: str, part: str) -> None:
        """Removes a part, its listing first; nothing happens if it is not there."""
        with self._reaching():
            self._forget(f"{job}/{part}.json")
            self._forget(f"{job}/{part}")

    def sign(self, job: str, about: Mapping[str, Any]) -> None:
        """Notes that a job has left all its parts. Its `name` tells what kind of student they are."""
        with self._reaching():
            self._write(f"jobs/{job}.json", json.dumps({**about, "job": job, "at": time.time()}).encode())

    def unsign(self, job: str) -> None:
        with self._reaching():
            self._forget(f"jobs/{job}.json")

    def signed(self, name: str) -> list[str]:
        """The jobs that have left students of that name, the newest first."""
        with self._reaching():
            self._system.invalidate_cache()
            if not self._system.exists(self._path("jobs")):
                return []
            files = [str(path) for path in self._system.ls(self._path("jobs"), detail=False)]
            notes = [json.loads(self._system.cat_file(file)) for file in files if file.endswith(".json")]
        named = [note for note in notes if note.get("name") == name]
        return [note["job"] for note in sorted(named, key=lambda note: -note["at"])]

    def where(self, job: str, part: str) -> str:
        """The URL of a part."""
        return f"{self.url}/{job}/{part}"

    def _listing(self, job: str, part: str, expected: str | None) -> dict[str, str]:
        with self._reaching():
            path = self._path(f"{job}/{part}.json")
            if not self._system.exists(path):
                raise ServiceError(f"{self.where(job, part)} is not there, or not whole", status=404)
            content = self._system.cat_file(path)
        if expected is not None and _sha256(content) != expected:
            raise ServiceError(f"{self.where(job, part)} is {_sha256(content)}; {expected} was expected")
        files: dict[str, str] = json.loads(content)["files"]
        for name in files:
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ServiceError(f"{self.where(job, part)}: {name!r} leads out of it")
        return files

    def _send(self, source: Path, name: str, digest: str) -> None:
        self._say(f"sending {name}")
        path = self._path(name)
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._system.put_file(str(source), path)
        with self._system.open(path, "rb") as stream:
            if _of_stream(stream) != digest:
                raise ServiceError(f"{self.url}/{name} is not what was sent", status=500)

    def _fetch(self, name: str, target: Path, digest: str) -> None:
        self._say(f"fetching {name}")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._system.get_file(self._path(name), str(target))
        with target.open("rb") as stream:
            if _of_stream(stream) != digest:
                raise ServiceError(f"{self.url}/{name} does not match its digest", status=500)

    def _write(self, name: str, content: bytes) -> None:
        """Where renaming is cheap (a folder, but no object store) the file appears whole; there it does anyway."""
        path = self._path(name)
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        if "file" in _protocols(self._system):
            temporary = f"{path}.{uuid4().hex[:8]}"
            self._system.pipe_file(temporary, content)
            self._system.mv(temporary, path)
        else:
            self._system.pipe_file(path, content)

    def _forget(self, name: str) -> None:
        self._system.invalidate_cache()
        if self._system.exists(self._path(name)):
            self._system.rm(self._path(name), recursive=True)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """File systems raise what they like; the place and the way out are the same for all."""
        try:
            yield
        except ServiceError:
            raise
        except ImportError as error:
            raise ServiceError(f"artifacts_url {self.url}: {error}; install it with pip") from error
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise ServiceError(f"cannot reach {self.url}: {reason}", status=503) from error


def _digests(folder: Path, skip: tuple[str, ...]) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    kept = [name for name in names if name.split("/")[0] not in skip]
    return {name: _of_file(folder / name) for name in kept}


def _of_file(path: Path) -> str:
    with path.open("rb") as stream:
        return _of_stream(stream)


def _of_stream(stream: Any) -> str:
    digest = hashlib.sha256()
    while block := stream.read(CHUNK):
        digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _protocols(system: Any) -> tuple[str, ...]:
    named = system.protocol
    return (named,) if isinstance(named, str) else tuple(named)
