"""Requests made from the served OpenAPI description, right and wrong: none is a 500, and answers are as described."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from _pytest.outcomes import Skipped
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.settings import Settings

from .fake_runtime import FakeRuntime, make_bundle
from .running import Running, run_server

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
BOUNDED = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    wanted = Settings(data_dir=tmp_path_factory.mktemp("data"), max_wait_ms=0, log_level="error")
    with run_server(wanted, {"fake": FakeRuntime(make_bundle((1, 2, 4, 8, 16)))}) as server:
        yield server


def operations(running: Running) -> list[Any]:
    schema = schemathesis.openapi.from_url(running.url + "/openapi.json")
    return [found.ok() for found in schema.get_all_operations()]


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.name.lower())
def test_no_request_that_the_description_leads_to_is_a_500(running: Running, mode: GenerationMode) -> None:
    asked = 0
    for operation in operations(running):
        cases = operation.as_strategy(generation_mode=mode)

        @BOUNDED
        @given(cases)
        def check(case: Any) -> None:
            nonlocal asked
            asked += 1
            case.call_and_validate(checks=CHECKS)

        with suppress(Unsatisfiable, Skipped):  # of an operation without parameters nothing can be wrong
            check()
    assert asked >= 20
    assert running.metric("fewstep_inflight_images") == 0


def test_the_description_has_the_routes(running: Running) -> None:
    paths = {operation.path for operation in operations(running)}
    assert "/v1/images/generations" in paths
    assert any(path.startswith("/v1/models") for path in paths)
