"""Jobs and files over REST, driven by the official client; what runs them is played by the test."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image
from pydantic import SecretStr

from service.keys import add_key
from service.settings import Settings

from ..fake_runtime import FakeRuntime
from ..running import Running, run_server, wait_until
from .office import FOREVER, Office

JOBS = "/v1/distillation/jobs"
TEACHERS = "/v1/distillation/teachers"


@dataclass
class Bureau(Office):
    """With clients."""

    openai: openai.OpenAI

    def submit(self, **changes: Any) -> Any:
        body = {"model": "shapes-sana", "training_file": "shapes:train", **changes}
        return self.openai.fine_tuning.jobs.create(**body)

    def post(self, **changes: Any) -> httpx.Response:
        body = {"model": "shapes-sana", "training_file": "shapes:train", **changes}
        return self.running.client.post(JOBS, json=body)


@pytest.fixture
def office(settings: Settings, url: str) -> Iterator[Bureau]:
    own = settings.model_copy(update={"jobs_queue_limit": 5, "max_file_bytes": 4096, "jobs_workers": False})
    own = own.model_copy(update={"database_url": SecretStr(url)})
    with run_server(own, {"fake": FakeRuntime()}) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        yield Bureau(running, client)


def test_the_official_client_drives_a_job_through_its_life(office: Bureau, tmp_path: Path) -> None:
    jobs = office.openai.fine_tuning.jobs
    content = b'{"prompt": "a red circle"}\n{"prompt": "a blue star"}\n'
    file = office.openai.files.create(file=("prompts.jsonl", content), purpose="fine-tune")
    job = jobs.create(
        model="shapes-sana",
        training_file=file.id,
        method={"type": "sid", "sid": {"iterations": 20, "optimizer": {"lr_fake": 0.001}}},  # type: ignore[typeddict-item]
        suffix="mine",
        seed=7,
        metadata={"team": "a"},
        extra_body={
            "gate": {"at_least": {"accuracy": 0.9}},
            "publish": {"model": "shapes", "canary": 0.2},
        },
    )
    assert (job.object, job.status, job.seed, job.metadata) == ("fine_tuning.job", "queued", 7, {"team": "a"})
    assert job.training_file == file.id
    sent: Any = job.to_dict()
    assert sent["method"]["sid"]["iterations"] == 20
    assert sent["method"]["sid"]["optimizer"] == {
        "lr_generator": 0.0001,
        "lr_fake": 0.001,
        "schedule": "cosine",
    }
    assert sent["publish"]["canary"] == 0.2

    lease = office.take()
    assert jobs.retrieve(job.id).status == "running"
    for number in range(25):
        office.store.say(lease, f"step {number}", kind="metrics", data={"step": number})
    office.store.checkpoint(lease, 10, {"accuracy": 0.5}, "grid.png")
    office.store.checkpoint(lease, 20, {"accuracy": 0.7}, None)
    (office.jobs.folder / job.id).mkdir(parents=True)
    Image.new("RGB", (4, 4), "red").save(office.jobs.folder / job.id / "grid.png")

    messages = [event.message for event in jobs.list_events(job.id, limit=10)]  # turns its pages by itself
    assert messages == [
        *(f"step {number}" for number in reversed(range(25))),
        "The job is running.",
        "The job waits for a runner.",
    ]
    checkpoints = list(jobs.checkpoints.list(job.id, limit=1))
    assert [one.step_number for one in checkpoints] == [20, 10]
    assert checkpoints[1].metrics.step == 10
    grid = office.running.client.get(checkpoints[1].to_dict()["sample_url"])  # type: ignore[arg-type]
    assert Image.open(io.BytesIO(grid.content)).size == (4, 4)
    assert checkpoints[0].to_dict()["sample_url"] is None

    office.store.heartbeat(lease, FOREVER, {"percent": 50.0, "eta_seconds": 100})
    running = jobs.retrieve(job.id)
    assert (running.estimated_finish or 0) >= running.created_at + 99
    assert running.to_dict()["progress"] == {"percent": 50.0, "eta_seconds": 100}
    with pytest.raises(openai.ConflictError, match=job.id):
        office.openai.files.delete(file.id)
    office.store.finish(lease, "succeeded", "Done.", "shapes-mine", {"published": False, "reasons": ["no"]})
    ended = jobs.retrieve(job.id)
    assert (ended.status, ended.fine_tuned_model) == ("succeeded", "shapes-mine")
    assert ended.to_dict()["result"] == {"published": False, "reasons": ["no"]}
    for change in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(openai.ConflictError, match=r"has ended \(succeeded\)"):
            change(job.id)
    assert office.openai.files.delete(file.id).deleted


def test_pausing_resuming_and_cancelling(office: Bureau) -> None:
    jobs = office.openai.fine_tuning.jobs
    job = office.submit()
    assert [jobs.pause(job.id).status, jobs.resume(job.id).status] == ["paused", "queued"]
    lease = office.take()
    assert jobs.pause(job.id).to_dict()["requested"] == "pause"
    assert jobs.cancel(job.id).to_dict()["requested"] == "cancel"
    assert office.store.heartbeat(lease, FOREVER, {}) == "cancel"
    office.store.finish(lease, "cancelled", "The job was cancelled.")
    assert jobs.retrieve(job.id).status == "cancelled"
    waiting = office.submit()
    assert jobs.cancel(waiting.id).status == "cancelled"


def test_lists_have_pages_and_filters(office: Bureau) -> None:
    made = [office.submit(metadata={"team": "ab"[number % 2]}).id for number in range(5)]
    jobs = office.openai.fine_tuning.jobs
    assert [job.id for job in jobs.list(limit=2)] == made[::-1]
    first = jobs.list(limit=2, after=made[3])
    assert ([job.id for job in first.data], first.has_more) == ([made[2], made[1]], True)
    assert [job.id for job in jobs.list(metadata={"team": "b"})] == [made[3], made[1]]
    assert office.running.client.get("/v1/fine_tuning/jobs").json()["first_id"] == made[4]
    with pytest.raises(openai.NotFoundError, match="no job"):
        jobs.list(after="ftjob-none")
    for query in ("limit=0", "limit=101", "limit=x", 'metadata[a"b]=c', "metadata[a]=%00"):
        assert office.running.client.get(f"{JOBS}?{query}").status_code == 400, query


def test_teachers_are_listed_with_what_a_job_of_each_would_do(office: Bureau) -> None:
    listed = office.running.client.get(TEACHERS).json()
    assert listed["object"] == "list"
    recipes = {each["id"]: each["recipe"] for each in listed["data"]}
    assert (recipes["shapes-sana"]["iterations"], recipes["shapes-sd3"]["iterations"]) == (360, 480)
    sent = {key: value for key, value in recipes["shapes-sana"].items() if value is not None}
    assert office.post(method={"type": "sid", "sid": sent}).status_code == 200


def test_a_full_queue_refuses(office: Bureau) -> None:
    for _ in range(5):
        office.submit()
    with pytest.raises(openai.RateLimitError, match="5 jobs are waiting, and the queue holds 5") as raised:
        office.submit()
    assert raised.value.code == "queue_full"
    assert raised.value.response.headers["retry-after"]


def test_an_idempotency_key_makes_one_job(office: Bureau) -> None:
    headers = {"Idempotency-Key": "k"}
    first = office.submit(extra_headers=headers)
    assert office.submit(extra_headers=headers).id == first.id
    with pytest.raises(openai.UnprocessableEntityError, match="other fields"):
        office.submit(seed=1, extra_headers=headers)
    with pytest.raises(openai.BadRequestError, match="1 to 255"):
        office.submit(extra_headers={"Idempotency-Key": "k" * 256})


@pytest.mark.parametrize(
    ("changes", "param", "says"),
    [
        ({"model": "nobody"}, "model", "known: shapes-sana, shapes-sd3, shapes-flux"),
        ({"model": 3}, "model", "string"),
        ({"training_file": "shapes:test"}, "training_file", "shapes:held-out"),
        ({"training_file": "/etc/passwd"}, "training_file", "a file's id"),
        ({"method": {"type": "dpo"}}, "method.type", "'sid'"),
        ({"method": {"type": "sid", "sid": {"iteratons": 3}}}, "method.sid.iteratons", "iterations"),
        ({"method": {"type": "sid", "sid": {"steps": 9}}}, "method.sid.steps", "maximum of 4"),
        ({"method": {"type": "sid", "sid": {"batch": 48.0}}}, "method.sid.batch", "integer"),
        ({"method": {"type": "sid", "sid": {"guidance": "no"}}}, "method.sid.guidance.preset", "zero-cfg"),
        ({"method": {"type": "sid", "sid": {"seed": 3}}}, "method.sid.seed", "its field 'seed'"),
        (
            {"method": {"type": "sid", "sid": {"recipe": "sd3-medium"}}},
            "method.sid.recipe",
            "shapes-sana-demo",
        ),
        ({"method": {"type": "sid", "sid": {"init": "/root"}}}, "method.sid.init", "shapes-sana-sid"),
        ({"method": {"type": "sid", "sid": {"data": "/home"}}}, "method.sid.data", "known: shapes"),
        ({"method": {"type": "sid", "sid": {"embedding_cache": "/x"}}}, "method.sid", "true or false"),
        ({"method": {"type": "sid", "sid": {"text": {"instruction": "\0"}}}}, "method.sid", "NUL"),
        ({"suffix": "../x"}, "suffix", "pattern"),
        ({"suffix": "x" * 65}, "suffix", "pattern"),
        ({"seed": -1}, "seed", "0"),
        ({"seed": 2**31}, "seed", str(2**31 - 1)),
        ({"metadata": {"k": 3}}, "metadata.k", "string"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "16"),
        ({"integrations": [{"type": "wandb"}]}, "integrations.type", "'webhook'"),
        (
            {"integrations": [{"type": "webhook", "webhook": {"url": "http://a/"}}]},
            "integrations.webhook.url",
            "FEWSTEP_WEBHOOK_SECRET",
        ),
        ({"gate": {"at_least": {"beauty": 1}}}, "gate", "frechet_distance"),
        ({"publish": {"model": "a b"}}, "publish.model", "pattern"),
        ({"hyperparameters": {}}, "hyperparameters", "Unknown parameter"),
    ],
)
def test_bad_requests_are_told_what_would_do(shared: Running, changes: Any, param: str, says: str) -> None:
    body = {"model": "shapes-sana", "training_file": "shapes:train", **changes}
    answer = shared.client.post(JOBS, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], says in error["message"]) == (param, True), error


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"\n\n  \n", "holds no prompt"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": 3}\n', "Line 2 has no text under 'prompt'"),
        ("a.jsonl", b'{"prompt": "a"}\n\n{"promt": "b"}\n', "Line 3 has no text"),
        ("a.jsonl", b'{"prompt": "a"}\nred circle\n{"prompt": "b"}', "Line 2 is not JSON"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt": " "}\n', "Line 2 has an empty prompt"),
        ("a.jsonl", b'{"prompt": "a\\u0000"}\n', "Line 1 has a prompt that is no text"),
        ("a.txt", b"a\n" + b"x" * 4001, "4001 characters"),
        ("a.txt", "a\nb\u2028c\n".encode(), "Line 2 has a line or page separator"),
        ("a.jsonl", b"\x89PNG\r\n\x1a\n\0\0", "Line 1 is not UTF-8"),
        ("a.txt", b"a\nb\0\n", "Line 2 has a NUL byte"),
    ],
)
def test_a_bad_prompt_file_is_told_by_line(office: Bureau, name: str, content: bytes, says: str) -> None:
    file = office.openai.files.create(file=(name, content), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError) as raised:
        office.submit(training_file=file.id)
    assert says in str(raised.value)
    assert raised.value.param == "training_file"
    assert office.store.counts() == {}


def test_files_that_do_not_fit_are_refused(office: Bureau) -> None:
    with pytest.raises(openai.NotFoundError, match="no file 'file-none'"):
        office.submit(training_file="file-none")
    batch = office.openai.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="purpose of"):
        office.submit(training_file=batch.id)


def sse(text: str) -> list[dict[str, str]]:
    frames = [frame for frame in text.split("\n\n") if frame and not frame.startswith(":")]
    return [dict(line.split(": ", 1) for line in frame.splitlines()) for frame in frames]


def test_events_are_streamed_until_the_end_and_again_from_any_of_them(office: Bureau) -> None:
    job = office.submit().id
    started = threading.Event()
    texts: list[str] = []

    def follow() -> None:
        with httpx.stream(
            "GET", f"{office.running.url}{JOBS}/{job}/events?stream=true", timeout=60
        ) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for text in answer.iter_text():
                texts.append(text)
                started.set()

    thread = threading.Thread(target=follow)
    thread.start()
    assert started.wait(30)
    lease = office.take()
    office.store.heartbeat(lease, FOREVER, {"percent": 10.0})
    wait_until(lambda: '"percent":10.0' in "".join(texts), 30)
    office.store.say(lease, "halfway", kind="metrics", data={"step": 5})
    office.store.finish(
        lease, "failed", "It broke.", error={"message": "It broke.", "code": "x", "param": None}
    )
    thread.join(30)
    assert not thread.is_alive()
    frames = sse("".join(texts))
    assert frames[-1] == {"data": "[DONE]"}
    events = [frame for frame in frames if frame.get("event") == "fine_tuning.job.event"]
    told = [json.loads(frame["data"])["message"] for frame in events]
    assert told == ["The job waits for a runner.", "The job is running.", "halfway", "It broke."]
    last = json.loads([frame for frame in frames if frame.get("event") == "fine_tuning.job"][-1]["data"])
    assert (last["status"], last["error"]["message"]) == ("failed", "It broke.")
    for how in ({"headers": {"Last-Event-ID": events[1]["id"]}}, {"params": {"after": events[1]["id"]}}):
        address = f"{JOBS}/{job}/events?stream=true"
        params = {"stream": "true", **how.get("params", {})}
        again = sse(office.running.client.get(address, params=params, headers=how.get("headers")).text)
        assert [frame["id"] for frame in again if "id" in frame] == [event["id"] for event in events[2:]]


def test_a_stream_of_nothing_is_an_error_with_a_status(shared: Running) -> None:
    assert shared.client.get(f"{JOBS}/ftjob-none/events?stream=true").status_code == 404
    assert shared.client.get(f"{JOBS}/ftjob%00/events").status_code == 404
    bad = shared.client.get(f"{JOBS}/ftjob-none/events?after=yesterday")
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "after")


def test_only_keys_that_may_run_jobs_do(settings: Settings, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    plain, worker = add_key(keys, "alice"), add_key(keys, "bob", jobs=True)
    admin, other = add_key(keys, "carol", admin=True), add_key(keys, "dave")
    guarded = settings.model_copy(update={"api_keys": keys, "jobs_workers": False})
    with run_server(guarded, {"fake": FakeRuntime()}) as running:

        def client(key: str) -> openai.OpenAI:
            return openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0)

        with pytest.raises(openai.PermissionDeniedError, match="may not run jobs"):
            client(plain).fine_tuning.jobs.create(model="shapes-sana", training_file="shapes:train")
        with pytest.raises(openai.PermissionDeniedError, match="may not run jobs"):
            client(plain).files.create(file=b'{"prompt": "a"}', purpose="fine-tune")
        job = client(worker).fine_tuning.jobs.create(model="shapes-sana", training_file="shapes:train")
        assert client(admin).fine_tuning.jobs.retrieve(job.id).status == "queued"
        with pytest.raises(openai.PermissionDeniedError):
            client(plain).fine_tuning.jobs.retrieve(job.id)
        asked = [
            running.client.get(TEACHERS, headers={"Authorization": f"Bearer {key}"})
            for key in (plain, worker)
        ]
        assert [answer.status_code for answer in asked] == [403, 200]
        own = client(plain).files.create(file=b"{}", purpose="batch")
        assert [file.id for file in client(plain).files.list()] == [own.id]
        assert list(client(other).files.list()) == []
        with pytest.raises(openai.NotFoundError):
            client(other).files.retrieve(own.id)
        with pytest.raises(openai.NotFoundError):
            client(other).files.delete(own.id)
        assert client(worker).files.content(own.id).read() == b"{}"


def test_without_its_database_the_server_goes_on_and_finds_back(settings: Settings, server: Any) -> None:
    own = settings.model_copy(update={"database_url": SecretStr(server.url), "jobs_workers": False})
    with run_server(own, {"fake": FakeRuntime()}) as running:
        body = {"model": "shapes-sana", "training_file": "shapes:train"}
        job = running.client.post(JOBS, json=body).json()["id"]
        server.stop()
        try:
            refused = [
                running.client.post(JOBS, json=body),
                running.client.get(f"{JOBS}/{job}"),
                running.client.get(f"{JOBS}/{job}/events?stream=true"),
                running.client.get("/v1/files"),
            ]
            for answer in refused:
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
                assert answer.headers["retry-after"]
            assert running.generate().status_code == 200
            assert running.client.get("/health/ready").status_code == 200
            assert running.client.get("/metrics").status_code == 200
        finally:
            server.start()
        assert running.client.get(f"{JOBS}/{job}").json()["status"] == "queued"
