"""The one error type of this room and the one place where it becomes an OpenAI error object."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

SHOWN = 200
"""Characters of a client's own text that a message may repeat."""


class ServiceError(Exception):
    """A request or a start-up that cannot be served.

    Attributes:
        status: HTTP status; at the command line every `ServiceError` is exit code 2.
        type, param, code: As in the OpenAI error object; `type` follows from the status.
        headers: Sent along, e.g. `Retry-After`.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def as_object(self) -> dict[str, Any]:
        """The body of an answer."""
        told = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": told}


class ClientGoneError(Exception):
    """The connection ended before the request or its answer did; nobody is left to be told."""


def reason_of(error: Exception) -> str:
    """Why a file cannot be read, without the number and the path that the system adds."""
    return str(getattr(error, "strerror", None) or error)


def invalid(param: str, message: str, code: str = "invalid_value") -> ServiceError:
    return ServiceError(message, param=param, code=code)


def to_response(error: Exception) -> Response:
    """Any exception -> the response that a client of the OpenAI API understands."""
    known = as_service_error(error)
    # ASCII only: a message may quote a lone surrogate, which has no UTF-8 form.
    content = json.dumps(known.as_object(), ensure_ascii=True)
    return Response(content, known.status, known.headers, media_type="application/json")


def as_service_error(error: Exception) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, RequestValidationError):
        return from_validation(error.errors()[0])
    if isinstance(error, HTTPException):
        return _from_http(error)
    message = "The server failed to process the request; its log has the reason under this x-request-id."
    return ServiceError(message, status=500, code="internal_error")


def from_validation(problem: Mapping[str, Any]) -> ServiceError:
    """Of a problem of pydantic's, whose location begins with where the whole comes from."""
    kind, location = str(problem["type"]), _location(problem["loc"])
    if kind == "json_invalid":
        return ServiceError("The body is not valid JSON.", code="invalid_json")
    if location is None:
        message = "The body must be a JSON object in Unicode, sent with 'Content-Type: application/json'."
        return ServiceError(message, code="invalid_body")
    if kind == "extra_forbidden":
        return invalid(location, f"Unknown parameter: '{location}'.", "unknown_parameter")
    if kind == "missing":
        return invalid(location, f"Missing required parameter: '{location}'.", "missing_required_parameter")
    return invalid(location, f"Invalid '{location}': {_lower_first(problem['msg'])}.", _code(kind))


def _code(kind: str) -> str:
    """OpenAI-style code of a pydantic error type."""
    if kind == "unsupported_value":
        return kind
    return "invalid_type" if kind.endswith(("_type", "_parsing", "_from_float")) else "invalid_value"


def _location(path: Sequence[int | str]) -> str | None:
    inner = [str(part) for part in path[1:] if not isinstance(part, int)]
    return ".".join(inner)[:SHOWN] if inner else None


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


def _from_http(error: HTTPException) -> ServiceError:
    message, code = {
        400: ("The body could not be read as JSON in UTF-8.", "invalid_json"),
        404: ("There is nothing at this address; GET /docs lists the routes.", "not_found"),
        405: ("This address does not accept this method.", "method_not_allowed"),
    }.get(error.status_code, (str(error.detail), None))
    return ServiceError(message, status=error.status_code, code=code, headers=error.headers)
