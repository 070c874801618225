"""The versions of a model: which one serves, which has a share on trial, which comes back; kept in a file.

Changes are pure: each takes a `Line` and gives the next one, which is served once it is on disk.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import ServiceError

State = Literal["serving", "canary", "previous", "retired"]
KEPT = 100
"""Retired versions of a model that are remembered."""


class Version(BaseModel):
    """One bundle under the name of a model.

    Attributes:
        id: `NAME@NUMBER`, which a request may name as its model.
        bundle: Where its bundle is found again: a digest of the store, a shipped name, or a folder.
        share: Of the requests that name the model alone, 0 ... 1.
        published_at: Unix time.
        gate: What whoever published it found out about it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    number: int
    digest: str
    bundle: str
    state: State = "serving"
    share: float = Field(default=1.0, ge=0, le=1)
    published_at: int
    reason: str = ""
    gate: dict[str, Any] | None = None


class Line(BaseModel):
    """All versions of one model, oldest first.

    Attributes:
        configured: Digest of the bundle that the settings named when this line was begun or changed by
            them; none for a model that was published while the server ran.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    configured: str | None = None
    versions: tuple[Version, ...] = ()

    def one(self, state: State) -> Version | None:
        return next((version for version in self.versions if version.state == state), None)

    @property
    def serving(self) -> Version:
        return next(version for version in self.versions if version.state == "serving")

    @property
    def active(self) -> tuple[Version, ...]:
        """Those that a request may reach: serving, canary, previous."""
        return tuple(version for version in self.versions if version.state != "retired")

    def new(self, digest: str, bundle: str, reason: str = "", gate: dict[str, Any] | None = None) -> Version:
        """A version that is to be published; nothing has changed yet."""
        number = 1 + max((version.number for version in self.versions), default=0)
        return Version(
            id=f"{self.name}@{number}",
            number=number,
            digest=digest,
            bundle=bundle,
            published_at=int(time.time()),
            reason=reason,
            gate=gate,
        )

    def published(self, version: Version, share: float = 1.0) -> Line:
        """With `share` of the requests on `version`, which takes over at 1, or when it is the first."""
        if share < 1 and self.versions:
            trial: dict[str, State] = {version.id: "canary", **self._without("canary")}
            return self._with((*self.versions, version), trial, share)
        states: dict[str, State] = {version.id: "serving", **self._without("canary", "previous")}
        if self.versions:
            states[self.serving.id] = "previous"
        return self._with((*self.versions, version), states)

    def with_share(self, share: float) -> Line:
        """With another share for the canary."""
        return self._with(self.versions, {}, share)

    def promoted(self) -> Line:
        """
        Raises:
            ServiceError: 409, there is no canary.
        """
        canary = self.one("canary")
        if canary is None:
            raise _conflict(f"'{self.name}' has no canary to promote.", "no_canary")
        states: dict[str, State] = {
            **self._without("previous"),
            self.serving.id: "previous",
            canary.id: "serving",
        }
        return self._with(self.versions, states)

    def rolled_back(self) -> Line:
        """Without its canary; or, if it has none, with the version that served before.

        Raises:
            ServiceError: 409, there is nothing to go back to.
        """
        if self.one("canary") is not None:
            return self._with(self.versions, self._without("canary"))
        previous = self.one("previous")
        if previous is None:
            raise _conflict(f"'{self.name}' has no earlier version to go back to.", "no_previous_version")
        return self._with(self.versions, {self.serving.id: "retired", previous.id: "serving"})

    def moved(self, number: int, bundle: str) -> Line:
        """With the bundle of a version kept elsewhere."""
        return self.model_copy(
            update={
                "versions": tuple(
                    one.model_copy(update={"bundle": bundle}) if one.number == number else one
                    for one in self.versions
                )
            }
        )

    def route(self, key: str) -> Version:
        """The version that a request with this key is for: always the same one.

        Which keys are the canary's differs from canary to canary, so that nobody gets all of them.
        """
        canary = self.one("canary")
        if canary is not None and lot(f"{canary.id} {canary.digest}", key) < canary.share:
            return canary
        return self.serving

    def pinned(self, pin: str) -> Version | None:
        """By number or digest; the latest one of a digest."""
        found = [version for version in self.versions if pin in (str(version.number), version.digest)]
        return found[-1] if found else None

    def _without(self, *states: State) -> dict[str, State]:
        return {version.id: "retired" for version in self.versions if version.state in states}

    def _with(self, versions: tuple[Version, ...], states: dict[str, State], share: float = 0.0) -> Line:
        changed = [one.model_copy(update={"state": states.get(one.id, one.state)}) for one in versions]
        if not share:  # a canary that stays keeps its share
            share = next((one.share for one in changed if one.state == "canary"), 0.0)
        shares = {"serving": 1 - share, "canary": share}
        shared = [one.model_copy(update={"share": shares.get(one.state, 0.0)}) for one in changed]
        retired = [one.number for one in shared if one.state == "retired"]
        dropped = set(retired[: max(0, len(retired) - KEPT)])
        return self.model_copy(update={"versions": tuple(one for one in shared if one.number not in dropped)})


class Served(BaseModel):
    """All that is remembered from one start of the server to the next."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    models: dict[str, Line] = {}
    aliases: dict[str, str] = {}


class Ledger:
    """The file of it, written whole or not at all. It belongs to one server at a time."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> Served:
        """
        Raises:
            ServiceError: the file is not what was written.
        """
        try:
            return Served.model_validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return Served()
        except (OSError, ValidationError) as error:
            found = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error.strerror
            advice = "repair it, or move it away to serve what the settings name"
            raise ServiceError(f"cannot read {self._file}: {found}; {advice}") from error

    def write(self, served: Served) -> None:
        """
        Raises:
            ServiceError: 507, the disk does not take it; the old file is as it was.
        """
        temporary = self._file.with_name(f".{self._file.name}.{uuid4().hex[:8]}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("w") as stream:
                stream.write(served.model_dump_json(indent=1))
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, self._file)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            message = f"The change could not be written to disk and was not made: {error.strerror}."
            raise ServiceError(message, status=507, code="insufficient_storage") from error


def lot(salt: str, key: str) -> float:
    """A number in [0, 1) that is uniform over keys and the same for the same key."""
    digest = hashlib.sha256(f"{salt}\0{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _conflict(message: str, code: str) -> ServiceError:
    # The official client repeats a 409 by itself, which would change nothing.
    return ServiceError(message, status=409, code=code, headers={"x-should-retry": "false"})
