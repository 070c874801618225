"""Pages for people, health for machines, and a correct OpenAPI description."""

from __future__ import annotations

import re

import pytest

from service.models import Models
from service.settings import Settings

from .fake_runtime import FakeRuntime, make_bundle
from .running import Running, run_server


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_need_nothing_from_elsewhere(shared: Running, path: str) -> None:
    page = shared.client.get(path)
    assert page.headers["content-type"].startswith("text/html")
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", page.text)
    assert "@import" not in page.text
    for address in re.findall(r"""(?:src|href)=["'](/static/[^"']+)""", page.text):
        assert shared.client.get(address).status_code == 200, address
    assert "light-dark(" in shared.client.get("/static/css/tokens.css").text


def test_openapi_describes_errors_as_they_are(shared: Running) -> None:
    api = shared.client.get("/openapi.json").json()
    operation = api["paths"]["/v1/images/generations"]["post"]
    assert set(operation["responses"]) == {"200", "4XX", "5XX"}
    assert "HTTPValidationError" not in api["components"]["schemas"]
    assert api["components"]["schemas"]["ImagesRequest"]["additionalProperties"] is False
    rooms = (
        "/v1/distillation/jobs",
        "/v1/distillation/teachers",
        "/v1/fine_tuning/jobs",
        "/v1/files",
        "/v1/batches",
        "/v1/models/aliases",
    )
    assert all(prefix in api["paths"] for prefix in rooms)
    assert {path for path in api["paths"] if not path.startswith(rooms)} == {
        *(f"/v1/models/{{id}}/{what}" for what in ("load", "unload", "versions", "promote", "rollback")),
        "/v1/images/generations",
        "/v1/images/files/{name}",
        "/v1/models",
        "/v1/models/{id}",
        "/health/live",
        "/health/ready",
        "/metrics",
    }


def test_health(shared: Running) -> None:
    assert shared.client.get("/health/live").json()["status"] == "live"
    ready = shared.client.get("/health/ready")
    assert ready.json() == {"status": "ready", "models": {"fake": "ready", "other": "ready"}}


def test_ready_only_after_a_picture_at_every_declared_shape(settings: Settings) -> None:
    runtime = FakeRuntime(make_bundle((1, 4), ((64, 64), (64, 32))))
    with run_server(settings, {"fake": runtime}):
        for stage in ("encode", "denoise", "decode"):
            assert set(runtime.batches(stage)) == {1, 4}


def test_not_ready_while_draining_and_new_work_is_refused(settings: Settings) -> None:
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        models: Models = running.server.config.app.state.service.models  # type: ignore[union-attr]
        models._draining = True
        models.generators["fake"].close_door()
        assert running.client.get("/health/ready").status_code == 503
        assert running.client.get("/health/ready").json()["status"] == "draining"
        assert running.client.get("/health/live").status_code == 200
        refused = running.generate()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
