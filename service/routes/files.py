"""`/v1/files`: prompt sets for jobs, requests and answers of batches."""

from __future__ import annotations

import errno
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from ..context import InService, Service
from ..errors import SHOWN, ServiceError, invalid
from ..jobs.objects import file_object, page_of
from ..jobs.schemas import FileDeleted, FileList, FileObject
from ..jobs.uploads import PURPOSES
from ..schemas import unique
from .images import ERRORS

router = APIRouter(prefix="/v1/files", tags=["files"])

FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                    },
                }
            }
        },
    }
}


@router.post("", responses=ERRORS, openapi_extra=FORM)
async def create_file(request: Request, service: InService) -> FileObject:
    """Keeps a file. For jobs: JSONL with `{"prompt": …}` in each line, or text with a prompt in each line; for
    batches: JSONL with a request in each line."""
    try:
        async with request.form(max_files=1, max_fields=20) as form:
            _check_names(form)
            file, purpose = _file(form), _purpose(form, request)
            row = await service.jobs.call(
                service.jobs.uploads.add,
                file.file,
                file.filename or "file",
                purpose,
                request.state.client,
            )
    except HTTPException as error:
        message = f"The body is no multipart form: {error.detail.rstrip('.')}."
        raise ServiceError(message, code="invalid_body") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ServiceError("The server's disk is full.", status=507, code="disk_full") from error
    return file_object(row)


@router.get("", responses=ERRORS)
async def list_files(
    request: Request,
    service: InService,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> FileList:
    uploads = service.jobs.uploads
    rows, more = await service.jobs.call(
        uploads.page, visible_to(request), purpose, after, limit, order == "desc"
    )
    return FileList.model_validate(page_of([file_object(row) for row in rows], more))


@router.get("/{id}", responses=ERRORS)
async def get_file(id: str, request: Request, service: InService) -> FileObject:
    return file_object(await service.jobs.call(service.jobs.uploads.get, id, visible_to(request)))


@router.get("/{id}/content", responses=ERRORS, response_class=FileResponse)
async def file_content(id: str, request: Request, service: InService) -> FileResponse:
    row, path = await service.jobs.call(_located, service, id, visible_to(request))
    return FileResponse(path, media_type="application/octet-stream", filename=row.filename)


@router.delete("/{id}", responses=ERRORS)
async def delete_file(id: str, request: Request, service: InService) -> FileDeleted:
    """A file that a job still needs stays: 409."""
    await service.jobs.call(service.jobs.uploads.delete, id, visible_to(request))
    return FileDeleted(id=id)


def visible_to(request: Request) -> str | None:
    """Whose files a request may see: all where keys are not needed or may run jobs, else its own."""
    key = request.state.key
    return None if key is None or key.may_run_jobs else key.name


def _located(service: Service, id: str, client: str | None) -> Any:
    row = service.jobs.uploads.get(id, client)
    return row, service.jobs.uploads.path(row)


def _check_names(form: FormData) -> None:
    for name in unique(form.multi_items()):
        if name not in ("file", "purpose"):
            name = name[:SHOWN]
            raise invalid(name, f"Unknown parameter: '{name}'.", "unknown_parameter")


def _file(form: FormData) -> UploadFile:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise invalid("file", "Missing required parameter: 'file'.", "missing_required_parameter")
    return file


def _purpose(form: FormData, request: Request) -> Any:
    purpose, key = form.get("purpose"), request.state.key
    if purpose not in PURPOSES:
        got = f"got {purpose[:SHOWN]!r}" if isinstance(purpose, str) else "it is missing"
        raise invalid("purpose", f"Invalid 'purpose': expected {' or '.join(PURPOSES)}, {got}.")
    if purpose == "fine-tune" and key is not None and not key.may_run_jobs:
        raise ServiceError(
            "This key may not run jobs.", status=403, param="purpose", code="permission_denied"
        )
    return purpose
