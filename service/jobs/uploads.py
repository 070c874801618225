"""Files that clients send: a row in the database, the bytes in the data folder, whole or not there at all."""

from __future__ import annotations

import errno
import hashlib
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

from sqlalchemy import or_, select, union_all
from sqlalchemy.orm import Session

from ..errors import ServiceError, invalid
from ..folders import is_older
from .database import Database
from .leases import page
from .tables import ACTIVE, OPEN, BatchRow, JobRow, UploadRow, is_id, new_id, now

Purpose = Literal["fine-tune", "batch", "batch_output"]
PURPOSES = ("fine-tune", "batch")
"""What clients may send; `batch_output` is what the server makes."""
CHUNK = 1 << 20
ABANDONED_SECONDS = 24 * 3600.0
LONGEST_NAME = 255


class Uploads:
    """The files of one server, or of several that share database and data folder.

    Whoever asks gives its `client`: files of others are not there for it; None sees all.
    """

    def __init__(self, database: Database, folder: Path, max_bytes: int) -> None:
        self.database, self.folder, self.max_bytes = database, folder, max_bytes

    def add(self, content: BinaryIO, filename: str, purpose: Purpose, client: str = "") -> UploadRow:
        """Takes in what is left of `content`.

        Raises:
            ServiceError: 400, it is empty; 413, it is larger than `max_bytes`; 507, the disk is full.
        """
        filename = filename[:LONGEST_NAME]
        chunks = iter(lambda: content.read(CHUNK), b"")
        row = self.write(chunks, new_id("file-"), filename, purpose, client, self.max_bytes)
        try:
            with self.database.begin() as session:
                session.add(row)
            return row
        except BaseException:
            self._place(row.id, filename).unlink(missing_ok=True)
            raise

    def write(
        self,
        chunks: Iterable[bytes],
        id: str,
        filename: str,
        purpose: Purpose,
        client: str,
        max_bytes: float = math.inf,
    ) -> UploadRow:
        """Puts bytes in their place; whoever adds the row to the database makes a file of them.

        Raises:
            ServiceError: as `add`.
        """
        path = self._place(id, filename)
        temporary = path.with_name(f".{path.name}.part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            with temporary.open("wb") as file:
                size, digest = _copy(chunks, file, max_bytes)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            message = f"The server cannot keep the file: {error.strerror or error}."
            raise ServiceError(
                message, status=507 if full else 500, code="disk_full" if full else "internal_error"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        return UploadRow(
            id=id,
            created_at=now(),
            filename=filename,
            purpose=purpose,
            bytes=size,
            digest=digest,
            client=client,
        )

    def _place(self, id: str, filename: str) -> Path:
        return self.folder / (id + suffix_of(filename))

    def _sweep(self) -> None:
        """What a killed server has left half-written."""
        for path in self.folder.glob(".*.part"):
            if is_older(path, ABANDONED_SECONDS):
                path.unlink(missing_ok=True)

    def get(self, id: str, client: str | None = None) -> UploadRow:
        """
        Raises:
            ServiceError: 404.
        """
        with self.database.begin() as session:
            return _found(session, id, client)

    def path(self, row: UploadRow) -> Path:
        """Where its bytes lie.

        Raises:
            ServiceError: 404, they are not on this machine.
        """
        path = self._place(row.id, row.filename)
        if not path.is_file():
            message = (
                f"The content of {row.id} is not here: the servers of one database share one data folder."
            )
            raise ServiceError(message, status=404, code="not_found")
        return path

    def page(
        self,
        client: str | None = None,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 20,
        newest_first: bool = True,
    ) -> tuple[Sequence[UploadRow], bool]:
        """Files in the order of their making, and whether there are more.

        Raises:
            ServiceError: 404, there is no file `after`.
        """
        wanted = select(UploadRow)
        if client is not None:
            wanted = wanted.where(UploadRow.client == client)
        if purpose is not None:
            wanted = wanted.where(UploadRow.purpose == purpose)
        made, id = UploadRow.created_at, UploadRow.id
        wanted = wanted.order_by(*((made.desc(), id.desc()) if newest_first else (made, id)))
        with self.database.begin() as session:
            if after is not None:
                last = _found(session, after, client)
                same = made == last.created_at
                wanted = wanted.where(
                    or_(made < last.created_at, same & (id < last.id))
                    if newest_first
                    else or_(made > last.created_at, same & (id > last.id))
                )
            return page(session, wanted, limit)

    def delete(self, id: str, client: str | None = None) -> None:
        """
        Raises:
            ServiceError: 404; 409, a job or batch that has not ended needs it.
        """
        with self.database.begin() as session:
            row = _found(session, id, client)
            jobs = select(JobRow.id).where(JobRow.training_file == id, JobRow.status.in_(ACTIVE))
            batches = select(BatchRow.id).where(BatchRow.input_file == id, BatchRow.status.in_(OPEN))
            if needing := session.scalars(union_all(jobs, batches)).all():
                message = f"The file is needed by {', '.join(needing)}, which has not ended; cancel it first."
                raise ServiceError(message, status=409, code="file_in_use")
            session.delete(row)
        self._place(id, row.filename).unlink(missing_ok=True)


def suffix_of(filename: str) -> str:
    """By which a distillation knows the form: `.txt` has one prompt a line, everything else is JSONL."""
    return ".txt" if filename.lower().endswith(".txt") else ".jsonl"


def too_large(limit: int) -> ServiceError:
    message = f"The file is larger than {limit} bytes (FEWSTEP_MAX_FILE_BYTES)."
    return ServiceError(message, status=413, param="file", code="file_too_large")


def _copy(chunks: Iterable[bytes], file: BinaryIO, max_bytes: float) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    for chunk in chunks:
        size += len(chunk)
        if size > max_bytes:
            raise too_large(int(max_bytes))
        digest.update(chunk)
        file.write(chunk)
    if not size:
        raise invalid("file", "The file is empty.", "empty_file")
    return size, f"sha256:{digest.hexdigest()}"


def _found(session: Session, id: str, client: str | None) -> UploadRow:
    row = session.get(UploadRow, id) if is_id(id) else None
    if row is None or client not in (None, row.client):
        raise ServiceError(f"There is no file {id[:100]!r}.", status=404, code="not_found")
    return row
