"""What the documents tell operators is what is there."""

from __future__ import annotations

import re

from .. import test_docs
from .files import DEPLOY, ROOT, read_yaml

OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def test_outcomes_are_those_of_the_server() -> None:
    from service.middleware import outcome

    sentence = OPERATIONS.split("`fewstep_requests_total`: ")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", sentence))
    assert named == {outcome(status) for status in (None, 200, 400, 404, 429, 500, 503, 504)}


def test_images_in_the_table_are_targets_of_the_dockerfile() -> None:
    table = OPERATIONS.split("| target |")[1].split("\n\n")[0]
    named = re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)
    targets = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert named
    assert set(named) <= set(targets)


def test_volumes_in_the_documents_are_those_of_compose() -> None:
    volumes = set(read_yaml(DEPLOY / "compose.yaml")["volumes"])
    named = set(re.findall(r"volumes? `(\w+)`", OPERATIONS))
    assert named
    assert named <= volumes


def test_ports_in_the_documents_are_those_of_compose() -> None:
    services = read_yaml(DEPLOY / "compose.yaml")["services"]
    for name, port in (("api", 8000), ("grafana", 3000), ("prometheus", 9090)):
        assert services[name]["ports"][0].endswith(f":{port}")
        assert str(port) in OPERATIONS


def test_commands_in_the_documents_exist() -> None:
    from fewstep.cli import parser

    known = set(test_docs.subcommands(parser()))
    for page in ("operations", "runbook"):
        text = (ROOT / "docs" / f"{page}.md").read_text()
        for command in re.findall(r"`fewstep (\w+)", text):
            assert command in known, f"{page}: {command}"
        for script in re.findall(r"deploy/\w+\.(?:sh|py)", text):
            assert (ROOT / script).exists(), f"{page}: {script}"


def test_settings_in_the_runbook_exist() -> None:
    from service.settings import Settings

    text = (ROOT / "docs" / "runbook.md").read_text()
    named = set(re.findall(r"`(\w+_(?:seconds|limit|mb|patience))`", text))
    assert named
    assert named <= set(Settings.model_fields)


def test_compose_variables_in_the_documents_exist() -> None:
    text = OPERATIONS + (ROOT / "docs" / "runbook.md").read_text()
    example = (DEPLOY / ".env.example").read_text()
    for name in set(re.findall(r"`((?:API|GPU|PIP|PYTHON|PROMETHEUS|GRAFANA)_[A-Z_]+)", text)) - {
        "GPU_EXTRA"
    }:
        assert f"#{name}=" in example, name
