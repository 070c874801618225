from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import Settings

from .fake_runtime import FakeRuntime
from .running import Running, run_server


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, log_level="warning")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for the tests that only ask."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"), max_body_bytes=20_000)
    with run_server(settings, {"fake": FakeRuntime(), "other": FakeRuntime()}) as running:
        yield running
