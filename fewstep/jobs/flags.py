"""The flags of `fewstep jobs`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import arguments


def add_tasks(
    command: argparse.ArgumentParser, run: Callable[[str], Callable[[argparse.Namespace], int]]
) -> None:
    """
    Args:
        run: The name of a function of `fewstep.jobs.command` -> that function, imported when it is called.
    """
    tasks = command.add_subparsers(dest="task", required=True, metavar="TASK")
    submit = tasks.add_parser("submit", help="a new job; prints its id")
    submit.set_defaults(run=run("submit"))
    _job(submit)
    _gate(submit)
    submit.add_argument("--watch", action="store_true", help="follow it to its end, as `fewstep jobs watch`")
    listed = tasks.add_parser("list", help="the newest jobs")
    listed.set_defaults(run=run("show_list"))
    listed.add_argument("--limit", type=arguments.positive, default=20, metavar="N", help="default: 20")
    show = tasks.add_parser("show", help="one job: how far it is, what became of it")
    show.set_defaults(run=run("show"))
    watch = tasks.add_parser(
        "watch", help="follow a job to its end: exit code 0 if it succeeded, 1 if it failed or was cancelled"
    )
    watch.set_defaults(run=run("watch"))
    watch.add_argument("job", nargs="?", help="its id; by default the newest job")
    events = tasks.add_parser("events", help="all that has happened to a job")
    events.set_defaults(run=run("show_events"))
    changes = {
        "cancel": "end a job, whose state is kept",
        "pause": "have a job save its state and make room for others",
        "resume": "let a paused job go on",
    }
    for name, what in changes.items():
        tasks.add_parser(name, help=what).set_defaults(run=run("change"))
    for name in ("show", "events", *changes):
        tasks.choices[name].add_argument("job", help="its id")
    for name in ("submit", "watch"):
        tasks.choices[name].add_argument(
            "--samples", type=Path, metavar="DIR", help="keep the grids of what the student draws in DIR"
        )
    for name in ("submit", "list"):
        tasks.choices[name].add_argument(
            "--metadata",
            type=pairs(str, "KEY=VALUE"),
            nargs="+",
            action="extend",
            default=[],
            metavar="KEY=VALUE",
            help="kept with the job" if name == "submit" else "only those that have it",
        )
    for task in tasks.choices.values():
        _server(task)


def _server(task: argparse.ArgumentParser) -> None:
    task.add_argument("--url", help="the server (FEWSTEP_URL; default: http://127.0.0.1:8000)")
    task.add_argument("--api-key", metavar="KEY", help="of a server that needs one (FEWSTEP_KEY)")
    task.add_argument(
        "--json", action="store_true", help="print JSON; while watching, a line for each change"
    )


def _job(submit: argparse.ArgumentParser) -> None:
    submit.add_argument(
        "what",
        metavar="TEACHER_OR_RECIPE",
        help="a teacher that the server knows, the name of a shipped recipe, or a YAML file",
    )
    submit.add_argument(
        "--prompts",
        metavar="FILE",
        help="a .txt or .jsonl, which is sent; a file's id; shapes:train, shapes:held-out (default: the recipe's)",
    )
    submit.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override the recipe"
    )
    submit.add_argument("--suffix", metavar="NAME", help="of the student's name")
    submit.add_argument("--seed", type=arguments.seed, help="default: the recipe's, or 0")
    submit.add_argument("--precision", help="of the bundle: fp32 (default), fp16, int8 or auto")
    submit.add_argument("--webhook", metavar="URL", help="is told of the end, if the server allows its host")


def _gate(submit: argparse.ArgumentParser) -> None:
    group = submit.add_argument_group("what is measured at the end, and what becomes of the student")
    bounds = {"at-least": "accuracy=0.9", "at-most": "frechet_distance=60", "worse-by": "accuracy=0.01"}
    helps = {
        "at-least": "has to hold at every step count",
        "at-most": "likewise",
        "worse-by": "than the model served now, at most",
    }
    for name, example in bounds.items():
        group.add_argument(
            f"--{name}",
            type=pairs(arguments.number, f"MEASURE=VALUE, e.g. {example}"),
            nargs="+",
            action="extend",
            default=[],
            metavar="MEASURE=VALUE",
            help=f"{helps[name]}, e.g. {example}",
        )
    group.add_argument("--gate-images", type=arguments.two_or_more, metavar="N", help="default: 256")
    group.add_argument("--gate-seeds", type=arguments.integers, metavar="S,…", help="default: 0")
    group.add_argument("--gate-steps", type=arguments.positives, metavar="N,…", help="default: all it offers")
    group.add_argument(
        "--gate-prompts", metavar="FILE", help="what published networks measure on (default: the prompts)"
    )
    group.add_argument("--publish", metavar="NAME", help="serve it under this name if all of that holds")
    group.add_argument("--canary", type=arguments.number, metavar="SHARE", help="of the requests at first")
    group.add_argument("--canary-seconds", type=arguments.number, metavar="S", help="for how long")


def pairs(kind: Callable[[str], Any], example: str) -> Callable[[str], tuple[str, Any]]:
    """A flag's NAME=VALUE."""

    def read(text: str) -> tuple[str, Any]:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise argparse.ArgumentTypeError(f"expected {example}, got {text!r}")
        return name, kind(value)

    return read
