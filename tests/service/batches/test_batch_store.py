"""What is true of batches in the store on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from service.batches.store import WINDOW_SECONDS, BatchStore, NewBatch
from service.errors import ServiceError
from service.jobs.database import Database
from service.jobs.leases import Lease, LeaseLostError
from service.jobs.tables import BatchRow, UploadRow

FOREVER = 1000.0


@pytest.fixture
def store(database: Database) -> BatchStore:
    return BatchStore(database)


def submit(store: BatchStore, limit: int = 100, **changes: Any) -> BatchRow:
    asked: dict[str, Any] = {"input_file": "file-a", "total": 3, **changes}
    return store.create(NewBatch(**asked), limit)


def take(store: BatchStore, owner: str = "server", seconds: float = FOREVER) -> Lease:
    claimed = store.claim(owner, seconds)
    assert claimed is not None
    return claimed[1]


def output(id: str = "file-out") -> UploadRow:
    return UploadRow(
        id=id, created_at=1, filename="o.jsonl", purpose="batch_output", bytes=1, digest="sha256:0", client=""
    )


def test_a_batch_goes_from_its_file_to_its_end(store: BatchStore, database: Database) -> None:
    batch = submit(store, metadata={"team": "a"}, client="alice")
    assert (batch.status, batch.total, batch.details) == ("validating", 3, {"team": "a"})
    assert batch.expires_at == batch.created_at + WINDOW_SECONDS
    lease = take(store)
    assert store.begin(lease) == "in_progress"
    assert store.record(lease, 1, False, "1.1.json") == "in_progress"
    assert store.record(lease, 3, True, "3.1.json") == "in_progress"
    assert {number: row.failed for number, row in store.lines(batch.id).items()} == {1: False, 3: True}
    assert store.finalize(lease) == "finalizing"
    store.finish(lease, "completed", {"output": output()})
    ended = store.get(batch.id)
    assert (ended.status, ended.completed, ended.failed, ended.owner) == ("completed", 1, 1, None)
    assert (ended.output_file, ended.error_file) == ("file-out", None)
    assert ended.completed_at is not None
    with database.begin() as session:
        assert session.get(UploadRow, "file-out") is not None
    assert store.claim("server", FOREVER) is None
    assert store.counts() == {"completed": 1}


def test_a_file_that_cannot_be_added_leaves_the_batch_as_it_was(
    store: BatchStore, database: Database
) -> None:
    with database.begin() as session:
        session.add(output())
    batch, lease = submit(store), take(store)
    store.finalize(lease)
    with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        store.finish(lease, "completed", {"output": output(), "error": output("file-err")})
    assert store.get(batch.id).status == "finalizing"
    with database.begin() as session:
        assert session.get(UploadRow, "file-err") is None


def test_many_servers_at_once_never_share_a_batch(store: BatchStore) -> None:
    wanted = {submit(store).id for _ in range(12)}
    taken: list[str] = []

    def run(owner: str) -> None:
        while claimed := store.claim(owner, FOREVER):
            taken.append(claimed[1].job)
            store.finish(claimed[1], "completed", {})

    threads = [threading.Thread(target=run, args=(f"server {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(taken) == 12
    assert set(taken) == wanted


def test_a_server_takes_several_and_each_once(store: BatchStore) -> None:
    first, second = submit(store), submit(store)
    lease = take(store)
    claimed = store.claim("server", FOREVER, [lease.job])
    assert claimed is not None
    assert [lease.job, claimed[0].id] == [first.id, second.id]
    assert store.claim("server", FOREVER, [first.id, second.id]) is None
    assert store.claim("other", FOREVER) is None


def test_a_restarted_server_gets_its_batch_back_and_who_had_it_is_shut_out(store: BatchStore) -> None:
    submit(store)
    before = take(store)
    after = take(store)
    assert after == Lease(before.job, before.fence + 1)
    for write in (
        lambda: store.heartbeat(before, FOREVER),
        lambda: store.begin(before),
        lambda: store.record(before, 1, False, "1.1.json"),
        lambda: store.finish(before, "completed", {"output": output()}),
        lambda: store.give_back(before),
    ):
        with pytest.raises(LeaseLostError):
            write()
    assert store.lines(before.job) == {}
    assert store.heartbeat(after, FOREVER) == "validating"


def test_a_batch_whose_lease_has_run_out_or_was_given_back_is_anybodys(store: BatchStore) -> None:
    submit(store)
    lease = take(store, "a", seconds=-1.0)
    assert take(store, "b").fence == lease.fence + 1
    submit(store)
    again = take(store, "a")
    store.give_back(again)
    assert take(store, "c").job == again.job


def test_a_line_is_recorded_once(store: BatchStore) -> None:
    batch = submit(store)
    lease = take(store)
    store.record(lease, 1, False, "1.1.json")
    with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        store.record(lease, 1, False, "1.2.json")
    assert store.get(batch.id).completed == 1


def test_cancelling_is_heard_wherever_the_batch_is(store: BatchStore) -> None:
    batch = submit(store)
    assert store.cancel(batch.id).status == "cancelling"
    stamp = store.get(batch.id).cancelling_at
    assert store.cancel(batch.id).cancelling_at == stamp
    lease = take(store)
    assert store.heartbeat(lease, FOREVER) == "cancelling"
    assert store.begin(lease) == "cancelling"
    assert store.record(lease, 1, False, "1.1.json") == "cancelling"
    assert store.finalize(lease) == "cancelling"
    store.finish(lease, "cancelled", {})
    with pytest.raises(ServiceError, match="has ended") as raised:
        store.cancel(batch.id)
    assert raised.value.status == 409


def test_a_batch_that_cannot_be_worked_on_says_why(store: BatchStore) -> None:
    batch = submit(store)
    store.fail(take(store), ServiceError("It is gone.", status=404, param="input_file_id", code="not_found"))
    failed = store.get(batch.id)
    assert (failed.status, failed.failed_at is None) == ("failed", False)
    told = {"code": "not_found", "line": None, "message": "It is gone.", "param": "input_file_id"}
    assert failed.errors == {"data": [told]}


def test_keys_make_one_batch_and_the_queue_is_bounded_by_client(store: BatchStore) -> None:
    first = submit(store, limit=2, client="a", idempotency_key="a:k", digest="1")
    assert submit(store, limit=2, client="a", idempotency_key="a:k", digest="1").id == first.id
    with pytest.raises(ServiceError, match="other fields"):
        submit(store, client="a", idempotency_key="a:k", digest="2")
    submit(store, limit=2, client="a")
    with pytest.raises(ServiceError, match="2 of your batches") as raised:
        submit(store, limit=2, client="a")
    assert (raised.value.status, raised.value.code) == (429, "queue_full")
    submit(store, limit=2, client="b")
    store.finish(take(store), "completed", {})
    submit(store, limit=2, client="a")


def test_pages_and_owners(store: BatchStore) -> None:
    made = [submit(store, client="ab"[number % 2]).id for number in range(6)]
    rows, more = store.page(limit=4)
    assert ([row.id for row in rows], more) == (made[:1:-1], True)
    rows, more = store.page(after=rows[-1].id)
    assert ([row.id for row in rows], more) == (made[1::-1], False)
    assert [row.id for row in store.page("a")[0]] == made[4::-2]
    for ask in (store.get, store.cancel):
        with pytest.raises(ServiceError, match="no batch") as raised:
            ask(made[0], "b")
        assert raised.value.status == 404
    for odd in ("", "x", "a\0b", "ü"):
        with pytest.raises(ServiceError, match="no batch"):
            store.get(odd)
