"""Batches and their lines on the wire, as at OpenAI."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from ..jobs.schemas import Body, Metadata, Name, Page
from ..jobs.tables import BatchRow
from ..schemas import ImagesRequest

MOMENTS = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


class BatchRequest(Body):
    """`POST /v1/batches`."""

    input_file_id: Name = Field(description="A file of purpose batch with a request in each line")
    endpoint: Literal["/v1/images/generations"]
    completion_window: Literal["24h"] = Field(description="What is not answered by then expires")
    metadata: Metadata = None


class LineRequest(Body):
    """A line of the input file."""

    custom_id: Name = Field(description="Another one in each line; the answer has it, too")
    method: Literal["POST"]
    url: Literal["/v1/images/generations"]
    body: ImagesRequest


class BatchError(BaseModel):
    code: str | None
    line: int | None
    message: str
    param: str | None


class BatchErrors(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int


class BatchObject(BaseModel):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: Literal["/v1/images/generations"] = "/v1/images/generations"
    errors: BatchErrors | None = Field(description="Why the batch failed as a whole")
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: Literal[
        "validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"
    ]
    output_file_id: str | None = Field(description="Answers of the requests that were answered well")
    error_file_id: str | None = Field(description="Answers of the others")
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str]


class BatchList(Page):
    data: list[BatchObject]


def batch_object(row: BatchRow) -> BatchObject:
    return BatchObject.model_validate(
        {
            "id": row.id,
            "errors": row.errors,
            "input_file_id": row.input_file,
            "status": row.status,
            "output_file_id": row.output_file,
            "error_file_id": row.error_file,
            "created_at": row.created_at,
            "expires_at": row.expires_at,
            "request_counts": {"total": row.total, "completed": row.completed, "failed": row.failed},
            "metadata": row.details,
            **{f"{moment}_at": getattr(row, f"{moment}_at") for moment in MOMENTS},
        }
    )


def answered(id: str, custom_id: str, request: str, status: int, body: dict[str, Any]) -> dict[str, Any]:
    """A line of an output or error file.

    Args:
        request: An id of the answer.
    """
    response = {"status_code": status, "request_id": request, "body": body}
    return {"id": id, "custom_id": custom_id, "response": response, "error": None}


def unanswered(id: str, custom_id: str, code: str, message: str) -> dict[str, Any]:
    """A line of an error file about a request that was not tried."""
    return {
        "id": id,
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message},
    }
