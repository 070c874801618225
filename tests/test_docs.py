"""What the README says can be done, can be done."""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fewstep.cli import main, parser
from service.orders import STEPS
from service.routes import images, models, operations
from service.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def table(first_column: str) -> list[list[str]]:
    """Rows of the table with that heading, cells without their backticks."""
    lines = README.split(f"| {first_column} |", 1)[1].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))])
    return rows


def subcommands(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def options(of: argparse.ArgumentParser) -> set[str]:
    return {option for action in of._actions for option in action.option_strings}


COMMANDS = [re.findall(r"`fewstep ([^`]*)`", row[0])[0].replace("\\|", "|") for row in table("command")]


def test_the_table_has_every_command_and_no_other() -> None:
    assert {line.split()[0] for line in COMMANDS} == set(subcommands(parser()))


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line.split()[0])
def test_options_in_the_table_exist(line: str) -> None:
    command = subcommands(parser())[line.split()[0]]
    assert set(re.findall(r"--[\w-]+", line)) <= options(command)
    tasks = subcommands(command)
    if tasks:
        assert set(line.split()[1].split("|")) == set(tasks)


@pytest.mark.parametrize("name", sorted(subcommands(parser())))
def test_every_command_has_help_with_words_for_every_option(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: fewstep {name}")
    for option in options(subcommands(parser())[name]):
        assert option in shown
    assert f"    {name} " in parser().format_help(), "a line in the overview"


@pytest.mark.parametrize("task", sorted(subcommands(subcommands(parser())["shapes"])))
def test_every_task_of_the_shapes_world_has_help(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["shapes", task, "--help"])
    assert stop.value.code == 0
    assert "--out" in capsys.readouterr().out


def made(target: str) -> str:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def test_make_test_runs_all_checks() -> None:
    commands = made("test")
    for promise in ('pytest -m "not slow"', "ruff check .", "ruff format --check .", "mypy", "lint-imports"):
        assert re.search(rf"^\.venv/bin/(python -m )?{re.escape(promise)}$", commands, re.MULTILINE), promise


def test_fast_and_slow_tests_together_are_all() -> None:
    lines = [line for line in (made("test") + made("test-slow")).splitlines() if "pytest" in line]
    assert [line.partition("pytest ")[2] for line in lines] == ['-m "not slow"', "-m slow"]


def test_make_demo_runs_the_line_and_serves() -> None:
    commands = made("demo")
    assert ".venv/bin/python -m fewstep.demo --port 8000" in commands
    assert "SERVE_PORT" not in commands
    chosen = subprocess.run(
        ["make", "-n", "demo", "SERVE_PORT=9001"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--port 9001" in chosen.stdout


def test_a_first_make_installs_from_the_package_registry_alone(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    done = subprocess.run(["make", "-n", "set-up"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "-m venv .venv" in done.stdout
    assert "--constraint constraints.txt" in done.stdout
    assert "http" not in done.stdout


def test_ci_runs_what_the_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert re.findall(r"^make (\S+)$", script, re.MULTILINE) == ["test", "test-slow"]
    assert "set -euo pipefail" in script
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_every_constraint_pins_one_version() -> None:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = [line for line in lines if line]
    assert pins
    assert all(re.fullmatch(r"[\w.\-\[\]]+==[\w.+!]+(\s*;.*)?", pin) for pin in pins)


def routes_of(routers: tuple[Any, ...]) -> set[tuple[str, str]]:
    found = {(method, route.path) for r in routers for route in r.router.routes for method in route.methods}
    return {(method, path.replace(":path", "")) for method, path in found}


def test_the_table_of_routes_is_that_of_the_server() -> None:
    named = [route for row in table("route") for route in re.findall(r"`([^`]+)`", row[0])]
    rooms = {route for route in named if " " not in route}  # whose routes are on a page of their own
    jobs = {"/v1/distillation/jobs", "/v1/fine_tuning/jobs", "/v1/distillation/teachers"}
    assert rooms == {*jobs, "/v1/files", "/v1/batches"}
    promised = {tuple(route.split(" ")) for route in named if route not in rooms}
    assert promised == routes_of((images, models, operations)) - {("GET", "/v1/images/files/{name}")}


def test_qualities_in_the_readme_are_the_servers() -> None:
    named, counts = re.findall(r"# ([\w, ]+): ([\d, ]+) steps", README)[0]
    shown = dict(zip(named.split(", "), map(int, counts.split(", ")), strict=True))
    assert shown == {name: STEPS[name] for name in ("low", "medium", "high")}


def test_the_address_in_the_readme_is_the_default() -> None:
    fields = Settings.model_fields
    address = f"http://{fields['host'].default}:{fields['port'].default}"
    assert set(re.findall(r"http://[\d.]+:\d+", README)) == {address}


def test_exit_codes_in_the_readme_are_those_of_the_command_line() -> None:
    from fewstep.cli import FAILED, INTERRUPTED, WRONG

    sentence = re.search(r"Exit codes: (.*?)\.", README, re.DOTALL)
    assert sentence
    said = [int(number) for number in re.findall(r"\b\d+\b", sentence[1])]
    assert said == [0, FAILED, WRONG, INTERRUPTED]


def test_extras_named_in_the_makefile_exist() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    used = re.findall(r"'\.\[([\w,-]+)\]'", (ROOT / "Makefile").read_text())
    assert used
    assert {extra for group in used for extra in group.split(",")} <= set(project["optional-dependencies"])
    assert project["scripts"] == {"fewstep": "fewstep.cli:main"}
