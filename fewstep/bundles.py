"""`fewstep bundle`: the store of bundles."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import EngineError

from .commands import ending_cleanly

if TYPE_CHECKING:
    from engines.store import Entry, Store


@ending_cleanly()
def add(options: argparse.Namespace) -> None:
    bundle = _store().add(_find(options.bundle), options.name)
    print(f"{options.name or bundle.manifest.name} {bundle.digest}")


def show(options: argparse.Namespace) -> None:
    store = _store()
    entries = store.entries()
    if options.json:
        print(json.dumps([{**asdict(entry), "path": str(entry.path)} for entry in entries], indent=2))
    for entry in [] if options.json else entries:
        print(_line(entry))
    if not entries:
        print(f"no bundles in {store.folder}", file=sys.stderr)


def verify(options: argparse.Namespace) -> int:
    """Every digest and every certificate, of the bundles named or of all."""
    from engines.bundle import Bundle

    paths = [_find(name) for name in options.bundle] or [entry.path for entry in _store().entries()]
    failed = 0
    for path in paths:
        try:
            print(f"{path} {Bundle.load(path).digest} holds")
        except EngineError as error:
            failed += 1
            print(error)
    return 1 if failed else 0


def remove(options: argparse.Namespace) -> None:
    for name in options.name:
        print(f"{name} {_store().remove(name)}")


def gc(options: argparse.Namespace) -> None:
    garbage = _store().collect(options.dry_run)
    for entry in garbage:
        print(_line(entry))
    freed = sum(entry.size for entry in garbage) / 1e6
    count = f"{len(garbage)} bundle{'' if len(garbage) == 1 else 's'}"
    print(f"{count}, {freed:.1f} MB {'to be removed' if options.dry_run else 'removed'}")


def push(options: argparse.Namespace) -> None:
    from engines.bundle import Bundle
    from engines.transfer import push as send

    bundle = Bundle.load(_find(options.bundle))
    send(bundle, options.where)
    print(f"{options.where} {bundle.digest}")


@ending_cleanly()
def pull(options: argparse.Namespace) -> None:
    from engines.transfer import pull as fetch

    bundle = fetch(options.where, _store(), options.name, options.digest)
    print(f"{options.name or bundle.manifest.name} {bundle.digest}")


def _find(name: str) -> Path:
    from engines.store import find_bundle

    return find_bundle(name, _store().folder)


def _store() -> Store:
    from engines.store import Store
    from service.settings import read_settings

    return Store(read_settings().store)


def _line(entry: Entry) -> str:
    return f"{', '.join(entry.names) or '-'}  {entry.digest}  {entry.size / 1e6:.1f} MB"
