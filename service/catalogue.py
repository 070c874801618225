"""Which models a server has, under which names; a change is on disk before it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from .errors import ServiceError, invalid
from .metrics import Metrics
from .settings import MODEL_NAME, MODEL_NAME_FORM
from .versions import Ledger, Line, Served, Version


class Catalogue:
    """Models by name, each with its versions, and aliases of either.

    Attributes:
        configured: Model -> reference of its bundle, as the settings have it; the first is the default.
    """

    def __init__(self, configured: Mapping[str, str], ledger: Ledger, metrics: Metrics) -> None:
        self.configured = configured
        self._ledger, self._metrics = ledger, metrics
        self._served = Served()

    @property
    def names(self) -> tuple[str, ...]:
        """Of all models, the default one first."""
        return tuple(dict.fromkeys((*self.configured, *self.lines)))

    @property
    def lines(self) -> Mapping[str, Line]:
        """Of the models that the server has got to."""
        return self._served.models

    @property
    def aliases(self) -> Mapping[str, str]:
        return self._served.aliases

    def find(self, name: str | None) -> tuple[Line, Version | None]:
        """The model of a name or alias, and the version if that is pinned: `NAME@3`, `NAME@sha256:...`.

        Raises:
            ServiceError: 404, no such model or version; 503, the server has not got to it yet.
        """
        wanted = self.names[0] if name is None else self.aliases.get(name, name)
        if wanted in self.lines:
            return self.lines[wanted], None
        base, _, pin = wanted.rpartition("@")
        if base in self.lines and (version := self.lines[base].pinned(pin)):
            return self.lines[base], version
        if wanted in self.names or (base in self.names and base not in self.lines):
            raise still_loading(wanted)
        served = ", ".join(self.names)
        message = f"The model '{wanted[:100]}' does not exist; this server has: {served}."
        raise ServiceError(message, status=404, param="model", code="model_not_found")

    def line(self, name: str) -> Line:
        """
        Raises:
            ServiceError: as `find`; 400, the name is that of one version.
        """
        line, pinned = self.find(name)
        if pinned is not None:
            raise invalid("model", f"'{name}' is one version; give the name of the model.")
        return line

    def line_or_new(self, name: str) -> Line:
        """
        Raises:
            ServiceError: 400, no model can have that name; 409, an alias has it.
        """
        if name in self.lines:
            return self.lines[name]
        _check_name(name, "model")
        if name in self.aliases:
            message = f"'{name}' is an alias of '{self.aliases[name]}'."
            raise ServiceError(message, status=409, param="model", code="name_taken")
        return Line(name=name)

    async def read(self) -> None:
        """
        Raises:
            ServiceError: the file is not what was written.
        """
        self._served = await asyncio.to_thread(self._ledger.read)

    def configure(self, name: str, digest: str, reference: str) -> None:
        """What the settings name serves, unless something has been published since they named it."""
        line = self.lines.get(name) or Line(name=name)
        if line.configured != digest:
            line = line.published(line.new(digest, reference, "configured"))
            line = line.model_copy(update={"configured": digest})
        others = {other: known for other, known in self.lines.items() if other != name}
        configured = {other: others.pop(other) for other in self.configured if other in others}
        self._served = self._with(models={**configured, name: line, **others})

    def tell_shares(self) -> None:
        """Tells the metrics which versions may be reached, and with which share of the requests."""
        self._metrics.shares([version for line in self.lines.values() for version in line.active])

    async def put(self, line: Line) -> None:
        """
        Raises:
            ServiceError: 507, the disk does not take it, and nothing has changed.
        """
        await self._write(self._with(models={**self.lines, line.name: line}))

    async def alias(self, name: str, model: str) -> None:
        """Another name for a model or for a version of it.

        Raises:
            ServiceError: 400, it is no name; 404, no such model; 409, a model has that name; as `put`.
        """
        if name in self.names:
            message = f"'{name}' is the name of a model."
            raise ServiceError(message, status=409, param="alias", code="name_taken")
        _check_name(name, "alias")
        line, pinned = self.find(model)
        await self._write(self._with(aliases={**self.aliases, name: pinned.id if pinned else line.name}))

    async def forget_alias(self, name: str) -> None:
        """
        Raises:
            ServiceError: 404, there is none; as `put`.
        """
        if name not in self.aliases:
            raise ServiceError(f"There is no alias '{name[:100]}'.", status=404, code="alias_not_found")
        left = {alias: model for alias, model in self.aliases.items() if alias != name}
        await self._write(self._with(aliases=left))

    def _with(self, **changes: Any) -> Served:
        return self._served.model_copy(update=changes)

    async def _write(self, served: Served) -> None:
        await asyncio.to_thread(self._ledger.write, served)
        self._served = served
        self.tell_shares()


def still_loading(name: str) -> ServiceError:
    message = f"The model '{name}' is loading."
    return ServiceError(message, status=503, code="model_loading", headers={"Retry-After": "1"})


def _check_name(name: str, param: str) -> None:
    if not MODEL_NAME.fullmatch(name):
        raise invalid(param, f"Invalid '{param}': expected {MODEL_NAME_FORM}.")
