"""What TensorRT learns about a GPU and should not learn twice: small files under `~/.cache/fewstep`.

A lost, stale or foreign cache costs time and nothing else, so none is ever an error.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cache:
    """One file, empty if it is not there."""

    path: Path

    def read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError:
            return b""

    def write(self, content: bytes) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{uuid4().hex[:8]}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            temporary.replace(self.path)
        except OSError as error:
            log.warning("cannot keep %s: %s", self.path, error)


def timing_cache(target: str) -> Cache:
    """Times of kernels that TensorRT measures when it builds, for a GPU and version."""
    return Cache(_home() / f"{target}.timing")


def runtime_cache(identity: str) -> Cache:
    """Kernels that TensorRT-RTX compiles when it runs a plan."""
    return Cache(_home() / f"{identity.removeprefix('sha256:')[:32]}.kernels")


def _home() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(home).expanduser() / "fewstep" / "tensorrt"
