"""`fewstep jobs`: distillation jobs of a running server."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from distill.errors import RunFailed
from distill.metrics.tables import markdown
from distill.progress import clock
from service.errors import ServiceError

from .client import JobServer
from .display import figures, line_of, make_view
from .request import request_of
from .watching import Watch, check_folder

Json = dict[str, Any]
DEFAULT_URL = "http://127.0.0.1:8000"
LARGEST_PAGE = 100


@contextmanager
def reached(options: argparse.Namespace) -> Iterator[JobServer]:
    """The server that the flags or the environment name."""
    url = options.url or os.environ.get("FEWSTEP_URL") or DEFAULT_URL
    server = JobServer(url, options.api_key or os.environ.get("FEWSTEP_KEY"))
    try:
        yield server
    finally:
        server.close()


def submit(options: argparse.Namespace) -> int:
    """Sends the prompts and the job; what it has sent is taken back when the job is refused."""
    check_folder(options.samples)
    sent: list[str] = []
    with reached(options) as server:

        def upload(path: Path) -> str:
            sent.append(server.upload(path))
            return sent[-1]

        try:
            job = server.post(body=request_of(options, upload), key=uuid4().hex)
        except (ServiceError, RunFailed):
            with suppress(ServiceError, RunFailed):  # the refusal is what has to be told
                for file in sent:
                    server.forget(file)
            raise
        if options.watch:
            return _watch(server, job, options)
    if options.json:
        print(json.dumps(job, indent=2))
    else:
        print(job["id"])
        print(f"{job['status']}; fewstep jobs watch {job['id']}", file=sys.stderr)
    return 0


def show_list(options: argparse.Namespace) -> int:
    wanted = {f"metadata[{name}]": value for name, value in options.metadata}
    with reached(options) as server:
        jobs = server.get(limit=min(options.limit, LARGEST_PAGE), **wanted)["data"]
        while 0 < len(jobs) < options.limit:
            left = min(options.limit - len(jobs), LARGEST_PAGE)
            page = server.get(limit=left, after=jobs[-1]["id"], **wanted)
            jobs += page["data"]
            if not page["data"]:
                break
    if options.json:
        print(json.dumps(jobs, indent=2))
    elif jobs:
        print(
            markdown(
                ["job", "student", "teacher", "status", "done", "left", "made"], [_row(job) for job in jobs]
            )
        )
    else:
        print("no jobs")
    return 0


def _row(job: Json) -> list[str]:
    progress, running = job["progress"], job["status"] == "running"
    percent = 100 if job["status"] == "succeeded" else progress.get("percent")
    left = progress.get("eta_seconds") if running else None
    return [
        job["id"],
        job["fine_tuned_model"] or job["suffix"] or "-",
        job["model"],
        job["status"],
        "-" if percent is None else f"{percent:.0f} %",
        "-" if left is None else clock(left),
        _date(job["created_at"]),
    ]


def show(options: argparse.Namespace) -> int:
    with reached(options) as server:
        job = server.job(options.job)
    print(json.dumps(job, indent=2) if options.json else "\n".join(_facts(job)))
    return 0


def _facts(job: Json) -> Iterator[str]:
    yield f"{job['id']}: {line_of(job)}"
    yield f"teacher {job['model']}, prompts {job['training_file']}, seed {job['seed']}"
    yield f"made {_date(job['created_at'])}" + (
        f", ended {_date(job['finished_at'])}" if job["finished_at"] else ""
    )
    if job["metadata"]:
        yield "metadata " + ", ".join(f"{name}={value}" for name, value in job["metadata"].items())
    if quality := job["progress"].get("quality"):
        yield f"quality {figures(quality)}"
    yield from outcome(job)


def outcome(job: Json) -> Iterator[str]:
    """What became of it, if it has ended."""
    result = job["result"]
    if job["error"]:
        yield f"failed: {job['error']['message']}"
    if job["status"] != "succeeded":
        return
    if result.get("published"):
        yield f"served as {result['version']['id']}; the version before it is kept for a rollback"
    else:
        yield "not published: " + ("; ".join(result.get("reasons", [])) or "no reason given")
    for part in ("student", "bundle", "samples"):
        if part in result:
            yield f"{part}: {result[part]['url']}"


def watch(options: argparse.Namespace) -> int:
    check_folder(options.samples)
    with reached(options) as server:
        return _watch(server, server.job(options.job) if options.job else _newest(server), options)


def _newest(server: JobServer) -> Json:
    jobs: list[Json] = server.get(limit=1)["data"]
    if not jobs:
        raise ServiceError(f"{server.url} has no jobs: `fewstep jobs submit` makes one")
    return jobs[0]


def _watch(server: JobServer, job: Json, options: argparse.Namespace) -> int:
    view = make_view(options.json)
    try:
        job = Watch(server, job, view, options.samples).follow()
    except KeyboardInterrupt:
        view.close()
        raise KeyboardInterrupt(f"{job['id']} goes on; fewstep jobs watch {job['id']}") from None
    finally:
        view.close()
    if not options.json:
        for line in outcome(job):
            print(line)
    return 0 if job["status"] == "succeeded" else 1


def change(options: argparse.Namespace) -> int:
    """Cancels, pauses or resumes; a running job does so at its next heartbeat."""
    with reached(options) as server:
        id = server.job(options.job)["id"]  # so that what is no job's id is said as such
        job = server.post(f"/{id}/{options.task}")
    print(json.dumps(job, indent=2) if options.json else f"{job['id']}: {line_of(job)}")
    return 0


def show_events(options: argparse.Namespace) -> int:
    """All of them, the oldest first."""
    with reached(options) as server:
        id = server.job(options.job)["id"]
        pages = [server.get(f"/{id}/events", limit=LARGEST_PAGE)]
        while pages[-1]["has_more"]:
            pages.append(server.get(f"/{id}/events", limit=LARGEST_PAGE, after=pages[-1]["last_id"]))
    for event in reversed([event for page in pages for event in page["data"]]):
        print(json.dumps(event) if options.json else f"{_date(event['created_at'])} {event['message']}")
    return 0


def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
