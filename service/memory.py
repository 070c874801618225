"""Memory of this process: how much it is, and giving back what nobody uses."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path


def resident_bytes() -> int:
    """Memory of this process; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Returns freed memory to the system, where the C library can.

    glibc keeps an arena for each thread, and in it what was freed below something that is still in use: whichever
    thread loads an engine leaves tens of megabytes of the loader's and of the former engine there.
    """
    if _trim is not None:
        _trim(0)


def _find_trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return None
    return trim


_trim = _find_trim()
