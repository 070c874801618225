"""API keys: who they belong to, what each may use, and how they are checked.

Keys are random and long, so that a plain SHA-256 of them tells nobody what they are.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import secrets
import time
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .admission import refusal
from .errors import ServiceError, reason_of

log = logging.getLogger(__name__)

PREFIX = "fs-"
MINUTE = 60.0
LOOK_SECONDS = 1.0
"""Between two looks at the file: a key that is taken out of it stops working that soon."""


class Key(BaseModel):
    """One line of the file of keys, as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[\w.@-]{1,64}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    step_images_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    admin: bool = False
    jobs: bool = False

    @property
    def may_run_jobs(self) -> bool:
        return self.admin or self.jobs


class Keys:
    """The keys of a server, as their file has them at the moment; without a file everybody is let in."""

    def __init__(self, file: Path | None) -> None:
        """
        Raises:
            ServiceError: the file cannot be read; names the line.
        """
        self._file = file
        self._seen, self._next_look = _state(file), time.monotonic() + LOOK_SECONDS
        self._keys = [] if file is None else _read(file)
        self._left: dict[str, tuple[float, float]] = {}

    def check(self, authorization: str) -> Key | None:
        """The key of a request; None when the server needs none.

        A missing key takes as long as a wrong one, and both as long as a right one: all keys are
        compared, each in constant time.

        Raises:
            ServiceError: 401, no key or one that is not known.
        """
        if self._file is None:
            return None
        self._look(self._file)
        scheme, _, secret = authorization.partition(" ")
        digest = hashed(secret.strip() if scheme.lower() == "bearer" else "")
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        if found:
            return found[0]
        message = "This server needs an API key: send the header 'Authorization: Bearer KEY'."
        headers = {"WWW-Authenticate": "Bearer"}
        raise ServiceError(message, status=401, code="invalid_api_key", headers=headers)

    def _look(self, file: Path) -> None:
        """Reads the file again if it has changed. One that cannot be read changes nothing: whoever is writing it
        must not shut everybody out."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK_SECONDS
        state = _state(file)
        if state == self._seen:
            return
        self._seen = state
        try:
            self._keys = _read(file)
            log.info("%d API keys, as %s says now", len(self._keys), file)
        except ServiceError as error:
            log.error("the API keys stay as they were: %s", error)

    def check_admin(self, key: Key | None, host: str, foreign: bool, anybody: bool) -> None:
        """Who may change what is served: an admin key; on a server without keys, this machine.

        Args:
            key: Of the request, checked.
            host: Where the request comes from.
            foreign: Whether a browser sends it for a page of somebody else, see `is_foreign`. Such a page
                may not use that it is shown on this machine.
            anybody: Whether other machines may, too, on a server without keys.

        Raises:
            ServiceError: 403.
        """
        if self._file is None:
            if anybody or (not foreign and _is_loopback(host)):
                return
            message = (
                "A server without API keys takes this from programs on its own machine only: use keys"
                " (`fewstep keys add NAME --admin`, --api-keys), or --open-admin."
            )
        elif key is not None and key.admin:
            return
        else:
            message = "This needs the key of an administrator (`fewstep keys add NAME --admin`)."
        raise ServiceError(message, status=403, code="admin_required")

    def spend(self, key: Key | None, step_images: int, now: float | None = None) -> None:
        """Takes step-images from what a key may use; a minute's worth may be used at once.

        Raises:
            ServiceError: 429, it is used up; says when enough is there again.
        """
        if key is None or key.step_images_per_minute is None:
            return
        now, limit = time.monotonic() if now is None else now, key.step_images_per_minute
        left, since = self._left.get(key.name, (limit, now))
        left = min(limit, left + (now - since) * limit / MINUTE)
        if step_images > left:
            self._left[key.name] = left, now
            raise _used_up(limit, step_images, (step_images - left) * MINUTE / limit)
        self._left[key.name] = left - step_images, now

    def refund(self, key: Key | None, step_images: int) -> None:
        """Gives back what was taken for work that was then refused."""
        if key is not None and key.name in self._left:
            left, since = self._left[key.name]
            self._left[key.name] = left + step_images, since


def is_foreign(origin: str | None, host: str) -> bool:
    """Whether a request comes from a page that this server has not sent.

    A name that somebody has pointed at this machine would make his page look like one of ours, so only the
    machine's own names count.

    Args:
        origin: As the browser says it; None where no page sends the request.
        host: Header of the request.
    """
    if origin is None:
        return False
    try:
        page = urlsplit(origin)
        own = page.hostname == "localhost" or _is_loopback(page.hostname or "")
    except ValueError:
        return True
    return not (own and page.netloc == host)


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def hashed(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def add_key(
    file: Path, name: str, limit: float | None = None, admin: bool = False, jobs: bool = False
) -> str:
    """Adds a new key to a file and returns it; it is not to be had again.

    Raises:
        ServiceError: there is a key of this name, or the file or the name is bad.
    """
    keys = _read(file) if file.exists() else []
    if name in [key.name for key in keys]:
        raise ServiceError(f"{file} has a key named {name!r}; choose another name or delete its line")
    secret = PREFIX + secrets.token_urlsafe(32)
    try:
        key = Key(name=name, sha256=hashed(secret), step_images_per_minute=limit, admin=admin, jobs=jobs)
    except ValidationError as error:
        raise ServiceError(_told(error)) from error
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    unended = file.read_bytes()[-1:] not in (b"", b"\n")  # written by hand
    with file.open("a") as stream:
        stream.write("\n" * unended + key.model_dump_json(exclude_defaults=True) + "\n")
    return secret


def _state(file: Path | None) -> tuple[int, ...] | None:
    """What is different after a change."""
    try:
        status = file.stat() if file else None
    except OSError:
        return None
    return status and (status.st_ino, status.st_size, status.st_mtime_ns)


def _read(file: Path) -> list[Key]:
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        advice = f"`fewstep keys add NAME --file {file}` makes it"
        raise ServiceError(
            f"api_keys (FEWSTEP_API_KEYS): cannot read {file}: {reason_of(error)}; {advice}"
        ) from error
    keys = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                keys.append(Key.model_validate_json(line))
            except ValidationError as error:
                raise ServiceError(f"{file}, line {number}: {_told(error)}") from error
    return keys


def _told(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'key'}: {first['msg']}"


def _used_up(limit: float, step_images: int, wait: float) -> ServiceError:
    if step_images > limit:
        message = f"This takes {step_images} step-images and this key has {limit:g} a minute."
        return refusal(message, "rate_limit_exceeded", None)
    message = f"This key has {limit:g} step-images a minute, and they are used up."
    return refusal(message, "rate_limit_exceeded", wait)
