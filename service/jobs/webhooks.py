"""Webhooks: signed as Standard Webhooks are, sent from the store until they arrive or are given up.

A delivery that this server has taken is another one's when it has not been told of for `TAKEN_SECONDS`, so that a
killed server loses none; a receiver may therefore get one twice, under the same `webhook-id`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import httpx
from sqlalchemy import func, select

from ..errors import SHOWN, ServiceError, invalid
from .database import Database
from .tables import DeliveryRow

log = logging.getLogger(__name__)

PREFIX = "whsec_"
FIRST_WAIT_SECONDS = 5.0
LONGEST_WAIT_SECONDS = 6 * 3600.0
ANSWER_SECONDS = 10.0
TAKEN_SECONDS = 60.0
PARAM = "integrations.webhook.url"


def read_secret(text: str) -> bytes:
    """
    Raises:
        ServiceError: not `whsec_` and 24 to 64 bytes in base64.
    """
    try:
        secret = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if not text.startswith(PREFIX) or not 24 <= len(secret) <= 64:
        message = "webhook_secret (FEWSTEP_WEBHOOK_SECRET): expected whsec_ and 24 to 64 bytes in base64"
        raise ServiceError(message, param="webhook_secret")
    return secret


def sign(secret: bytes, id: str, timestamp: int, body: str) -> str:
    digest = hmac.new(secret, f"{id}.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def check_url(url: str, hosts: Sequence[str], secret: bytes | None) -> str:
    """
    Raises:
        ServiceError: 400, webhooks may not go there, or the server cannot sign them.
    """
    if secret is None or not hosts:
        missing = "FEWSTEP_WEBHOOK_SECRET" if secret is None else "FEWSTEP_WEBHOOK_HOSTS"
        raise invalid(PARAM, f"This server sends no webhooks: it has no {missing}.", "unsupported_value")
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise invalid(PARAM, f"Invalid '{PARAM}': {url[:SHOWN]!r} is no URL.") from error
    if parsed.userinfo or not any(fnmatchcase(parsed.host, host) for host in hosts):
        message = f"Webhooks may not go to {parsed.host[:SHOWN]!r}; allowed: {', '.join(hosts)}."
        raise invalid(PARAM, message)
    return url


@dataclass(frozen=True)
class Delivery:
    """A webhook that is this server's to send.

    Attributes:
        attempt: 1 for the first.
    """

    id: str
    url: str
    body: str
    attempt: int


class Webhooks:
    """Sends what is due."""

    def __init__(
        self, database: Database, secret: bytes, attempts: int, first_wait: float = FIRST_WAIT_SECONDS
    ) -> None:
        self._database, self._secret, self._attempts = database, secret, attempts
        self._first_wait = first_wait
        # Redirects are not followed: they could lead where webhooks may not go.
        self._client = httpx.Client(timeout=ANSWER_SECONDS, follow_redirects=False, trust_env=False)

    def send_due(self) -> int:
        """Sends all that are due, one after the other; returns how many.

        Raises:
            StoreGoneError: the database does not answer.
        """
        count = 0
        while (delivery := self._take()) is not None:
            outcome, done = self._send(delivery)
            self._note(delivery, outcome, done)
            count += 1
        return count

    def close(self) -> None:
        self._client.close()

    def _take(self) -> Delivery | None:
        due = select(DeliveryRow).where(~DeliveryRow.done, DeliveryRow.due <= time.time())
        wanted = due.order_by(DeliveryRow.due).limit(1).with_for_update(skip_locked=True)
        with self._database.begin() as session:
            row = session.scalars(wanted).first()
            if row is None:
                return None
            row.attempts, row.due = row.attempts + 1, time.time() + TAKEN_SECONDS
            return Delivery(row.id, row.url, row.body, row.attempts)

    def _send(self, delivery: Delivery) -> tuple[str, bool]:
        """What came of it, and whether it has arrived."""
        try:
            with self._client.stream(
                "POST", delivery.url, content=delivery.body, headers=self._headers(delivery)
            ) as answer:
                return f"HTTP {answer.status_code}", answer.is_success
        except (httpx.HTTPError, OSError) as error:
            return type(error).__name__, False

    def _headers(self, delivery: Delivery) -> Mapping[str, str]:
        timestamp = int(time.time())
        return {
            "content-type": "application/json",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._secret, delivery.id, timestamp, delivery.body),
        }

    def _note(self, delivery: Delivery, outcome: str, arrived: bool) -> None:
        given_up = not arrived and delivery.attempt >= self._attempts
        level = logging.INFO if arrived else logging.WARNING
        log.log(level, "webhook=%s attempt=%d %s", delivery.id, delivery.attempt, outcome)
        with self._database.begin() as session:
            row = session.get(DeliveryRow, delivery.id, with_for_update=True)
            if row is None or row.attempts != delivery.attempt:
                return  # another server has it by now
            row.outcome, row.done = outcome, arrived or given_up
            row.due = time.time() + self.wait(delivery.attempt)

    def wait(self, attempt: int) -> float:
        """Seconds after a failed attempt: 5 s, 20 s, 80 s, ... 6 h."""
        return float(min(LONGEST_WAIT_SECONDS, self._first_wait * 4 ** (attempt - 1)))

    def waiting(self) -> int:
        """How many are still to arrive."""
        with self._database.begin() as session:
            wanted = select(func.count()).select_from(DeliveryRow).where(~DeliveryRow.done)
            return session.scalar(wanted) or 0
