"""The code that the page offers is run, and draws what the page drew."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import Server

from .acting import content, draw, fill, from_api

pytestmark = pytest.mark.slow

PROMPT = """a "red" circle, it's $HOME `left` of a blue star \\ on white"""


@pytest.fixture
def drawn(playground: Page) -> bytes:
    fill(playground, prompt=PROMPT, steps=2, seed=2**63 - 2, n=1)
    saved = content(playground, draw(playground, 1).first)
    playground.get_by_text("As code").click()
    return saved


def copied(page: Page, language: str) -> str:
    page.get_by_role("button", name=language, exact=True).click()
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    return str(page.evaluate("navigator.clipboard.readText()"))


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(playground: Page, drawn: bytes) -> None:
    command = copied(playground, "curl")
    done = subprocess.run(["sh", "-c", f"{command} -s"], capture_output=True, text=True, check=True)
    assert base64.b64decode(json.loads(done.stdout)["data"][0]["b64_json"]) == drawn


def test_python(playground: Page, drawn: bytes, tmp_path: Path) -> None:
    program = copied(playground, "Python")
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert (tmp_path / "0.png").read_bytes() == drawn


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
def test_javascript_outside_of_a_page(playground: Page, drawn: bytes, tmp_path: Path) -> None:
    program = tmp_path / "draw.mjs"
    program.write_text(f"{copied(playground, 'JavaScript')}\nconsole.log(pictures[0]);")
    done = subprocess.run(["node", program], capture_output=True, text=True, check=True)
    assert base64.b64decode(done.stdout.split(",")[1]) == drawn


def test_javascript(playground: Page, server: Server, drawn: bytes) -> None:
    program = copied(playground, "JavaScript")
    address = playground.evaluate(f"async () => {{ {program}\n return pictures[0]; }}")
    assert base64.b64decode(address.split(",")[1]) == drawn
    assert from_api(server.url, prompt=PROMPT, seed=2**63 - 2, num_inference_steps=2) == [drawn]
