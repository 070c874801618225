#!/usr/bin/env python3
"""The head of a Ray cluster in a container: starts Ray, runs the Serve application of a file, ends when that fails.

`fewstep-ray-head FILE [WORDS...]`; the words go to `ray start --head`. Exit codes: 0 stopped; 1 the application or the
cluster failed; 2 the file or a setting is wrong. The last line says why.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from pydantic import ValidationError
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from fewstep.ray_serve import build
from service.errors import ServiceError, reason_of
from service.settings import secret_in

LOST_AFTER = 3
"""Questions in a row without an answer, after which the cluster counts as lost."""


class Stopped(Exception):
    """SIGTERM or SIGINT."""


def main(words: list[str]) -> int:
    if not words:
        print("usage: fewstep-ray-head FILE [WORDS OF RAY START...]", file=sys.stderr)
        return 2
    file = Path(words[0])
    try:
        config = check(file)
    except (OSError, yaml.YAMLError, ValidationError, ServiceError) as error:
        return end(2, f"{file}: {' '.join(reason_of(error).split())}")
    if lost := lost_token(os.environ):
        return end(2, lost)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    ray: Any = None
    try:
        subprocess.run(["ray", "start", "--head", *words[1:]], check=True)
        ray = ServeSubmissionClient(os.environ.get("RAY_DASHBOARD_ADDRESS", "http://127.0.0.1:8265"))
        ray.deploy_applications(config)
        return end(1, watch(ray))
    except subprocess.CalledProcessError as error:
        return end(1, f"{' '.join(error.cmd)} ended with {error.returncode}")
    except (ConnectionError, RuntimeError) as error:
        return end(1, str(error))
    except Stopped:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with suppress(ConnectionError, RuntimeError):  # of a cluster that is gone there is nothing to end
            if ray is not None:
                ray.delete_applications()  # replicas finish what is inside, within graceful_shutdown_timeout_s
        return 0


def check(file: Path) -> dict[str, Any]:
    """The file's content.

    Raises:
        OSError, yaml.YAMLError, ValidationError, ServiceError: it cannot be read; it is no Serve file; a setting of
            the application is wrong.
    """
    config = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
    for application in config.applications:
        build(application.args)
    content: dict[str, Any] = config.model_dump(exclude_unset=True)
    return content


def lost_token(environment: Mapping[str, str]) -> str:
    """What is wrong with the file of the cluster's token, which Ray itself would tell in 30 lines; empty if nothing."""
    file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if environment.get("RAY_AUTH_MODE") != "token" or environment.get("RAY_AUTH_TOKEN"):
        return ""
    try:
        secret_in(file)
    except (OSError, ValueError) as error:
        return f"RAY_AUTH_TOKEN_PATH: {file}: {reason_of(error)}; a file with the cluster's token is wanted"
    return ""


def watch(ray: Any) -> str:
    """Returns when an application has failed or the cluster is lost: why."""
    unanswered, running = 0, False
    while unanswered < LOST_AFTER:
        try:
            states = ray.get_serve_details()["applications"]
        except (OSError, RuntimeError) as error:  # those of requests are OSErrors
            unanswered, reason = unanswered + 1, str(error)
        else:
            unanswered = 0
            for name, state in states.items():
                if state["status"] == ApplicationStatus.DEPLOY_FAILED:
                    return f"{name}: {_reason(state['message'])}"
            if (
                not running
                and states
                and {s["status"] for s in states.values()} == {ApplicationStatus.RUNNING}
            ):
                running = True
                print(f"running: {', '.join(states)}", flush=True)
        time.sleep(2)
    return f"the cluster does not answer: {reason}"


def _reason(message: str) -> str:
    """The line of Ray's report that says what was raised; the last one, if none does."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["no reason given"]
    return next((line for line in reversed(lines) if "Error" in line.split(":")[0]), lines[-1])


def end(code: int, reason: str) -> int:
    print(f"fewstep-ray-head: {reason}", file=sys.stderr, flush=True)
    return code


def _stop(_: int, __: FrameType | None) -> None:
    raise Stopped


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
