"""Publishing: canary, then all; withdrawn, cancelled, interrupted and repeated; and what is served now is found."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from engines.bundle import Bundle
from engines.store import Store
from service.errors import ServiceError
from service.jobs.desk import Claim, Ending, Left, Over
from service.jobs.gate import Publish, Verdict
from service.jobs.leases import Lease
from service.jobs.publish import Publication, Remote, serving_bundle
from service.jobs.stages import Plan

from .test_conclude import SHIPPED

PASSED = Verdict(passed=True, checks=())
BUNDLE = Bundle.load(SHIPPED)


class Shelf:
    """A server of models that keeps versions in a list, the newest first."""

    def __init__(self, *known: dict[str, Any]) -> None:
        self.kept: list[dict[str, Any]] = list(known)
        self.calls: list[str] = []

    def versions(self, model: str) -> list[Mapping[str, Any]]:
        return [dict(one) for one in self.kept]

    def publish(
        self, model: str, bundle: Path, share: float, reason: str, gate: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        self.calls.append(f"publish {share:g}")
        state = "canary" if share < 1 and self.kept else "serving"
        version = {
            "id": f"{model}@{len(self.kept) + 1}",
            "digest": Bundle.load(bundle).digest,
            "state": state,
            "published_at": 0 if state == "serving" else self.now,
            "reason": reason,
            "gate": dict(gate),
        }
        self.kept.insert(0, version)
        return version

    now = 0.0

    def promote(self, model: str) -> None:
        self.calls.append("promote")
        for one in self.kept:
            one["state"] = {"canary": "serving", "serving": "previous"}.get(one["state"], one["state"])

    def rollback(self, model: str) -> None:
        self.calls.append("rollback")
        for one in self.kept:
            one["state"] = "retired" if one["state"] == "canary" else one["state"]


def served(state: str = "serving", digest: str = "sha256:0", job: str = "another") -> dict[str, Any]:
    return {"id": "small@1", "digest": digest, "state": state, "published_at": 0, "gate": {"job": job}}


def publish(
    shelf: Shelf, tmp_path: Path, rest: Any = lambda: None, canary: float = 0.2, seconds: float = 0.0
) -> dict[str, Any]:
    claim = Claim(Lease("job-1", 1), Plan(tmp_path, "small", {}))
    wanted = Publish(model="small", canary=canary, canary_seconds=seconds)
    return Publication(shelf).publish(claim, wanted, BUNDLE, PASSED, rest)


def test_a_share_first_and_then_all(tmp_path: Path) -> None:
    shelf = Shelf(served())
    version = publish(shelf, tmp_path)
    assert shelf.calls == ["publish 0.2", "promote"]
    assert version == {"id": "small@2", "digest": BUNDLE.digest, "state": "serving"}
    assert shelf.kept[0]["gate"] == {"job": "job-1", "passed": True, "checks": []}
    assert shelf.kept[0]["reason"] == "job job-1"
    assert shelf.kept[1]["state"] == "previous"


def test_without_a_canary_or_a_model_all_at_once(tmp_path: Path) -> None:
    for shelf, canary in ((Shelf(served()), 0.0), (Shelf(), 0.2)):
        assert publish(shelf, tmp_path, canary=canary)["state"] == "serving"
        assert shelf.calls == [f"publish {canary or 1:g}"]


def test_published_again_after_a_crash_it_is_the_same_version(tmp_path: Path) -> None:
    shelf = Shelf(served())
    first = publish(shelf, tmp_path)
    assert publish(shelf, tmp_path) == first
    assert shelf.calls == ["publish 0.2", "promote"]


def test_an_interrupted_trial_goes_on(tmp_path: Path) -> None:
    shelf = Shelf(served())
    shelf.now = 4e9  # published in the future, so that the trial does not end

    def leave() -> None:
        raise Left

    with pytest.raises(Left):
        publish(shelf, tmp_path, leave, seconds=60)
    assert shelf.calls == ["publish 0.2"]
    shelf.kept[0]["published_at"] = 0
    publish(shelf, tmp_path, seconds=60)
    assert shelf.calls == ["publish 0.2", "promote"]


def test_a_cancelled_job_withdraws_its_canary(tmp_path: Path) -> None:
    shelf = Shelf(served())
    shelf.now = 4e9

    def cancelled() -> None:
        raise Over(Ending("cancelled", "The job was cancelled."))

    with pytest.raises(Over):
        publish(shelf, tmp_path, cancelled, seconds=60)
    assert shelf.calls == ["publish 0.2", "rollback"]


def test_a_canary_that_somebody_withdraws_is_not_promoted(tmp_path: Path) -> None:
    shelf = Shelf(served())
    shelf.now = 4e9
    with pytest.raises(ServiceError, match="small@2 was withdrawn while it was on trial"):
        publish(shelf, tmp_path, lambda: shelf.rollback("small"), seconds=60)
    with pytest.raises(ServiceError, match="small@2 was withdrawn"):
        publish(shelf, tmp_path)
    assert shelf.calls == ["publish 0.2", "rollback"]


def test_a_canary_that_stops_drawing_is_withdrawn(tmp_path: Path) -> None:
    shelf = Shelf(served())
    shelf.now = 4e9
    with pytest.raises(ServiceError, match="small@2 stopped drawing"):
        publish(shelf, tmp_path, lambda: shelf.kept[0].update(healthy=False), seconds=60)
    assert shelf.calls == ["publish 0.2", "rollback"]


def test_the_bundle_that_serves_now_is_found_where_it_lies(tmp_path: Path) -> None:
    store = tmp_path / "bundles"
    assert serving_bundle(Shelf(), store, "small") is None
    assert serving_bundle(Shelf(served(digest=BUNDLE.digest)), store, "small") == SHIPPED
    other = tmp_path / "other"
    shutil.copytree(SHIPPED, other)
    manifest = json.loads((other / "bundle.json").read_text())
    (other / "bundle.json").write_text(json.dumps({**manifest, "name": "other"}))
    digest = Store(store).add(other, "other").digest
    assert serving_bundle(Shelf(served(digest=digest)), store, "small") == Store(store).find("other")
    with pytest.raises(ServiceError, match="worker and server share one data folder"):
        serving_bundle(Shelf(served(digest="sha256:" + "0" * 64)), store, "small")


@pytest.fixture
def answers() -> Iterator[tuple[str, list[tuple[int, Any]], list[tuple[str, str, Any, str | None]]]]:
    """A server that gives the answers laid ready, and what it was asked."""
    ready: list[tuple[int, Any]] = []
    asked: list[tuple[str, str, Any, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            content = json.loads(body) if body else None
            asked.append((self.command, self.path, content, self.headers.get("authorization")))
            status, answer = ready.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        do_GET = do_POST

        def log_message(self, *_arguments: object) -> None:
            """Says nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", ready, asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_at_an_address_is_asked_by_its_api(answers: Any) -> None:
    url, ready, asked = answers
    remote = Remote(url, "secret")
    ready += [(404, {"error": {"message": "none"}}), (200, {"data": [served()]}), (200, served()), (200, {})]
    assert remote.versions("small") == []
    assert remote.versions("small") == [served()]
    assert remote.publish("small", SHIPPED, 0.5, "job 1", {"job": "1"}) == served()
    remote.promote("small")
    body = {"bundle": str(SHIPPED), "share": 0.5, "reason": "job 1", "gate": {"job": "1"}}
    assert asked == [
        ("GET", "/v1/models/small/versions", None, "Bearer secret"),
        ("GET", "/v1/models/small/versions", None, "Bearer secret"),
        ("POST", "/v1/models/small/versions", body, "Bearer secret"),
        ("POST", "/v1/models/small/promote", None, "Bearer secret"),
    ]


def test_what_the_server_refuses_is_told_in_its_words(answers: Any) -> None:
    url, ready, _ = answers
    ready += [(409, {"error": {"message": "'small' has no canary to promote."}})]
    with pytest.raises(ServiceError, match="has no canary to promote") as caught:
        Remote(url).promote("small")
    assert caught.value.status == 409


def test_a_server_that_is_not_there_is_said() -> None:
    with pytest.raises(ServiceError, match=r"http://127.0.0.1:9/? does not answer"):
        Remote("http://127.0.0.1:9").rollback("small")
