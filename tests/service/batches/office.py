"""A server with batches, and the official client that drives it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import openai

from engines.runtime.base import Runtime
from service.batches.room import Batches
from service.settings import Settings

from ..running import Running, run_server, wait_until

URL = "/v1/images/generations"
ENDED = ("completed", "failed", "cancelled", "expired")


def line(custom_id: str, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": URL, "body": {"prompt": "a red circle", **body}}


def jsonl(lines: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


@dataclass
class Office:
    running: Running
    openai: openai.OpenAI

    @property
    def batches(self) -> Batches:
        application: Any = self.running.server.config.app
        found: Batches = application.state.service.batches
        return found

    def send(self, content: bytes | Sequence[Any], name: str = "requests.jsonl") -> str:
        content = content if isinstance(content, bytes) else jsonl(content)
        return self.openai.files.create(file=(name, content), purpose="batch").id

    def submit(self, content: bytes | Sequence[Any], **more: Any) -> Any:
        file = self.send(content)
        # The client's types know fewer endpoints than the API has.
        asked: dict[str, Any] = {"endpoint": URL, "completion_window": "24h", **more}
        return self.openai.batches.create(input_file_id=file, **asked)

    def wait(self, id: str, seconds: float = 60.0) -> Any:
        wait_until(lambda: self.openai.batches.retrieve(id).status in ENDED, seconds)
        return self.openai.batches.retrieve(id)

    def read(self, file: str | None) -> list[dict[str, Any]]:
        assert file is not None
        return [json.loads(text) for text in self.openai.files.content(file).text.splitlines()]


@contextmanager
def open_office(settings: Settings, runtime: Runtime, key: str = "none") -> Iterator[Office]:
    with run_server(settings, {"fake": runtime}) as running:
        yield office_of(running, key)


def office_of(running: Running, key: str) -> Office:
    return Office(running, openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0))
