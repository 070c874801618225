"""A request for a batch, checked with every line of its file, becomes a batch of the store."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import ServiceError, invalid
from ..jobs.database import StoreGoneError
from ..jobs.intake import scoped
from ..jobs.uploads import Uploads
from .lines import PARAM, Limits, check_lines
from .schemas import BatchRequest
from .store import NewBatch


class Intake:
    """Says no before a batch waits, wherever that can be known."""

    def __init__(self, uploads: Uploads, limits: Limits) -> None:
        self._uploads, self.limits = uploads, limits

    def check(self, body: BatchRequest, client: str, visible: str | None, key: str | None) -> NewBatch:
        """
        Args:
            client: Whose key the request came with.
            visible: Whose files it may use; None: all.
            key: Its Idempotency-Key.

        Raises:
            ServiceError: 404, there is no such file; 400, it cannot be a batch; says why.
        """
        return NewBatch(
            input_file=body.input_file_id,
            total=check_lines(self.find(body.input_file_id, visible), self.limits),
            metadata=body.metadata or {},
            client=client,
            idempotency_key=scoped(client, key),
            digest=hashlib.sha256(body.model_dump_json().encode()).hexdigest(),
        )

    def find(self, id: str, visible: str | None = None) -> Path:
        """Where an input file lies.

        Raises:
            ServiceError: 404, there is none; 400, it is no input file.
        """
        try:
            row = self._uploads.get(id, visible)
            path = self._uploads.path(row)
        except StoreGoneError:
            raise
        except ServiceError as error:
            raise ServiceError(error.message, status=error.status, param=PARAM, code=error.code) from error
        if row.purpose != "batch":
            raise invalid(PARAM, f"The purpose of {id} is {row.purpose}; a batch takes batch.")
        return path
