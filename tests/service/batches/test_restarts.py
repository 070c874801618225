"""A batch outlives its server: what is done is done, and every line has one answer."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from service.batches.store import NewBatch
from service.jobs.leases import Lease
from service.settings import Settings

from ..fake_runtime import FakeRuntime, make_bundle
from ..running import run_server, wait_until
from .office import ENDED, Office, line, office_of, open_office

SMALL = make_bundle(sizes=((64, 64),))
LINES = [line(f"line {number}", seed=number, prompt=f"picture {number}") for number in range(60)]
FOREVER = 1000.0


def drawn(office: Office, batch: Any) -> dict[str, str]:
    """The answers' pictures by custom id; each line has one answer."""
    output = office.read(batch.output_file_id)
    pictures = {one["custom_id"]: one["response"]["body"]["data"][0]["b64_json"] for one in output}
    assert len(pictures) == len(output)
    return pictures


def as_live(office: Office) -> dict[str, str]:
    return {
        one["custom_id"]: office.running.generate(**one["body"]).json()["data"][0]["b64_json"]
        for one in LINES
    }


@pytest.mark.slow
def test_a_server_that_ends_in_the_middle_leaves_a_batch_that_the_next_one_finishes(
    settings: Settings,
) -> None:
    runtime = FakeRuntime(SMALL)
    with open_office(settings, runtime) as office:
        runtime.image_seconds = 0.005
        batch = office.submit(LINES)
        wait_until(lambda: office.openai.batches.retrieve(batch.id).request_counts.completed >= 5, 60)
    second = FakeRuntime(SMALL)
    with open_office(settings, second) as office:
        kept = office.openai.batches.retrieve(batch.id).request_counts.completed
        assert kept >= 5
        warming = len(second.calls)
        ended = office.wait(batch.id)
        assert ended.status == "completed"
        counts = ended.request_counts
        assert (counts.total, counts.completed, counts.failed) == (60, 60, 0)
        decoded = sum(size for stage, size in second.calls[warming:] if stage == "decode")
        assert decoded <= 60 - 5 + 8, "what was finished is not drawn again"
        assert drawn(office, ended) == as_live(office)


@contextmanager
def process(folder: Path, seconds: float) -> Iterator[tuple[subprocess.Popen[str], openai.OpenAI]]:
    command = [sys.executable, "-m", "tests.service.batches.server", str(folder), str(seconds)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        port = child.stdout.readline().strip()
        yield child, openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    finally:
        child.kill()
        child.wait(20)


@pytest.mark.slow
def test_a_killed_server_goes_on_at_once_where_it_was(settings: Settings) -> None:
    """SIGKILL: no lease was given back, and still the same server need not wait for its end."""
    folder = settings.data_dir
    with process(folder, 0.02) as (child, client):
        office = Office(None, client)  # type: ignore[arg-type]
        batch = office.submit(LINES)
        wait_until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 5, 120)
        child.send_signal(signal.SIGKILL)
        child.wait(20)
    with open_office(settings, FakeRuntime(SMALL)) as office:
        ended = office.wait(batch.id, 25)  # less than a lease
        assert ended.status == "completed"
        assert ended.request_counts.completed == 60
        assert drawn(office, ended) == as_live(office)


@pytest.mark.slow
def test_two_servers_on_one_database_share_batches_and_never_one(settings: Settings) -> None:
    runtimes = [FakeRuntime(SMALL), FakeRuntime(SMALL)]
    with (
        run_server(settings, {"fake": runtimes[0]}) as first,
        run_server(settings, {"fake": runtimes[1]}) as second,
    ):
        offices = [office_of(first, "none"), office_of(second, "none")]
        made = [office.submit(LINES[:12]).id for office in offices for _ in range(4)]
        for id in made:
            ended = offices[0].wait(id)
            assert ended.status == "completed"
            assert len(drawn(offices[1], ended)) == 12
        total = sum(office.running.metric("fewstep_batch_requests_total", outcome="ok") for office in offices)
        assert total == 12 * len(made), "none was answered twice"


def test_a_batch_that_another_server_has_taken_is_let_go(settings: Settings) -> None:
    runtime = FakeRuntime(SMALL)
    with open_office(settings, runtime) as office:
        batch = office.submit(LINES[:4])
        wait_until(lambda: office.openai.batches.retrieve(batch.id).status == "in_progress")
        runtime.gate.clear()
        store = office.batches.store
        row = store.get(batch.id)
        if row.status in ENDED:
            pytest.skip("it was over before it could be taken")
        claimed = store.claim(row.owner or "", FOREVER)  # as a server of the same name would
        assert claimed is not None
        runtime.gate.set()
        wait_until(lambda: not office.batches._runner._attending, 20)
        assert store.lines(batch.id).keys() <= {1, 2, 3, 4}
        store.give_back(Lease(batch.id, claimed[1].fence))
        assert office.wait(batch.id).status == "completed"


def test_a_batch_whose_file_is_gone_fails_and_says_so(settings: Settings) -> None:
    with open_office(settings, FakeRuntime(SMALL)) as office:
        file = office.send(LINES[:2])
        (settings.data_dir / "files" / f"{file}.jsonl").unlink()
        batch = office.batches.store.create(NewBatch(input_file=file, total=2), limit=1)
        ended = office.wait(batch.id)
        assert ended.status == "failed"
        assert ended.errors.data[0].code == "not_found"
        assert "data folder" in ended.errors.data[0].message
        assert ended.failed_at is not None


def test_answers_of_a_batch_that_ended_with_its_server_are_swept_away(settings: Settings) -> None:
    with open_office(settings, FakeRuntime(SMALL)) as office:
        batch = office.submit(LINES[:1])
        assert office.wait(batch.id).status == "completed"
    orphan = settings.data_dir / "batches" / batch.id
    orphan.mkdir()
    (orphan / "1.1.json").write_text("{}")
    with open_office(settings, FakeRuntime(SMALL)):
        wait_until(lambda: not orphan.exists())
