"""A student that has passed its gate becomes a version of a model: a share of the requests first, then all."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Protocol

import httpx

from engines.bundle import MANIFEST, SHIPPED, Bundle, sha256
from engines.store import Store

from ..errors import ServiceError
from ..models import Models
from .desk import Claim, Over
from .gate import Publish, Verdict

log = logging.getLogger(__name__)

SECONDS = 600.0
"""For a server to check, keep, load and warm a bundle."""

NO_MODEL = "-"
"""No model can have this name: what is asked of it has no effect."""

Version = Mapping[str, Any]
"""As in `GET /v1/models/{id}/versions`."""


class ModelServer(Protocol):
    """Who serves the models. All may raise `ServiceError`."""

    def versions(self, model: str) -> list[Version]:
        """The newest first; none of a model that it does not know."""

    def publish(
        self, model: str, bundle: Path, share: float, reason: str, gate: Mapping[str, Any]
    ) -> Version:
        """Gives a bundle a share of the model's requests; published again, the same version."""

    def promote(self, model: str) -> None:
        """The canary gets all requests."""

    def rollback(self, model: str) -> None:
        """The canary is withdrawn."""


class Publication:
    """Publishes on one server."""

    def __init__(self, server: ModelServer) -> None:
        self._server = server

    def publish(
        self, claim: Claim, publish: Publish, bundle: Bundle, verdict: Verdict, rest: Callable[[], None]
    ) -> dict[str, Any]:
        """Returns the version once it has all requests. May be called again after a crash.

        Args:
            rest: Waits a little; raises when the job is to be left or has been cancelled.

        Raises:
            ServiceError: it does not serve, and what served before still does.
        """
        version = self._of_job(publish.model, claim.job)
        if version is None:
            gate = {"job": claim.job, **verdict.model_dump(mode="json")}
            share = publish.canary or 1.0
            reason = f"job {claim.job}"
            version = self._server.publish(publish.model, bundle.path, share, reason, gate)
        if version["state"] == "canary":
            self._try_out(publish, claim.job, rest)
            self._server.promote(publish.model)
            version = self._of_job(publish.model, claim.job) or version
        if version["state"] != "serving":
            raise ServiceError(f"{version['id']} was withdrawn", code="withdrawn")
        return {"id": version["id"], "digest": version["digest"], "state": "serving"}

    def _try_out(self, publish: Publish, job: str, rest: Callable[[], None]) -> None:
        """As a canary, until its time is over; time in which nobody looked counts too."""
        while True:
            version = self._of_job(publish.model, job)
            if version is None or version["state"] != "canary":
                name = version["id"] if version else publish.model
                raise ServiceError(f"{name} was withdrawn while it was on trial", code="withdrawn")
            if not version.get("healthy", True):
                self._server.rollback(publish.model)
                raise ServiceError(f"{version['id']} stopped drawing while it was on trial", code="unhealthy")
            if time.time() >= version["published_at"] + publish.canary_seconds:
                return
            try:
                rest()
            except Over:  # cancelled
                self._server.rollback(publish.model)
                raise

    def _of_job(self, model: str, job: str) -> Version | None:
        mine = (one for one in self._server.versions(model) if (one["gate"] or {}).get("job") == job)
        return next(mine, None)


class SameProcess:
    """The models of this very process, whose event loop is another thread's."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._loop: asyncio.AbstractEventLoop | None = None

    def bind(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def versions(self, model: str) -> list[Version]:
        line = self._models.catalogue.lines.get(model)
        found = reversed(line.versions) if line is not None else ()
        return [
            {**one.model_dump(mode="json"), "healthy": self._models.state_of(one) != "stalled"}
            for one in found
        ]

    def publish(
        self, model: str, bundle: Path, share: float, reason: str, gate: Mapping[str, Any]
    ) -> Version:
        made = self._wait(self._models.publish(model, str(bundle), share, reason, dict(gate)))
        version: Version = made.model_dump(mode="json")
        return version

    def promote(self, model: str) -> None:
        self._wait(self._models.promote(model))

    def rollback(self, model: str) -> None:
        self._wait(self._models.rollback(model))

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        assert self._loop is not None
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS)
        except TimeoutError as error:
            raise ServiceError(f"the server did not do it within {SECONDS:g} s", status=503) from error
        except RuntimeError as error:  # the loop has ended
            work.close()
            raise ServiceError(f"the server is ending: {error}", status=503) from error


class Remote:
    """A server at an address, which sees the same data folder."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """
        Args:
            key: Of an administrator, where the server wants keys.
        """
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=SECONDS)

    def check(self) -> None:
        """Whether the key will do, before hours are spent on what could not be published then.

        Raises:
            ServiceError: 401, 403, it will not; 503, the server does not answer.
        """
        self._ask("POST", NO_MODEL, "promote", missing=True)

    def versions(self, model: str) -> list[Version]:
        answer = self._ask("GET", model, "versions", missing=True)
        return list(answer["data"]) if answer else []

    def publish(
        self, model: str, bundle: Path, share: float, reason: str, gate: Mapping[str, Any]
    ) -> Version:
        body = {"bundle": str(bundle.absolute()), "share": share, "reason": reason, "gate": dict(gate)}
        return self._ask("POST", model, "versions", body)

    def promote(self, model: str) -> None:
        self._ask("POST", model, "promote")

    def rollback(self, model: str) -> None:
        self._ask("POST", model, "rollback")

    def _ask(
        self,
        method: str,
        model: str,
        what: str,
        body: Mapping[str, Any] | None = None,
        missing: bool = False,
    ) -> dict[str, Any]:
        """
        Args:
            missing: A 404 is an empty answer.
        """
        try:
            answer = self._client.request(method, f"/v1/models/{model}/{what}", json=body)
            if missing and answer.status_code == 404:
                return {}
            content: dict[str, Any] = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise ServiceError(f"{self._client.base_url} does not answer: {error!r}", status=503) from error
        if answer.is_error:
            told = content.get("error", {}).get("message", answer.reason_phrase)
            raise ServiceError(f"{self._client.base_url}: {told}", status=answer.status_code)
        return content


def serving_bundle(server: ModelServer, store: Path, model: str) -> Path | None:
    """The bundle that serves `model` now; None if none does.

    Raises:
        ServiceError: it is not on this machine.
    """
    version = next((one for one in server.versions(model) if one["state"] == "serving"), None)
    if version is None:
        return None
    digest = version["digest"]
    shipped = (folder for folder in SHIPPED.iterdir() if (folder / MANIFEST).is_file())
    places = [Store(store).find(digest), *shipped, Path(version.get("bundle", ""))]
    for place in places:
        if place is not None and (place / MANIFEST).is_file() and _digest(place) == digest:
            return place
    raise ServiceError(
        f"{version['id']} ({digest}) is not in {store}: worker and server share one data folder"
    )


def _digest(bundle: Path) -> str:
    return f"sha256:{sha256(bundle / MANIFEST)}"
