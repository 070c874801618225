"""Values beyond what floating point, headers and clocks can hold."""

from __future__ import annotations

import pytest

from service.errors import ServiceError
from service.settings import read_settings

from .running import Running


def test_a_deadline_beyond_floating_point(shared: Running) -> None:
    response = shared.client.post(
        "/v1/images/generations",
        content='{"prompt": "a", "deadline_ms": 1' + "0" * 400 + "}",
        headers={"content-type": "application/json"},
    )
    assert (response.status_code, response.json()["error"]["param"]) == (400, "deadline_ms")


def test_metrics_of_an_unknown_version(shared: Running) -> None:
    accept = {"accept": "application/openmetrics-text; version=abc"}
    assert shared.client.get("/metrics", headers=accept).status_code == 200


def test_an_endless_drain() -> None:
    with pytest.raises(ServiceError, match="FEWSTEP_DRAIN_SECONDS"):
        read_settings(drain_seconds="inf")
