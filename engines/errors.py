"""The one error type of this room."""

from __future__ import annotations


class EngineError(Exception):
    """A bundle, graph or request that cannot be used; the message says what was wrong, where, and
    what would do. Exit code 2 at the command line."""
