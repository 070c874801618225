"""Webhooks arrive, signed; those that do not are sent again, and at last given up."""

from __future__ import annotations

import base64
import hmac
import json
import os
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from pydantic import SecretStr

from service.errors import ServiceError
from service.jobs.database import Database
from service.jobs.objects import announcement
from service.jobs.store import JobStore, NewJob
from service.jobs.tables import DeliveryRow
from service.jobs.webhooks import Webhooks, check_url, read_secret, sign
from service.settings import Settings

from ..fake_runtime import FakeRuntime
from ..running import run_server, wait_until

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
KEY = bytes(range(32))


class Receiver(ThreadingHTTPServer):
    """Answers as it is told and keeps what it gets."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[dict[str, str], str]] = []
        self.answers: list[int] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/hook"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        self.server.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
        status = self.server.answers.pop(0) if self.server.answers else 204
        self.send_response(status)
        if status == 302:
            self.send_header("Location", self.server.url)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def end_a_job(database: Database, url: str) -> str:
    store = JobStore(database, announcement)
    job = store.create(NewJob("shapes-sana", "shapes:train", {}, options={"webhook": url}), limit=10)
    store.cancel(job.id)
    return job.id


def rows(database: Database) -> list[DeliveryRow]:
    with database.begin() as session:
        return session.query(DeliveryRow).all()


def test_the_official_client_accepts_what_the_server_signs(settings: Settings, receiver: Receiver) -> None:
    own = settings.model_copy(
        update={"webhook_secret": SecretStr(SECRET), "webhook_hosts": ("127.0.0.1",), "jobs_workers": False}
    )
    with run_server(own, {"fake": FakeRuntime()}) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
        hook: Any = {"type": "webhook", "webhook": {"url": receiver.url}}
        job = client.fine_tuning.jobs.create(
            model="shapes-sana", training_file="shapes:train", integrations=[hook]
        )
        assert client.fine_tuning.jobs.retrieve(job.id).to_dict()["integrations"] == [hook]
        client.fine_tuning.jobs.cancel(job.id)
        wait_until(lambda: receiver.got, 60)
        headers, body = receiver.got[0]
        event = client.webhooks.unwrap(body, headers, secret=SECRET)
        assert (event.type, event.data.id) == ("fine_tuning.job.cancelled", job.id)  # type: ignore[union-attr]
        assert event.id == headers["webhook-id"]
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.unwrap(body.replace("cancelled", "succeeded"), headers, secret=SECRET)


def test_one_that_arrives_is_sent_once(database: Database, receiver: Receiver) -> None:
    job = end_a_job(database, receiver.url)
    webhooks = Webhooks(database, KEY, attempts=3)
    assert (webhooks.waiting(), webhooks.send_due(), webhooks.send_due(), webhooks.waiting()) == (1, 1, 0, 0)
    ((headers, body),) = receiver.got
    assert json.loads(body)["data"] == {"id": job}
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body}".encode()
    expected = base64.b64encode(hmac.new(KEY, signed, sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    assert [row.outcome for row in rows(database)] == ["HTTP 204"]
    webhooks.close()


def test_one_that_is_refused_is_sent_again_with_the_same_id(database: Database, receiver: Receiver) -> None:
    end_a_job(database, receiver.url)
    receiver.answers = [500, 302]
    webhooks = Webhooks(database, KEY, attempts=5, first_wait=0.01)
    wait_until(lambda: webhooks.send_due() >= 0 and not webhooks.waiting(), 30)
    assert len(receiver.got) == 3
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert [(row.done, row.attempts, row.outcome) for row in rows(database)] == [(True, 3, "HTTP 204")]
    webhooks.close()


def test_one_that_never_arrives_is_given_up(database: Database, receiver: Receiver) -> None:
    end_a_job(database, "http://127.0.0.1:1/")
    webhooks = Webhooks(database, KEY, attempts=3, first_wait=0.01)
    wait_until(lambda: webhooks.send_due() >= 0 and not webhooks.waiting(), 30)
    assert [(row.done, row.attempts, row.outcome) for row in rows(database)] == [(True, 3, "ConnectError")]
    webhooks.close()


def test_a_failure_makes_it_wait(database: Database, receiver: Receiver) -> None:
    end_a_job(database, receiver.url)
    receiver.answers = [500]
    webhooks = Webhooks(database, KEY, attempts=3)
    assert (webhooks.send_due(), webhooks.send_due(), webhooks.waiting()) == (1, 0, 1)
    assert [webhooks.wait(attempt) for attempt in (1, 2, 3, 20)] == [5, 20, 80, 6 * 3600]
    webhooks.close()


def test_two_servers_send_each_once(database: Database, url: str, receiver: Receiver) -> None:
    for _ in range(10):
        end_a_job(database, receiver.url)
    other = Database(url)
    senders = [Webhooks(database, KEY, 3), Webhooks(other, KEY, 3)]
    threads = [threading.Thread(target=sender.send_due) for sender in senders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(receiver.got) == 10
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 10
    for sender in senders:
        sender.close()
    other.close()


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://example.org.evil.net/",
        "http://evil.net/?example.org",
        "http://example.org@evil.net/",
        "http://user:word@hooks.example.org/",
        "http://[::1]/",
        "http://[/",
        "http:///x",
    ],
)
def test_webhooks_go_only_where_they_may(url: str) -> None:
    with pytest.raises(ServiceError) as raised:
        check_url(url, ("example.org", "*.example.org"), KEY)
    assert raised.value.param == "integrations.webhook.url"


def test_where_webhooks_may_go() -> None:
    for url in ("https://example.org/x", "http://a.example.org:8080/"):
        assert check_url(url, ("example.org", "*.example.org"), KEY) == url
    with pytest.raises(ServiceError, match="FEWSTEP_WEBHOOK_SECRET"):
        check_url("https://example.org", ("*",), None)
    with pytest.raises(ServiceError, match="FEWSTEP_WEBHOOK_HOSTS"):
        check_url("https://example.org", (), KEY)


def test_secrets_are_checked() -> None:
    assert read_secret(SECRET) == KEY
    for bad in ("", "whsec_", "whsec_!!", SECRET[6:], "whsec_" + base64.b64encode(os.urandom(65)).decode()):
        with pytest.raises(ServiceError, match="24 to 64 bytes"):
            read_secret(bad)


def test_the_signature_is_that_of_the_standard() -> None:
    """The example of the specification."""
    secret = read_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, '{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
