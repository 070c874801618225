"""Batches over a real socket, driven by the official client."""

from __future__ import annotations

import base64
import io
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from pydantic import SecretStr
from sqlalchemy import update

from service.jobs.tables import BatchRow
from service.keys import add_key
from service.settings import Settings

from ..fake_runtime import FakeRuntime, make_bundle
from ..running import wait_until
from .office import URL, jsonl, line, office_of, open_office

SMALL = make_bundle(sizes=((64, 64),))


def pixels(encoded: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def test_the_official_client_takes_a_batch_from_its_file_to_its_pictures(
    settings: Settings, url: str
) -> None:
    own = settings.model_copy(update={"database_url": SecretStr(url)})
    with open_office(own, FakeRuntime()) as office:
        lines = [
            line("first", seed=7),
            line("two", prompt="a blue star", seed=1, n=2, num_inference_steps=2),
            line("small", seed=3, size="64x32", output_format="webp", output_compression=80),
            line("unknown size", seed=3, size="32x32"),
            line("other model", model="nothing"),
            line("bad-denoise", prompt="bad-denoise"),
        ]
        batch = office.submit(lines, metadata={"team": "a"})
        assert (batch.object, batch.endpoint, batch.completion_window) == ("batch", URL, "24h")
        assert batch.status == "validating"
        assert batch.expires_at == batch.created_at + 24 * 3600
        assert (batch.metadata, batch.errors, batch.request_counts.total) == ({"team": "a"}, None, 6)

        ended = office.wait(batch.id)
        assert ended.status == "completed"
        counts = ended.request_counts
        assert (counts.total, counts.completed, counts.failed) == (6, 3, 3)
        assert ended.created_at <= ended.in_progress_at <= ended.finalizing_at <= ended.completed_at
        assert (ended.failed_at, ended.expired_at, ended.cancelled_at) == (None, None, None)

        output = office.read(ended.output_file_id)
        assert [one["custom_id"] for one in output] == ["first", "two", "small"]
        for one, asked in zip(output, lines):
            assert set(one) == {"id", "custom_id", "response", "error"}
            assert one["error"] is None
            assert one["id"].startswith("batch_req_")
            assert (one["response"]["status_code"], one["response"]["request_id"][:4]) == (200, "req_")
            drawn = one["response"]["body"]
            live = office.running.generate(**asked["body"]).json()
            assert drawn.pop("created") > 0
            live.pop("created")
            assert drawn == live, "bit for bit, and all that is said of it"
        first = pixels(output[0]["response"]["body"]["data"][0]["b64_json"])
        assert first.shape == (64, 64, 3)
        assert first.std() > 0

        errors = {one["custom_id"]: one["response"] for one in office.read(ended.error_file_id)}
        assert list(errors) == ["unknown size", "other model", "bad-denoise"]
        assert [one["status_code"] for one in errors.values()] == [400, 404, 500]
        assert errors["unknown size"]["body"]["error"]["param"] == "size"
        assert errors["other model"]["body"]["error"]["code"] == "model_not_found"
        assert errors["bad-denoise"]["body"]["error"]["type"] == "server_error"

        made = office.openai.files.retrieve(ended.output_file_id)
        assert (made.purpose, made.filename) == ("batch_output", f"{batch.id}_output.jsonl")
        assert office.running.metric("fewstep_batch_requests_total", outcome="ok") == 3
        assert office.running.metric("fewstep_batch_requests_total", outcome="invalid") == 2
        assert office.running.metric("fewstep_batch_requests_total", outcome="error") == 1
        assert not (own.data_dir / "batches" / batch.id).exists(), "what was kept until the end is gone"
        office.openai.files.delete(ended.output_file_id)
        office.openai.files.delete(batch.input_file_id)


@pytest.mark.slow
def test_pages_hold_every_batch_once(settings: Settings) -> None:
    with open_office(settings, FakeRuntime(SMALL)) as office:
        made = [office.submit([line("a", num_inference_steps=1)]).id for _ in range(5)]
        assert [batch.id for batch in office.openai.batches.list(limit=2)] == made[::-1]
        with pytest.raises(openai.NotFoundError, match="batch_x"):
            office.openai.batches.list(after="batch_x")
        for id in made:
            assert office.wait(id).status == "completed"
        wait_until(lambda: office.running.metric("fewstep_batches", status="completed") == 5)


def test_a_repeated_request_makes_one_batch(settings: Settings) -> None:
    with open_office(settings, FakeRuntime(SMALL)) as office:
        file = office.send([line("a")])
        asked: dict[str, Any] = {"endpoint": URL, "completion_window": "24h", "input_file_id": file}
        again = {"extra_headers": {"Idempotency-Key": "k"}}
        first = office.openai.batches.create(**asked, **again)
        assert office.openai.batches.create(**asked, **again).id == first.id
        with pytest.raises(openai.UnprocessableEntityError, match="other fields"):
            office.openai.batches.create(**asked, metadata={"a": "b"}, **again)


def test_a_cancelled_batch_keeps_what_was_finished(settings: Settings) -> None:
    runtime = FakeRuntime(SMALL)
    with open_office(settings, runtime) as office:
        lines = [line(f"line {number}", seed=number) for number in range(200)]
        runtime.image_seconds = 0.01
        batch = office.submit(lines)
        wait_until(lambda: office.openai.batches.retrieve(batch.id).request_counts.completed >= 3, 30)
        with pytest.raises(openai.ConflictError, match=batch.id):
            office.openai.files.delete(batch.input_file_id)
        asked: Any = office.openai.batches.cancel(batch.id)
        assert (asked.status, asked.cancelling_at is None) == ("cancelling", False)
        ended = office.wait(batch.id)
        assert (ended.status, ended.cancelled_at is None) == ("cancelled", False)
        finished = ended.request_counts.completed
        assert 3 <= finished < 200
        output, errors = office.read(ended.output_file_id), office.read(ended.error_file_id)
        assert (len(output), len(errors)) == (finished, 200 - finished)
        names = {one["custom_id"] for one in [*output, *errors]}
        assert names == {one["custom_id"] for one in lines}
        assert {one["error"]["code"] for one in errors} == {"batch_cancelled"}
        assert all(one["response"] is None for one in errors)
        with pytest.raises(openai.ConflictError, match="has ended"):
            office.openai.batches.cancel(batch.id)
        assert office.running.metric("fewstep_batch_requests_total", outcome="cancelled") == 200 - finished
        assert office.running.generate().status_code == 200, "the engine is free again"


@pytest.mark.slow
def test_a_batch_expires_with_its_window(settings: Settings) -> None:
    runtime = FakeRuntime(SMALL)
    with open_office(settings, runtime) as office:
        batch = office.submit([line(f"line {number}") for number in range(30)])
        wait_until(lambda: office.openai.batches.retrieve(batch.id).status != "validating")
        runtime.gate.clear()
        application: Any = office.running.server.config.app
        with application.state.service.jobs.database.begin() as session:
            session.execute(update(BatchRow).values(expires_at=int(time.time()) - 1))
    with open_office(settings, FakeRuntime(SMALL)) as office:  # whoever takes it next finds its time over
        ended = office.wait(batch.id)
        assert (ended.status, ended.expired_at is None) == ("expired", False)
        errors = office.read(ended.error_file_id)
        assert {one["error"]["code"] for one in errors} == {"batch_expired"}
        assert len(errors) == 30 - ended.request_counts.completed
    runtime.gate.set()


def test_live_requests_are_served_as_without_a_batch(settings: Settings) -> None:
    """With a batch on hand as large as can be, a full queue of live requests is taken and goes first."""
    runtime = FakeRuntime(SMALL, call_seconds=0.01)
    small = settings.model_copy(update={"queue_limit": 8})
    with open_office(small, runtime) as office:
        batch = office.submit([line(f"line {number}", seed=number) for number in range(60)])
        wait_until(lambda: office.openai.batches.retrieve(batch.id).request_counts.completed > 0, 30)
        statuses: list[int] = []

        def ask(seed: int) -> None:
            statuses.append(
                httpx.post(
                    office.running.url + URL, json={"prompt": "a", "seed": seed}, timeout=60
                ).status_code
            )

        for _ in range(3):
            threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        assert statuses == [200] * 24, "none refused, though the queue holds eight"
        assert office.wait(batch.id).status == "completed"


def test_batches_belong_to_their_keys(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "keys.jsonl"
    alice, bob, chief = (
        add_key(file, "alice"),
        add_key(file, "bob"),
        add_key(file, "chief", admin=True),
    )
    own = settings.model_copy(update={"api_keys": file, "batch_queue_limit": 1})
    runtime = FakeRuntime(SMALL)
    with open_office(own, runtime, alice) as office:
        others = {key: office_of(office.running, key) for key in (bob, chief)}
        runtime.gate.clear()
        batch = office.submit([line("a")])
        with pytest.raises(openai.RateLimitError, match="1 of your batches"):
            office.submit([line("a")])
        theirs = others[bob].submit([line("b")])
        assert [one.id for one in office.openai.batches.list()] == [batch.id]
        assert [one.id for one in others[chief].openai.batches.list()] == [theirs.id, batch.id]
        for ask in (others[bob].openai.batches.retrieve, others[bob].openai.batches.cancel):
            with pytest.raises(openai.NotFoundError, match=batch.id):
                ask(batch.id)
        asked: dict[str, Any] = {"endpoint": URL, "completion_window": "24h"}
        with pytest.raises(openai.NotFoundError, match="no file"):
            others[bob].openai.batches.create(input_file_id=batch.input_file_id, **asked)
        runtime.gate.set()
        ended = office.wait(batch.id)
        assert office.read(ended.output_file_id)[0]["custom_id"] == "a"
        with pytest.raises(openai.NotFoundError):
            others[bob].openai.files.content(ended.output_file_id)


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (b"\n \n", "empty_file", "no request"),
        (b"nonsense\n", "invalid_batch_file", "Line 1: It is not JSON, but 'nonsense'"),
        (b"[1]\n", "invalid_batch_file", "no JSON object"),
        (b'{"custom_id": "\xff"}\n', "invalid_batch_file", "byte 0xff"),
        (
            jsonl([line("a"), line("b"), line("a")]),
            "invalid_batch_file",
            "Line 3: Invalid 'custom_id': line 1",
        ),
        (jsonl([line("")]), "invalid_batch_file", "'custom_id'"),
        (jsonl([{**line("a"), "method": "GET"}]), "invalid_batch_file", "Invalid 'method'"),
        (jsonl([{**line("a"), "url": "/v1/x"}]), "invalid_batch_file", "Invalid 'url'"),
        (jsonl([{**line("a"), "more": 1}]), "invalid_batch_file", "Unknown parameter: 'more'"),
        (jsonl([{"custom_id": "a"}]), "invalid_batch_file", "Missing required parameter: 'method'"),
        (jsonl([line("a", seed=-1)]), "invalid_batch_file", "Invalid 'body.seed'"),
        (jsonl([line("a", sedd=1)]), "invalid_batch_file", "Unknown parameter: 'body.sedd'"),
        (jsonl([line("a", stream=True)]), "invalid_batch_file", "streams nothing"),
        (jsonl([line("a", response_format="url")]), "invalid_batch_file", "b64_json"),
        (jsonl([line("a", deadline_ms=10)]), "invalid_batch_file", "completion_window"),
        (jsonl([line("a", prompt="x" * 5000)]), "invalid_batch_file", "longer than 4096 bytes"),
        (jsonl([line(str(number)) for number in range(21)]), "too_many_requests", "more than 20 requests"),
        (jsonl([line("a", n=0)] * 9), "invalid_batch_file", "9 of 9 lines"),
    ],
)
def test_a_bad_file_is_told_by_line_and_makes_no_batch(
    bounded: Any, content: bytes, code: str, says: str
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        bounded.submit(content)
    assert (raised.value.code, raised.value.param) == (code, "input_file_id")
    assert says in raised.value.message
    assert len(raised.value.message) < 1000
    assert bounded.openai.batches.list().data == []


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    own = Settings(
        data_dir=tmp_path_factory.mktemp("data"), log_level="error", batch_max_lines=20, max_body_bytes=4096
    )
    with open_office(own, FakeRuntime(SMALL)) as office:
        yield office


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"endpoint": "/v1/embeddings"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"input_file_id": "file-nothing"}, 404, "input_file_id"),
        ({"input_file_id": 3}, 400, "input_file_id"),
        ({"metadata": {"a": 1}}, 400, "metadata.a"),
        ({"metadata": {str(number): "" for number in range(17)}}, 400, "metadata"),
        ({"surplus": 1}, 400, "surplus"),
    ],
)
def test_bad_fields_are_told(bounded: Any, changes: dict[str, Any], status: int, param: str) -> None:
    body = {
        "input_file_id": bounded.send([line("a")]),
        "endpoint": URL,
        "completion_window": "24h",
        **changes,
    }
    answer = bounded.running.client.post("/v1/batches", json=body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param


def test_a_file_for_another_purpose_is_refused(bounded: Any) -> None:
    file = bounded.openai.files.create(file=("a.jsonl", jsonl([line("a")])), purpose="fine-tune")
    body = {"input_file_id": file.id, "endpoint": URL, "completion_window": "24h"}
    answer = bounded.running.client.post("/v1/batches", json=body)
    assert answer.status_code == 400
    assert "purpose" in answer.json()["error"]["message"]
