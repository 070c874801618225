"""The tutorial, from the first command to the last: as it stands, but for flags that make each step short."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from fewstep.cli import main

from ..documents import ROOT, Block, Command, blocks, commands
from .conftest import Server, start_server, stop_server

TUTORIAL = ROOT / "docs" / "tutorial.md"
ADDRESS = "http://127.0.0.1:8000"
SHORT = {
    "fewstep shapes render": "--count 8",
    "fewstep shapes train-": "--steps 2",
    "fewstep evaluate my-teacher": "--images 4 --steps 2",
    "fewstep evaluate my-student": "--images 4",
    "fewstep sample my-teacher": "--steps 2",
    "fewstep distill my-recipe.yaml --out": (
        "--set iterations=2 batch=4 quality_images=4 quality_every=2 samples_every=2 checkpoint_every=2"
    ),
}
"""What is added to commands that begin so; later flags win."""


def shell() -> list[Command]:
    return [command for block in blocks(TUTORIAL, "sh") for command in commands(block)]


def shortened(command: Command) -> list[str]:
    added = [flags for beginning, flags in SHORT.items() if command.text.startswith(beginning)]
    return shlex.split(" ".join([command.text, *added]))[1:]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which all commands before `fewstep serve` have been given, in their order."""
    folder = tmp_path_factory.mktemp("tutorial")
    (recipe,) = blocks(TUTORIAL, "yaml")
    (folder / "my-recipe.yaml").write_text(recipe.text)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in shell():
            if command.text.startswith("fewstep serve"):
                break
            assert main(shortened(command)) == 0, str(command)
        yield folder


@pytest.fixture(scope="module")
def served(followed: Path) -> Iterator[Server]:
    (serve,) = [command for command in shell() if command.text.startswith("fewstep serve")]
    server = start_server(followed / "data", *shlex.split(serve.text)[2:])
    yield server
    assert stop_server(server) == 0


@pytest.mark.slow
def test_every_command_leaves_what_the_page_says(followed: Path) -> None:
    for name in ("world", "autoencoder", "my-teacher", "my-student", "my-bundle"):
        assert any((followed / name).iterdir()), name
    assert (followed / "my-teacher" / "model_index.json").is_file()
    assert any((followed / "my-student/run/samples").iterdir())
    assert (followed / "my-student/run/events.jsonl").is_file()
    for picture in ("teacher.png", "student.png"):
        assert Image.open(followed / picture).size == (272, 272)  # 64 with a frame of 2, four times as large


@pytest.mark.slow
def test_curl_gets_a_picture(served: Server) -> None:
    (curl,) = [command for command in shell() if command.text.startswith("curl")]
    words = shlex.split(curl.text.replace(ADDRESS, served.url))
    done = subprocess.run([*words, "--fail", "--silent"], capture_output=True, text=True)
    assert done.returncode == 0, f"{curl}\n{done.stdout}{done.stderr}"
    assert '"b64_json"' in done.stdout


@pytest.mark.slow
def test_python_gets_a_picture(served: Server, followed: Path) -> None:
    (block,) = blocks(TUTORIAL, "python")
    exec(compile(block.text.replace(ADDRESS, served.url), str(block), "exec"), {})
    assert Image.open(followed / "picture.png").size == (64, 64)


def test_the_page_uses_the_address_of_the_server() -> None:
    assert set(re.findall(r"http://[\d.:]+", TUTORIAL.read_text())) == {ADDRESS}


def test_flags_that_shorten_belong_to_a_command() -> None:
    unused = [one for one in SHORT if not any(command.text.startswith(one) for command in shell())]
    assert not unused, f"no command of {TUTORIAL.name} begins with {unused}"


def test_a_command_keeps_its_own_words() -> None:
    command = next(iter(commands(Block("p.md", 1, "sh", "fewstep shapes render --out w --count 64"))))
    assert shortened(command) == ["shapes", "render", "--out", "w", "--count", "64", "--count", "8"]
