"""Folders that the server writes to, looked at before anything is promised."""

from __future__ import annotations

import os
import time
from pathlib import Path

from .errors import ServiceError


def make_folder(folder: Path, content: str) -> None:
    """Makes it, if need be.

    Args:
        content: What is to be kept in it, for the message.

    Raises:
        ServiceError: it cannot be made or written to.
    """
    problem = f"cannot keep {content} in {folder}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ServiceError(
            f"{problem}: {error.strerror}; set FEWSTEP_DATA_DIR to a folder that user {os.getuid()} may write to",
            status=500,
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ServiceError(
            f"{problem}: it is not writable for user {os.getuid()}; make it so or set FEWSTEP_DATA_DIR",
            status=500,
        )


def is_older(path: Path, seconds: float) -> bool:
    """Whether a file was last written to longer ago than this; one that another server has removed is."""
    try:
        return time.time() - path.stat().st_mtime > seconds
    except FileNotFoundError:
        return True
