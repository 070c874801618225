"""Every block of the documents is what it says: commands parse and their programs exist, the quick ones run,
Python compiles against the real modules, recipes and settings are accepted.

A failure begins with file, line and command. A program that nothing here knows fails: say below how it is checked.
"""

from __future__ import annotations

import ast
import importlib
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from distill.errors import DistillError
from distill.recipe import load_recipe, shipped_recipes
from fewstep.cli import parser
from scripts.reference import document
from service.settings import Settings

from .documents import ROOT, Block, Command, all_blocks, inline, shell

QUICK = (
    "fewstep doctor",
    "fewstep plan sd3.5-large",
    "fewstep plan sana-0.6b-512",
    "fewstep sample shapes-",
    "fewstep keys add",
    "fewstep bundle list",
)
"""Beginnings of commands that need nothing but the package and a few seconds: they are run as they stand."""

ELSEWHERE = {
    "docker": "needs an engine for containers",
    "kubectl": "needs a cluster",
    "helm": "needs a cluster",
    "kustomize": "needs a cluster",
    "ray": "needs a cluster",
    "serve": "Ray Serve's own command; needs a cluster",
    "torchrun": "needs several machines",
    "huggingface-cli": "needs an account",
    "hf": "needs an account",
    "git": "needs a remote",
}
"""Programs of others that cannot be had in a test; their blocks are checked as shell alone."""

PLAIN = {
    "cd",
    "export",
    "mkdir",
    "cp",
    "cat",
    "echo",
    "ls",
    "source",
    ".",
    "kill",
    "sleep",
    "for",
    "done",
    "do",
    "if",
    "fi",
}


def words(command: Command) -> list[str]:
    """Without `NAME=value` before the program, redirections and what comes behind a pipe or an `&`."""
    try:
        split = shlex.split(command.text)
    except ValueError as error:
        pytest.fail(f"{command}\n{error}")
    ends = [
        i for i, word in enumerate(split) if word in ("|", "&", "&&", ";", ">", ">>", "<") or "<<" in word
    ]
    split = split[: ends[0]] if ends else split
    while split and re.fullmatch(r"[A-Za-z_]\w*=.*", split[0]):
        split = split[1:]
    return split


@pytest.mark.parametrize("block", all_blocks("sh", "bash", "console"), ids=str)
def test_shell_blocks_are_shell(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert done.returncode == 0, f"{block}\n{done.stderr}"


@pytest.mark.parametrize("command", shell(), ids=str)
def test_commands_exist_and_take_what_they_are_given(command: Command) -> None:
    given = words(command)
    if not given or given[0] in PLAIN or given[0] in ELSEWHERE:
        return
    program = Path(given[0]).name
    if re.fullmatch(r"python3?", program) and given[1:2] == ["-m"]:
        program, given = "python -m", given[2:]
    check = _script if "/" in given[0] and program not in CHECKS else CHECKS.get(program)
    assert check, f"{command}\nnothing checks {program!r}: add it to CHECKS or, with the reason, to ELSEWHERE"
    check(command, given)


@pytest.mark.parametrize("command", inline(), ids=str)
def test_commands_between_words_parse(command: Command) -> None:
    _fewstep(command, words(command))


def _fewstep(command: Command, given: list[str]) -> None:
    """By the parser itself; recipes that are shipped take the overrides that are shown."""
    said, options = io.StringIO(), None
    with suppress(SystemExit), redirect_stderr(said), redirect_stdout(said):
        options = parser().parse_args(given[1:])
    assert options or said.getvalue().startswith("usage"), f"{command}\n{said.getvalue()}"
    recipe = getattr(options, "recipe", None)
    if recipe in shipped_recipes():
        load_recipe(recipe, options.set)


def _make(command: Command, given: list[str]) -> None:
    done = subprocess.run(["make", "-n", *given[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stderr}"


def _module(command: Command, given: list[str]) -> None:
    """The module is there, and its help knows the options."""
    if given[0] in ("venv", "pip"):
        return
    if given[0] == "fewstep":
        return _fewstep(command, given)
    assert importlib.util.find_spec(given[0]), f"{command}\nno module {given[0]}"
    flags = {word.partition("=")[0] for word in given[1:] if word.startswith("--")}
    if flags:
        unknown = {flag for flag in flags if flag not in help_of(given[0])}
        assert not unknown, f"{command}\n{given[0]} --help knows no {unknown}"


@cache
def help_of(module: str) -> str:
    """In this process, as the programs load what takes seconds to load."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, suppress(SystemExit), redirect_stdout(said):
        patch.setattr(sys, "argv", [module, "--help"])
        patch.delitem(sys.modules, module, raising=False)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    return said.getvalue()


def _pip(command: Command, given: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in given:
        for group in re.findall(r"^(?:fewstep|\.)\[(.*?)\]", word):
            unknown = set(group.split(",")) - set(extras)
            assert not unknown, f"{command}\nno extras {unknown}; there are {sorted(extras)}"


def _curl(command: Command, given: list[str]) -> None:
    """Calls a route of the server, with its method."""
    flags = dict(pairwise(given))
    body = any(word.startswith(("-d", "--data", "-F", "--form")) for word in given)
    method = flags.get("-X") or flags.get("--request") or ("POST" if body else "GET")
    for address in [word for word in given if re.match(r"(https?://|\$\w+/)", word)]:
        path = urlsplit(re.sub(r"^\$\w+", "http://server", address)).path or "/"
        if path not in ("/", "/docs", "/openapi.json"):
            known = [template for template, on in document()["paths"].items() if method.lower() in on]
            fits = any(re.fullmatch(re.sub(r"\{.*?\}", "[^/]+", one), path) for one in known)
            assert fits, f"{command}\nno route {method} {path}; there are {known}"


def _script(command: Command, given: list[str]) -> None:
    """A script of the repository, run by itself or by its interpreter; or Python in the command itself."""
    if given[1:2] == ["-c"]:
        ast.parse(given[2])
        return
    script = given[0] if "/" in given[0] else next(word for word in given[1:] if not word.startswith("-"))
    assert (ROOT / script).exists(), f"{command}\nthere is no {script}"
    assert script != given[0] or os.access(ROOT / script, os.X_OK), f"{command}\n{script} is not executable"


def _profiles(command: Command, given: list[str]) -> None:
    """deploy/up.sh starts what is always started, and the profiles that it is given."""
    text = (ROOT / given[0]).read_text()
    assert all(re.search(rf"\b{word}\b.*\) profiles", text) for word in given[1:]), command


CHECKS: dict[str, Callable[[Command, list[str]], None]] = {
    "fewstep": _fewstep,
    "make": _make,
    "python -m": _module,
    "pip": _pip,
    "curl": _curl,
    "python": _script,
    "bash": _script,
    "up.sh": _profiles,
    "psql": lambda command, given: None,
    "pg_dump": lambda command, given: None,  # both run in deploy/test_backup.py, on a real PostgreSQL
    "pg_restore": lambda command, given: None,
    "promtool": lambda command, given: None,
}


def runs(command: Command) -> bool:
    text = re.sub(r"^\S*/fewstep ", "fewstep ", command.text)
    return text.startswith(QUICK) or (text.startswith("fewstep distill") and text.endswith("--dry-run"))


def run_params() -> list[Any]:
    """Plans run an iteration on tensors without memory, which takes a while: those are slow."""
    wanted = [one for one in shell() if runs(one) and "my-" not in one.text]
    slow = re.compile(r"plan|--dry-run")
    return [
        pytest.param(one, id=str(one), marks=[pytest.mark.slow] * bool(slow.search(one.text)))
        for one in wanted
    ]


@pytest.mark.parametrize("command", run_params())
def test_quick_commands_run_as_they_stand(command: Command, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fewstep", *words(command)[1:]], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    said = done.stdout or done.stderr  # as of an empty store
    assert said or list(tmp_path.iterdir()), f"{command}\nneither says nor leaves anything"


@pytest.mark.parametrize("block", all_blocks("python"), ids=str)
def test_python_is_python_and_its_imports_are_there(block: Block) -> None:
    tree = ast.parse(block.text, str(block))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                importlib.import_module(name.name)
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{block}: {node.module} has no {name.name}"


@pytest.mark.parametrize("block", all_blocks("yaml", "yml"), ids=str)
def test_yaml_is_yaml(block: Block) -> None:
    assert all(content is not None for content in yaml.safe_load_all(block.text)), str(block)


def test_json_is_json() -> None:
    for block in all_blocks("json"):
        whole = (
            block.text.lstrip()[0] in "[{" and block.text.rstrip()[-1] in "]}" and "}\n{" not in block.text
        )
        for text in [block.text] if whole else block.text.splitlines():
            try:
                json.loads(text)
            except ValueError as error:
                pytest.fail(f"{block}: {error}")


def test_environment_variables_of_the_documents_are_settings() -> None:
    known = {f"FEWSTEP_{name.upper()}" for name in Settings.model_fields} | OTHER_VARIABLES
    for block in all_blocks():
        for number, line in enumerate(block.text.splitlines(), start=block.line):
            for name in re.findall(r"\bFEWSTEP_[A-Z_]+\b", line):
                assert name in known, f"{block.path}:{number}: {name} is no setting of service/settings.py"


OTHER_VARIABLES = {"FEWSTEP_URL", "FEWSTEP_KEY"}
"""Variables that are read elsewhere than by the server's settings: by `fewstep jobs` and `fewstep bench`."""


def test_commands_are_found_with_their_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from . import documents

    monkeypatch.setattr(documents, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "words\n\n```sh\nfewstep plan a  # remark\ncat > f <<EOF\nno command\nEOF\nA=1 fewstep \\\n  serve\n```\n"
    )
    (block,) = documents.blocks(page, "sh")
    found = [(one.line, one.text) for one in documents.commands(block)]
    assert found == [(4, "fewstep plan a"), (5, "cat > f <<EOF"), (8, "A=1 fewstep serve")]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("fewstep serve --no-such-flag 1", AssertionError),
        ("fewstep plan", AssertionError),
        ("fewstep distill shapes-sana --set no=1", DistillError),
    ],
)
def test_a_wrong_command_fails(text: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"page.md:1: fewstep|no"):
        _fewstep(Command("page.md", 1, text), shlex.split(text))


@pytest.mark.parametrize(
    "text", ["curl http://127.0.0.1:8000/v1/nothing", "curl -X DELETE http://127.0.0.1:8000/v1/models"]
)
def test_a_wrong_address_fails(text: str) -> None:
    with pytest.raises(AssertionError, match="no route"):
        _curl(Command("page.md", 1, text), shlex.split(text))
