"""A server as `fewstep jobs` sees it: requests with the key, refusals in its own words, a job as it happens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from distill.errors import RunFailed
from distill.progress import Progress
from service.errors import ServiceError

ROUTE = "/v1/distillation/jobs"
JOB_ID = re.compile(r"^ftjob-[\w-]{1,100}$")
SECONDS = 60.0
SILENCE_SECONDS = 45.0
"""A stream says something every 15 seconds; one that does not has lost its server."""
SHOWN_BYTES = 4 << 20
"""A file that is larger than this shows how much of it has been sent."""

Json = dict[str, Any]


class UnreachableError(ServiceError):
    """Nobody answers there."""


class BusyError(RunFailed):
    """The request was right, and the server does not take it now."""


class JobServer:
    """The jobs of one server. All may raise `ServiceError`, `UnreachableError` and `BusyError`."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self._client = httpx.Client(
                base_url=self.url, headers=headers, timeout=SECONDS, trust_env=False, follow_redirects=False
            )
        except (httpx.InvalidURL, UnicodeEncodeError, ValueError) as error:
            raise ServiceError(f"--url {url!r}: {error}; expected e.g. http://127.0.0.1:8000") from error

    def get(self, path: str = "", **query: Any) -> Json:
        return self._ask("GET", ROUTE + path, params={k: v for k, v in query.items() if v is not None})

    def post(self, path: str = "", body: Json | None = None, key: str | None = None) -> Json:
        """
        Args:
            key: Under which the same request may be sent again and has one effect.
        """
        return self._ask("POST", ROUTE + path, json=body, headers={"Idempotency-Key": key} if key else {})

    def job(self, id: str) -> Json:
        if not JOB_ID.match(id):
            raise ServiceError(f"There is no job {id!r}; `fewstep jobs list` shows the ids of the newest.")
        return self.get(f"/{id}")

    def upload(self, path: Path) -> str:
        """Sends a prompt set; returns its id."""
        with path.open("rb") as file:
            sent = _Sent(file, path) if path.stat().st_size > SHOWN_BYTES else file
            form = {"files": {"file": (path.name, sent)}, "data": {"purpose": "fine-tune"}}
            answer: str = self._ask("POST", "/v1/files", **form)["id"]
        return answer

    def forget(self, file: str) -> None:
        self._ask("DELETE", f"/v1/files/{file}")

    def fetch(self, path: str) -> bytes:
        """The content at an address that the server has named."""
        return self._send("GET", path).content

    def events(self, job: str, last: str | None) -> Iterator[tuple[str | None, Json]]:
        """What happens to a job after the event `last`: each event with its id, and the job itself whenever it
        has changed; ends when the server ends the stream."""
        headers = {"Last-Event-ID": last} if last else {}
        timeout = httpx.Timeout(SECONDS, read=SILENCE_SECONDS)
        path = f"{ROUTE}/{job}/events?stream=true"
        try:
            with self._client.stream("GET", path, headers=headers, timeout=timeout) as answer:
                if answer.is_error:
                    answer.read()
                    self._refuse(answer)
                yield from _frames(answer.iter_lines())
        except httpx.TransportError as error:
            raise self._gone(error) from error

    def close(self) -> None:
        self._client.close()

    def _ask(self, method: str, path: str, **what: Any) -> Json:
        answer = self._send(method, path, **what)
        try:
            content = answer.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise ServiceError(f"{self.url} is no fewstep server: {path} answers something else than JSON")
        return content

    def _send(self, method: str, path: str, **what: Any) -> httpx.Response:
        try:
            answer = self._client.request(method, path, **what)
        except httpx.UnsupportedProtocol as error:
            raise ServiceError(f"--url {self.url!r}: expected e.g. http://127.0.0.1:8000") from error
        except httpx.TransportError as error:
            raise self._gone(error) from error
        if answer.is_error:
            self._refuse(answer)
        return answer

    def _gone(self, error: Exception) -> UnreachableError:
        why = str(error) or type(error).__name__
        return UnreachableError(
            f"{self.url} does not answer ({why}); expected a running server, by --url or FEWSTEP_URL"
        )

    def _refuse(self, answer: httpx.Response) -> None:
        """Raises what the answer says: a request that will never do, or one that may do later."""
        try:
            told = answer.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            told = f"{self.url} answers {answer.status_code} at {answer.request.url.path}; is it a fewstep server?"
        if answer.status_code == 401:
            told += " Give one by --api-key or FEWSTEP_KEY."
        if answer.status_code == 429 or answer.status_code >= 500:
            raise BusyError(told)
        raise ServiceError(told, status=answer.status_code)


def _frames(lines: Iterator[str]) -> Iterator[tuple[str | None, Json]]:
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
            continue
        if line == "" and (data := fields.get("data", "[DONE]")) != "[DONE]":
            yield fields.get("id"), json.loads(data)
        fields = {}


class _Sent:
    """A file that shows how much of it has been sent."""

    def __init__(self, file: Any, path: Path) -> None:
        self._file, self._done = file, 0
        self._progress = Progress(f"sending {path.name}, bytes", path.stat().st_size)

    def read(self, size: int = -1) -> bytes:
        content: bytes = self._file.read(size)
        self._done += len(content)
        self._progress.update(self._done)
        if not content:
            self._progress.close()
        return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
