"""Bundles to and from anywhere that fsspec reaches: `s3://`, `gs://`, `ssh://`, a folder, the hub."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from .bundle import MANIFEST, Bundle, leads_out, sha256
from .errors import EngineError
from .store import Store, check_name

HUB = "hf://"
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w.-]+")
FULL = (errno.ENOSPC, errno.EDQUOT)

Say = Callable[[str], None]


def push(bundle: Bundle, where: str, say: Say = print) -> None:
    """Copies a bundle, whose digests have been checked, to `where`.

    The manifest goes last, and one that was there before is removed first: whoever reads meanwhile
    finds a whole bundle or none.

    Args:
        bundle: What to copy.
        where: An fsspec URL, a folder, or `owner/repository` on the hub.
        say: Is told of each file.

    Raises:
        EngineError: the place cannot be written, holds something else, or a file has another length there.
    """
    with _reaching(where):
        system, root = _place(where)
        if where_is_hub(where):
            _make_repository(where)
        elif others := _others(system, root, bundle):
            raise EngineError(f"{where} is not a bundle, it has {others[0]}: give a new place")
        if system.exists(f"{root}/{MANIFEST}"):
            system.rm(f"{root}/{MANIFEST}")
        for name in (*bundle.manifest.files, MANIFEST):
            say(f"sending {name}")
            source, target = bundle.path / name, f"{root}/{name}"
            system.makedirs(target.rpartition("/")[0], exist_ok=True)
            system.put_file(str(source), target)
            if (sent := system.size(target)) != source.stat().st_size:
                raise EngineError(f"{where}: {name} has {sent} bytes there, {source.stat().st_size} here")


def pull(
    where: str, store: Store, name: str | None = None, expected: str | None = None, say: Say = print
) -> Bundle:
    """Fetches the bundle at `where` into the store under `name`, by default its own.

    Raises:
        EngineError: there is none, a file does not match its digest, the bundle is not the `expected`
            one, or the name cannot be used. The store is as it was then.
    """
    return store.receive(lambda folder: _fetch(where, folder, name, expected, say), name, expected)


def where_is_hub(where: str) -> bool:
    """Whether `where` is `owner/repository` on the hub rather than a folder that is here."""
    return REPOSITORY.fullmatch(where) is not None and not Path(where).exists()


def _fetch(where: str, folder: Path, name: str | None, expected: str | None, say: Say) -> None:
    """The manifest first: it says what else there is, and whether it is the one wanted."""
    with _reaching(where):
        system, root = _place(where)
        try:
            content = system.cat_file(f"{root}/{MANIFEST}")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise EngineError(f"{where} is not a bundle: it has no {MANIFEST}") from error
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        if expected is not None and digest != expected:
            raise EngineError(f"{where} is {digest}; {expected} was expected")
        (folder / MANIFEST).write_bytes(content)
        files, own = _listed(where, content)
        check_name(own if name is None else name)
        for file, known in files.items():
            say(f"fetching {file}")
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            try:
                system.get_file(f"{root}/{file}", str(folder / file))
            except FileNotFoundError as error:
                raise EngineError(f"{where}: {file} is missing there; push the bundle again") from error
            if sha256(folder / file) != known:
                raise EngineError(f"{where}: {file} does not match its digest there; push the bundle again")


def _listed(where: str, manifest: bytes) -> tuple[dict[str, str], str]:
    """The digests of the bundle's files, and its name."""
    try:
        content = json.loads(manifest)
        files, name = dict(content["files"]), str(content["name"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise EngineError(f"{where}/{MANIFEST} is no manifest of a bundle") from error
    for file in filter(leads_out, files):
        raise EngineError(f"{where}/{MANIFEST}: {file!r} leads out of the bundle")
    return files, name


def _others(system: Any, root: str, bundle: Bundle) -> list[str]:
    """What lies at a place that is no bundle, and is not from a push of this one that was cut off."""
    if system.exists(f"{root}/{MANIFEST}") or not system.isdir(root):
        return []
    there = sorted(str(path).rstrip("/").rpartition("/")[2] for path in system.ls(root, detail=False))
    own = {PurePosixPath(file).parts[0] for file in bundle.manifest.files}
    return [name for name in there if name and name not in own]


def _place(where: str) -> tuple[Any, str]:
    """The file system, and the path in it."""
    system, root = fsspec.core.url_to_fs(HUB + where if where_is_hub(where) else where)
    return system, root.rstrip("/")


def _make_repository(where: str) -> None:
    from huggingface_hub import create_repo

    create_repo(where, exist_ok=True)


@contextmanager
def _reaching(where: str) -> Iterator[None]:
    """File systems raise what they like; the place and the way out are the same for all."""
    try:
        yield
    except EngineError:
        raise
    except ImportError as error:
        raise EngineError(f"{where}: {error}; install it with pip") from error
    except OSError as error:
        if error.errno not in FULL:
            raise EngineError(f"cannot reach {where}: {error.strerror or error}") from error
        file = error.filename2 or error.filename or where
        raise EngineError(f"cannot write {file}: {error.strerror}") from error
    except Exception as error:
        raise EngineError(f"cannot reach {where}: {error or type(error).__name__}") from error
