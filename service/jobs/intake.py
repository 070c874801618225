"""A request for a job, checked against what there is, becomes a job of the store."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from ..errors import SHOWN, ServiceError, invalid
from .prompt_files import NAMED_SETS, check_prompts
from .recipes import Recipes
from .schemas import JobRequest
from .store import NewJob
from .uploads import Uploads
from .webhooks import check_url

LONGEST_KEY = 255


class Intake:
    """Says no before a job waits, wherever that can be known."""

    def __init__(
        self, recipes: Recipes, uploads: Uploads, webhook_hosts: Sequence[str], webhook_secret: bytes | None
    ) -> None:
        self._recipes, self._uploads = recipes, uploads
        self._hosts, self._secret = webhook_hosts, webhook_secret

    def check(self, body: JobRequest, client: str, key: str | None) -> NewJob:
        """
        Args:
            client: Whose key the request came with.
            key: Its Idempotency-Key.

        Raises:
            ServiceError: 400, 404, something that is asked for is not to be had; says what is.
        """
        recipe = self._recipes.resolve(body.model, body.method.sid)
        self._check_prompts(body.training_file, "training_file")
        if body.prompts is not None:
            self._check_prompts(body.prompts, "prompts")
        return NewJob(
            model=body.model,
            training_file=body.training_file,
            recipe=recipe,
            seed=body.seed or 0,
            suffix=body.suffix,
            options=self._options(body),
            metadata=body.metadata or {},
            client=client,
            idempotency_key=scoped(client, key),
            digest=hashlib.sha256(body.model_dump_json().encode()).hexdigest(),
        )

    def find_file(self, source: str) -> str:
        """What a recipe calls the prompts that a job names: a path, or the name of a set.

        Raises:
            ServiceError: 404, there is no such file.
        """
        return source if source in NAMED_SETS else str(self._uploads.path(self._uploads.get(source)))

    def _check_prompts(self, source: str, param: str) -> None:
        if source in NAMED_SETS:
            return
        if not source.startswith("file-"):
            message = f"There are no prompts {source[:SHOWN]!r}: give a file's id or {', '.join(NAMED_SETS)}."
            raise invalid(param, message)
        try:
            row = self._uploads.get(source)
            path = self._uploads.path(row)
        except ServiceError as error:
            raise ServiceError(error.message, status=error.status, param=param, code=error.code) from error
        if row.purpose != "fine-tune":
            raise invalid(param, f"The purpose of {source} is {row.purpose}; a job takes fine-tune.")
        check_prompts(path, self._uploads.max_bytes)

    def _options(self, body: JobRequest) -> dict[str, Any]:
        options: dict[str, Any] = {"precision": body.precision}
        if body.gate is not None:
            options["gate"] = body.gate.model_dump(mode="json")
        if body.publish is not None:
            options["publish"] = body.publish.model_dump(mode="json")
        if body.prompts is not None:
            options["prompts"] = body.prompts
        for integration in body.integrations or ():
            options["webhook"] = check_url(integration.webhook.url, self._hosts, self._secret)
        return options


def scoped(client: str, key: str | None) -> str | None:
    """An Idempotency-Key as it is kept: clients cannot meet each other's.

    Raises:
        ServiceError: 400, it is none.
    """
    if key is None:
        return None
    if not 0 < len(key) <= LONGEST_KEY or not key.isprintable():
        message = f"An Idempotency-Key has 1 to {LONGEST_KEY} printable characters."
        raise ServiceError(message, code="invalid_value")
    return f"{client}:{key}"
