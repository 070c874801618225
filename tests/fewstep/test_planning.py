"""`fewstep plan` and `fewstep distill --dry-run`."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import yaml

from distill import hub
from distill.pipeline import SHIPPED
from distill.planning.gpus import GPUS
from distill.recipe import Recipe, load_recipe, shipped_recipes
from fewstep.cli import main


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No sockets, and an empty working folder."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dry_run(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["distill", name, "--dry-run"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "shapes-sana-demo" else pytest.mark.slow)
        for name in shipped_recipes()
    ],
)
def test_a_dry_run_prints_recipe_and_plan_and_touches_nothing(
    name: str, offline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = load_recipe(name).teacher
    if not hub.is_repository(teacher) and not (SHIPPED / teacher).is_dir():
        pytest.skip(f"{teacher} is not shipped yet")
    shown = dry_run(name, capsys)
    resolved = shown.split("\n\n")[0]
    assert Recipe.model_validate(yaml.safe_load(resolved)) == load_recipe(name)
    assert all(gpu in shown for gpu in GPUS)
    assert "Times are estimates" in shown
    assert ("no prompts 'prompts.txt'" in shown) == (load_recipe(name).prompts == "prompts.txt")
    assert list(offline.iterdir()) == []


def test_a_plan_as_json_of_a_folder(
    tiny_teacher: Path, offline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--gpus", "2", "--precision", "bfloat16", "--adapter", "lora", "--set", "batch=8", "--json"]
    assert main(["plan", str(tiny_teacher), *flags]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["mode"]["gpus"], plan["mode"]["adapter"], plan["precision"]) == (2, "lora", "bfloat16")
    assert (plan["images_at_a_time"], plan["parts"]) == (4, 1)
    for way in ("plain", "checkpointed"):
        memory = plan[way]["memory"]
        assert memory["total"] == sum(size for name, size in memory.items() if name != "total")
        assert memory["student"] < memory["teacher"]
        assert set(plan[way]["gpus"]) == set(GPUS)
    assert plan["checkpointed"]["flops_per_iteration"] > plan["plain"]["flops_per_iteration"]
    assert list(offline.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "no model 'nowhere'"),
        (("someone/model",), "is not known here"),
        (("shapes-sana", "--gpus", "0"), "expected a positive whole number"),
        (("shapes-sana", "--gpus", "7"), "batch 48 cannot be divided among 7 GPUs"),
        (("shapes-sana", "--gpu", "abacus"), "expected one of A100-80GB"),
        (("shapes-sana", "--utilisation", "2"), "above 0 and at most 1"),
        (("shapes-sana", "--set", "colour=red"), "unknown key 'colour'"),
    ],
)
def test_wrong_requests(
    arguments: tuple[str, ...], message: str, offline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["plan", *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert message in line
