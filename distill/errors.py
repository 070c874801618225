"""The one error type of this room."""

from __future__ import annotations


class DistillError(Exception):
    """A request that cannot be met; the message says what was wrong, where, and what would do.

    The command line turns it into exit code 2.
    """


class RunFailed(Exception):
    """Work that started well and then failed (NaN, collapse); exit code 1 at the command line."""


class Interrupted(Exception):
    """Asked to stop, and the state is saved; exit code 130."""
