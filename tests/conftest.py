"""Fixtures that several rooms share: tiny pipelines of the real classes with random weights."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

# Here and in all processes that tests start, before the first of them loads PyTorch: its networks are tiny in tests, so
# a second thread makes them slower, and with another number of threads sums have other last digits.
os.environ["OMP_NUM_THREADS"] = "1"

import torch

from .tiny import new_pipeline

# A shared machine can stall any example; CI repeats the same examples, other runs look for new ones.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
"""Python's own, whoever started the tests: what runs in a shell's background ignores Ctrl-C, as would its children."""


@pytest.fixture(autouse=True)
def _process_as_it_was() -> Iterator[None]:
    """Programs that are run in this process, also by fixtures of a whole module, leave their signal handlers and
    PyTorch's threads to whoever comes next."""
    _restore()
    yield
    _restore()


def _restore() -> None:
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a tiny architecture -> its pipeline folder, made when first asked for."""

    @cache
    def folder(name: str) -> Path:
        made = tmp_path_factory.mktemp("teacher") / f"tiny-{name}"
        new_pipeline(name).save_pretrained(made)
        return made

    return folder


@pytest.fixture(scope="session")
def tiny_teacher(tiny: Callable[[str], Path]) -> Path:
    """A SANA-family pipeline folder, smaller than the shipped one and untrained."""
    return tiny("sana")
