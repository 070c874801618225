"""Files: whole or not there, bounded, seen by whom they belong to."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from service.errors import ServiceError
from service.jobs.database import Database
from service.jobs.store import JobStore, NewJob
from service.jobs.uploads import ABANDONED_SECONDS, Uploads
from service.settings import Settings

from ..fake_runtime import FakeRuntime
from ..running import Running, run_server

ROUTE = "/v1/files"


@pytest.fixture
def uploads(database: Database, tmp_path: Path) -> Uploads:
    return Uploads(database, tmp_path / "files", max_bytes=3 << 20)


def add(uploads: Uploads, content: bytes = b"a\n", name: str = "a.txt", client: str = "") -> str:
    return uploads.add(io.BytesIO(content), name, "fine-tune", client).id


def test_a_file_is_kept_with_its_digest(uploads: Uploads) -> None:
    content = os.urandom(2 << 20)
    row = uploads.get(add(uploads, content, "prompts.jsonl"))
    assert (row.bytes, row.filename) == (2 << 20, "prompts.jsonl")
    assert row.digest == "sha256:" + hashlib.sha256(content).hexdigest()
    assert uploads.path(row).read_bytes() == content
    assert uploads.path(row).suffix == ".jsonl"


def test_what_is_refused_leaves_nothing(uploads: Uploads) -> None:
    with pytest.raises(ServiceError, match="larger than 3145728 bytes") as raised:
        add(uploads, b"x" * ((3 << 20) + 1))
    assert raised.value.status == 413
    with pytest.raises(ServiceError, match="is empty"):
        add(uploads, b"")
    assert list(uploads.folder.iterdir()) == []
    assert uploads.page() == ([], False)


class FullDisk(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_said_and_leaves_nothing(uploads: Uploads) -> None:
    with pytest.raises(ServiceError, match="No space left") as raised:
        uploads.add(FullDisk(), "a.txt", "batch")
    assert (raised.value.status, raised.value.code) == (507, "disk_full")
    assert list(uploads.folder.iterdir()) == []


def test_a_database_that_refuses_leaves_no_bytes(uploads: Uploads, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise ServiceError("gone", status=503)

    monkeypatch.setattr(uploads.database, "begin", broken)
    with pytest.raises(ServiceError, match="gone"):
        add(uploads)
    assert list(uploads.folder.iterdir()) == []


def test_what_a_killed_server_left_is_swept_away(uploads: Uploads) -> None:
    uploads.folder.mkdir(parents=True)
    old, new = uploads.folder / ".file-a.jsonl.part", uploads.folder / ".file-b.jsonl.part"
    for path in (old, new):
        path.write_bytes(b"half")
    long_ago = time.time() - ABANDONED_SECONDS - 10
    os.utime(old, (long_ago, long_ago))
    add(uploads)
    assert not old.exists()
    assert new.exists()


def test_a_file_that_becomes_whole_meanwhile_is_no_error(uploads: Uploads) -> None:
    """A link to nothing is listed and has no time, as a file that is renamed in between."""
    uploads.folder.mkdir(parents=True)
    (uploads.folder / ".file-a.jsonl.part").symlink_to("nowhere")
    assert uploads.path(uploads.get(add(uploads))).read_bytes() == b"a\n"


@pytest.mark.parametrize("newest_first", [True, False])
def test_pages_hold_every_file_once(uploads: Uploads, newest_first: bool) -> None:
    made = {add(uploads) for _ in range(7)}
    seen: list[str] = []
    more = True
    while more:
        after = seen[-1] if seen else None
        rows, more = uploads.page(after=after, limit=3, newest_first=newest_first)
        seen += [row.id for row in rows]
    assert len(seen) == 7
    assert set(seen) == made


def test_files_of_others_are_not_there(uploads: Uploads) -> None:
    own, other = add(uploads, client="alice"), add(uploads, client="bob")
    assert [row.id for row in uploads.page("alice")[0]] == [own]
    for ask in (uploads.get, uploads.delete):
        with pytest.raises(ServiceError, match="no file") as raised:
            ask(other, "alice")
        assert raised.value.status == 404
    assert len(uploads.page()[0]) == 2
    uploads.delete(own, "alice")
    assert [path.stem for path in uploads.folder.iterdir()] == [other]


def test_a_file_stays_until_the_jobs_that_need_it_have_ended(uploads: Uploads) -> None:
    store, file = JobStore(uploads.database), add(uploads)
    job = store.create(NewJob("shapes-sana", file, {}), limit=1)
    with pytest.raises(ServiceError, match=f"needed by {job.id}") as raised:
        uploads.delete(file)
    assert raised.value.status == 409
    store.cancel(job.id)
    uploads.delete(file)
    assert uploads.page() == ([], False)


def test_bytes_that_are_elsewhere_are_said(uploads: Uploads) -> None:
    row = uploads.get(add(uploads))
    uploads.path(row).unlink()
    with pytest.raises(ServiceError, match="share one data folder"):
        uploads.path(row)
    uploads.delete(row.id)


def test_the_official_client_sends_lists_reads_and_deletes(settings: Settings) -> None:
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        files = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0).files
        content = b'{"prompt": "a"}\n' * 100_000  # larger than what a request's body may be
        made = files.create(file=("prompts.jsonl", content), purpose="fine-tune")
        batch = files.create(file=("b.jsonl", b"{}\n"), purpose="batch")
        assert (made.object, made.bytes, made.status) == ("file", len(content), "processed")
        assert files.retrieve(made.id).filename == "prompts.jsonl"
        assert files.content(made.id).read() == content
        assert {file.id for file in files.list()} == {made.id, batch.id}
        assert [file.id for file in files.list(purpose="batch")] == [batch.id]
        assert files.delete(made.id).deleted
        with pytest.raises(openai.NotFoundError, match=made.id):
            files.content(made.id)


@pytest.mark.parametrize(
    ("form", "param", "says"),
    [
        ({"data": {"purpose": "fine-tune"}, "files": {"other": b"a"}}, "other", "Unknown parameter"),
        ({"data": {"purpose": "batch", "x": "1"}, "files": {"file": b"a"}}, "x", "Unknown parameter"),
        ({"data": {"purpose": ["batch", "fine-tune"]}, "files": {"file": b"a"}}, "purpose", "more than once"),
        ({"data": {"purpose": "fine-tune"}}, "file", "Missing"),
        ({"files": {"file": b"a"}}, "purpose", "missing"),
        ({"data": {"purpose": "vision"}, "files": {"file": b"a"}}, "purpose", "got 'vision'"),
        ({"data": {"purpose": "batch"}, "files": {"file": b""}}, "file", "empty"),
        ({"json": {"purpose": "batch"}}, "file", "file"),
        (
            {"content": b"--x\r\nrubbish", "headers": {"content-type": "multipart/form-data; boundary=x"}},
            "file",
            "file",
        ),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, None, "multipart"),
    ],
)
def test_bad_forms_are_told(shared: Running, form: dict[str, Any], param: str | None, says: str) -> None:
    answer = shared.client.post(ROUTE, **form)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert says in answer.json()["error"]["message"]


def test_a_file_that_is_too_large_is_refused_by_its_declared_length_and_by_its_real_one(
    settings: Settings,
) -> None:
    small = settings.model_copy(update={"max_file_bytes": 5000})
    with run_server(small, {"fake": FakeRuntime()}) as running:
        declared = running.client.post(ROUTE, data={"purpose": "batch"}, files={"file": b"x" * 6000})
        assert (declared.status_code, declared.json()["error"]["code"]) == (413, "file_too_large")
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        head = f"POST {ROUTE} HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        with socket.create_connection(address, timeout=30) as connection:
            connection.sendall(f"{head}Content-Length: 99999999999\r\n\r\n".encode())
            assert b" 413 " in connection.recv(1000)

        def endless() -> Any:
            yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(100):
                yield b"x" * 4096

        kind = {"content-type": "multipart/form-data; boundary=b"}
        try:
            answer = httpx.post(running.url + ROUTE, content=endless(), headers=kind, timeout=30)
        except httpx.TransportError:
            pass  # the server hung up on who went on sending
        else:
            assert answer.status_code == 413
        assert running.client.get(ROUTE).json()["data"] == []


def test_a_file_that_stops_coming_is_given_up(settings: Settings) -> None:
    hasty = settings.model_copy(update={"body_seconds": 0.3})
    with run_server(hasty, {"fake": FakeRuntime()}) as running:
        address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
        head = f"POST {ROUTE} HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        with socket.create_connection(address, timeout=30) as connection:
            connection.sendall(f"{head}Content-Length: 1000\r\n\r\n--b\r\n".encode())
            assert b" 408 " in connection.recv(1000)


def test_a_file_that_comes_drop_by_drop_is_given_up(settings: Settings) -> None:
    """Each drop is in time, all of them are not; what comes at a bearable speed may take longer than a body."""
    hasty = settings.model_copy(update={"body_seconds": 0.5})
    start = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b\r\n'
    start += b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\n'

    def parts(size: int) -> Iterator[bytes]:
        yield start
        for _ in range(10):
            time.sleep(0.1)
            yield b"x" * size
        yield b"\r\n--b--\r\n"

    with run_server(hasty, {"fake": FakeRuntime()}) as running:

        def sent(size: int) -> int:
            kind = {"content-type": "multipart/form-data; boundary=b"}
            return httpx.post(running.url + ROUTE, content=parts(size), headers=kind, timeout=30).status_code

        assert sent(50_000) == 200
        with suppress(httpx.TransportError):  # the server hung up on who went on sending
            assert sent(1) == 408
        assert len(running.client.get(ROUTE).json()["data"]) == 1


def test_many_files_at_once(settings: Settings) -> None:
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        contents = [os.urandom(200_000) for _ in range(8)]
        made: dict[str, bytes] = {}

        def send(content: bytes) -> None:
            data, files = {"purpose": "batch"}, {"file": ("a", content)}
            answer = httpx.post(running.url + ROUTE, data=data, files=files, timeout=60)
            made[answer.json()["id"]] = content

        threads = [threading.Thread(target=send, args=(content,)) for content in contents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(made) == 8
        for id, content in made.items():
            assert running.client.get(f"{ROUTE}/{id}/content").content == content
