"""What is true of the job store on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text

from service.errors import ServiceError
from service.jobs.database import Database, StoreGoneError, sqlite_url
from service.jobs.leases import Lease, LeaseLostError
from service.jobs.store import JobStore, NewJob
from service.jobs.tables import Base, JobRow

FOREVER = 1000.0


@pytest.fixture
def store(database: Database) -> JobStore:
    return JobStore(database)


def submit(store: JobStore, **changes: Any) -> JobRow:
    asked = {"model": "shapes-sana", "training_file": "shapes:train", "recipe": {"batch": 8}, **changes}
    return store.create(NewJob(**asked), limit=100)


def take(store: JobStore, owner: str = "runner", seconds: float = FOREVER) -> Lease:
    claimed = store.claim(owner, seconds)
    assert claimed is not None
    return claimed[1]


def messages(store: JobStore, job: str) -> list[str]:
    return [event.message for event in store.events(job, limit=100)]


def test_the_migrations_make_the_tables_that_the_code_uses(database: Database) -> None:
    database.migrate()
    database.migrate()  # nothing left to do
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_a_job_goes_from_the_queue_to_its_end(store: JobStore) -> None:
    job = submit(store, suffix="mine", seed=7, metadata={"team": "a"}, client="alice")
    assert (job.status, job.suffix, job.seed, job.details) == ("queued", "mine", 7, {"team": "a"})
    lease = take(store)
    assert lease.job == job.id
    assert store.heartbeat(lease, FOREVER, {"iteration": 3}) == "run"
    running = store.get(job.id)
    assert (running.status, running.progress, running.owner) == ("running", {"iteration": 3}, "runner")
    store.finish(lease, "succeeded", "Done.", "student", {"gate": {"passed": True}})
    ended = store.get(job.id)
    assert (ended.status, ended.fine_tuned_model, ended.owner) == ("succeeded", "student", None)
    assert ended.result == {"gate": {"passed": True}}
    assert ended.created_at <= (ended.started_at or 0) <= (ended.finished_at or 0)
    assert messages(store, job.id) == ["The job waits for a runner.", "The job is running.", "Done."]


def test_jobs_are_claimed_in_order_and_once(store: JobStore) -> None:
    first, second = submit(store), submit(store)
    assert [take(store, "a").job, take(store, "b").job] == [first.id, second.id]
    assert store.claim("c", FOREVER) is None


def test_many_runners_at_once_never_share_a_job(store: JobStore) -> None:
    wanted = {submit(store).id for _ in range(12)}
    taken: list[str] = []

    def run(owner: str) -> None:
        while claimed := store.claim(owner, FOREVER):
            taken.append(claimed[1].job)
            store.finish(claimed[1], "succeeded", "Done.")

    threads = [threading.Thread(target=run, args=(f"runner {number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(taken) == 12
    assert set(taken) == wanted


def test_a_restarted_runner_gets_its_own_job_back_first(store: JobStore) -> None:
    waiting, own = submit(store), submit(store)
    store.pause(waiting.id)
    before = take(store, "a")
    store.resume(waiting.id)
    after = take(store, "a")
    assert after == Lease(own.id, before.fence + 1)
    with pytest.raises(LeaseLostError):
        store.heartbeat(before, FOREVER, {})


def test_a_lease_that_has_run_out_frees_the_job_and_shuts_its_late_owner_out(store: JobStore) -> None:
    job = submit(store)
    late = take(store, "late", seconds=0)
    time.sleep(0.01)
    lease = take(store, "next")
    assert lease.job == job.id
    late_words = [
        lambda: store.heartbeat(late, FOREVER, {"iteration": 99}),
        lambda: store.say(late, "Still here."),
        lambda: store.checkpoint(late, 1, {}, None),
        lambda: store.give_back(late),
        lambda: store.stand_by(late),
        lambda: store.finish(late, "failed", "No."),
    ]
    for word in late_words:
        with pytest.raises(LeaseLostError):
            word()
    assert store.get(job.id).progress == {}
    assert store.heartbeat(lease, FOREVER, {}) == "run"


def test_a_heartbeat_keeps_the_job(store: JobStore) -> None:
    submit(store)
    lease = take(store, "a", seconds=0)
    store.heartbeat(lease, FOREVER, {})
    assert store.claim("b", FOREVER) is None


@pytest.mark.parametrize("wish", ["cancel", "pause"])
def test_a_running_job_hears_what_is_wished_of_it_at_the_next_heartbeat(store: JobStore, wish: str) -> None:
    job = submit(store)
    lease = take(store)
    assert getattr(store, wish)(job.id).status == "running"
    assert store.heartbeat(lease, FOREVER, {}) == wish


def test_a_job_that_waits_is_paused_resumed_and_cancelled_at_once(store: JobStore) -> None:
    job = submit(store)
    assert store.pause(job.id).status == "paused"
    assert store.claim("a", FOREVER) is None
    assert store.resume(job.id).status == "queued"
    assert store.cancel(job.id).status == "cancelled"
    assert store.claim("a", FOREVER) is None


def test_a_paused_job_goes_on_when_it_is_resumed(store: JobStore) -> None:
    job = submit(store)
    lease = take(store)
    store.pause(job.id)
    store.stand_by(lease)
    assert (store.get(job.id).status, store.get(job.id).wish) == ("paused", "run")
    store.resume(job.id)
    assert store.heartbeat(take(store), FOREVER, {}) == "run"


def test_a_wish_to_cancel_is_not_softened_to_a_pause(store: JobStore) -> None:
    job = submit(store)
    lease = take(store)
    store.cancel(job.id)
    store.pause(job.id)
    store.resume(job.id)
    assert store.heartbeat(lease, FOREVER, {}) == "cancel"


def test_a_pause_can_be_taken_back_before_it_is_heard(store: JobStore) -> None:
    job = submit(store)
    lease = take(store)
    store.pause(job.id)
    store.resume(job.id)
    assert store.heartbeat(lease, FOREVER, {}) == "run"


def test_a_job_that_is_given_back_waits_for_the_next_runner(store: JobStore) -> None:
    job = submit(store)
    store.give_back(take(store, "a"))
    assert store.get(job.id).status == "queued"
    assert take(store, "b").job == job.id


@pytest.mark.parametrize("order", ["cancel", "pause", "resume"])
def test_what_has_ended_cannot_be_changed(store: JobStore, order: str) -> None:
    job = submit(store)
    store.finish(take(store), "failed", "No.", error={"message": "No."})
    with pytest.raises(ServiceError, match=r"has ended \(failed\)") as raised:
        getattr(store, order)(job.id)
    assert (raised.value.status, raised.value.code) == (409, "job_ended")
    assert store.get(job.id).error == {"message": "No."}


def test_an_unknown_job_is_a_404(store: JobStore) -> None:
    for ask in (store.get, store.cancel, store.pause, store.resume, store.events):
        with pytest.raises(ServiceError, match="There is no job 'nobody'") as raised:
            ask("nobody")
        assert raised.value.status == 404


def test_events_are_numbered_without_gaps_whoever_writes_them(store: JobStore) -> None:
    job = submit(store)
    lease = take(store)

    def talk(which: int) -> None:
        for number in range(5):
            store.say(lease, f"{which} {number}", "info", "metrics", {"loss": number})

    threads = [threading.Thread(target=talk, args=(which,)) for which in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    events = store.events(job.id, limit=100)
    assert [event.number for event in events] == list(range(1, 18))
    assert [event.number for event in store.events(job.id, after=15)] == [16, 17]
    latest, more = store.latest_events(job.id, before=16, limit=2)
    assert ([event.number for event in latest], more) == ([15, 14], True)
    assert {event.kind for event in events[2:]} == {"metrics"}


def test_a_checkpoint_of_the_same_step_replaces_the_one_before(store: JobStore) -> None:
    job = submit(store)
    lease = take(store)
    store.checkpoint(lease, 60, {"accuracy": 0.5}, "samples/60.png")
    store.checkpoint(lease, 120, {"accuracy": 0.8}, None)
    store.checkpoint(lease, 60, {"accuracy": 0.6}, "samples/60.png")
    rows, more = store.checkpoints(job.id, before=None, limit=10)
    assert not more
    assert [(row.step, row.metrics) for row in rows] == [(120, {"accuracy": 0.8}), (60, {"accuracy": 0.6})]
    assert [row.step for row in store.checkpoints(job.id, before=120, limit=10)[0]] == [60]


def test_pages_hold_the_newest_first(store: JobStore) -> None:
    jobs = [submit(store, metadata={"team": "ab"[number % 2]}) for number in range(5)]
    ids = [job.id for job in reversed(jobs)]
    page, more = store.page(limit=2)
    assert ([job.id for job in page], more) == (ids[:2], True)
    page, more = store.page(after=ids[1], limit=3)
    assert ([job.id for job in page], more) == (ids[2:], False)
    page, more = store.page(metadata={"team": "b"})
    assert ([job.id for job in page], more) == ([jobs[3].id, jobs[1].id], False)
    with pytest.raises(ServiceError, match="There is no job"):
        store.page(after="nobody")


def test_a_full_queue_refuses(store: JobStore) -> None:
    for _ in range(2):
        submit(store)
    with pytest.raises(ServiceError, match="2 jobs are waiting, and the queue holds 2") as raised:
        store.create(NewJob("shapes-sana", "shapes:train", {}), limit=2)
    assert raised.value.status == 429
    assert raised.value.headers["Retry-After"]
    take(store)
    store.create(NewJob("shapes-sana", "shapes:train", {}), limit=2)


def test_an_idempotency_key_makes_one_job(store: JobStore) -> None:
    first = submit(store, idempotency_key="k", digest="d")
    assert submit(store, idempotency_key="k", digest="d").id == first.id
    with pytest.raises(ServiceError, match="other fields") as raised:
        submit(store, idempotency_key="k", digest="e")
    assert raised.value.status == 422
    assert store.counts() == {"queued": 1}


def test_jobs_made_at_once_have_numbers_of_their_own_and_one_key_makes_one(store: JobStore) -> None:
    made: list[str] = []

    def make(key: str | None) -> None:
        made.append(submit(store, idempotency_key=key, digest="d").id)

    threads = [threading.Thread(target=make, args=(key,)) for key in (None, None, None, "k", "k", "k")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 6
    assert len(set(made)) == 4
    assert len({store.get(job).number for job in set(made)}) == 4


def test_a_webhook_waits_from_the_moment_the_job_ends(database: Database) -> None:
    from service.jobs.tables import DeliveryRow

    store = JobStore(database, announce=lambda job, message: {"id": job.id, "status": job.status})
    job = submit(store, options={"webhook": "http://127.0.0.1:1/hook"})
    silent = submit(store)
    store.cancel(job.id)
    store.cancel(silent.id)
    with database.begin() as session:
        rows = session.query(DeliveryRow).all()
    assert [(row.job, row.url, row.done) for row in rows] == [(job.id, "http://127.0.0.1:1/hook", False)]
    assert rows[0].body == f'{{"id": "{job.id}", "status": "cancelled"}}'


def test_a_database_that_is_gone_is_a_503_and_comes_back(server: Any) -> None:
    database = Database(server.url)
    store = JobStore(database)
    job = submit(store)
    server.stop()
    try:
        with pytest.raises(StoreGoneError) as raised:
            store.get(job.id)
        assert (raised.value.status, raised.value.code) == (503, "store_unavailable")
        assert raised.value.headers["Retry-After"]
    finally:
        server.start()
    assert store.get(job.id).id == job.id
    database.close()


def test_tables_of_a_later_version_are_left_alone_and_said(database: Database) -> None:
    """A server that was rolled back draws on; jobs wait until it is upgraded, or the backup from before is restored."""
    store = JobStore(database)
    job = submit(store)
    with database.engine.begin() as connection:
        known = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
        connection.execute(text("UPDATE alembic_version SET version_num = 'later'"))
    older = Database(database.engine.url.render_as_string(hide_password=False))
    with pytest.raises(
        StoreGoneError, match="tables are those of a later version of fewstep: .*'later'"
    ) as raised:
        JobStore(older).get(job.id)
    assert (raised.value.status, raised.value.code) == (503, "store_unavailable")
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :known"), {"known": known})
    assert JobStore(older).get(job.id).id == job.id
    older.close()


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="database_url"):
        Database(sqlite_url(tmp_path / "file" / "jobs.db"))


@pytest.mark.parametrize("url", ["nothing", "mysql://a@b/c", "oracle+nothing://a"])
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(ServiceError, match="database_url"):
        Database(url)
