"""The Dockerfile by its text, and the programs that it puts into the images."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from service.settings import Settings

from ..service.fake_runtime import FakeRuntime
from ..service.running import run_server
from .files import DEPLOY, ROOT, run
from .live import free_port

DOCKERFILE = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
READY = DEPLOY / "image" / "ready.py"
SCRIPTS = sorted([*DEPLOY.rglob("*.sh"), ROOT / "scripts" / "system-packages", ROOT / ".ci" / "run"])
LINTERS = Path(sys.executable).parent


def stages() -> dict[str, tuple[str, str]]:
    """Name -> what it starts from, its instructions."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", INSTRUCTIONS, flags=re.MULTILINE)[1:]
    return {name: (base, text) for base, name, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


def chain(name: str) -> str:
    """The instructions that make an image, those of what it starts from included."""
    base, text = stages()[name]
    return (chain(base) if base in stages() else "") + text


IMAGES = ("serve", "serve-gpu", "serve-ray", "distill")
each_image = pytest.mark.parametrize("image", IMAGES)


@pytest.mark.parametrize(
    "file", [ROOT / "Dockerfile", DEPLOY / "postgres" / "Dockerfile"], ids=lambda file: file.parent.name
)
def test_hadolint_finds_nothing(file: Path) -> None:
    done = run(LINTERS / "hadolint", "--failure-threshold", "warning", file)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script: Path) -> None:
    done = run(LINTERS / "shellcheck", script)
    assert done.returncode == 0, done.stdout


@each_image
def test_an_image_runs_as_nobody_in_particular(image: str) -> None:
    users = re.findall(r"^USER (\S+)$", chain(image), re.MULTILINE)
    assert users[-1] == "10001:10001"


@each_image
def test_an_image_says_what_it_is(image: str) -> None:
    labels = re.findall(r'([\w.]+)="', " ".join(re.findall(r"^LABEL (.*)$", chain(image), re.MULTILINE)))
    wanted = {"title", "licenses", "version", "revision", "created", "description"}
    assert {f"org.opencontainers.image.{label}" for label in wanted} | {"fewstep.sbom"} <= set(labels)


def test_servers_are_healthy_when_they_are_ready() -> None:
    for image in ("serve", "serve-gpu"):
        assert re.search(r'^HEALTHCHECK .*CMD \["fewstep-ready"\]$', chain(image), re.MULTILINE)
        assert 'CMD ["serve"]' in chain(image)


def test_a_build_without_a_target_makes_the_server() -> None:
    assert list(stages())[-1] == "serve"


def test_every_base_is_an_argument_that_can_hold_a_digest() -> None:
    bases = {base for base, _ in stages().values()} - set(stages())
    assert bases == {"${PYTHON_IMAGE}"}
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.\d+-slim$", DOCKERFILE, re.MULTILINE)


def test_the_server_has_no_torch() -> None:
    assert "torch" not in stages()["serve-environment"][1]
    extras = re.findall(r"\.\[([\w,-]+)\]", stages()["serve-environment"][1])
    assert extras
    assert "distill" not in extras[0].split(",")


def test_extras_that_are_installed_exist() -> None:
    import tomllib

    known = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    named = {extra for group in re.findall(r"\.\[([^\]]+)\]", INSTRUCTIONS) for extra in group.split(",")}
    assert named - {"${GPU_EXTRA}"} <= known
    assert "tensorrt" in known


def test_dependencies_are_installed_before_the_source_comes() -> None:
    """A changed source file leaves the large layers as they are."""
    for name, (base, text) in stages().items():
        if name.endswith("-environment"):
            assert base == "installer"
            assert not re.search(r"^COPY", text, re.MULTILINE)
            assert text.index("constraints.txt") < text.index("--mount=from=wheel")
    copied = re.findall(r"^COPY (?:--\S+ )*(.*) \S+$", stages()["installer"][1], re.MULTILINE)
    assert set(" ".join(copied).split()) == {
        "deploy/image/add-fewstep.sh",
        "pyproject.toml",
        "constraints.txt",
    }


def test_pip_keeps_its_cache_between_builds_and_its_password_out_of_them() -> None:
    for line in INSTRUCTIONS.splitlines():
        if "pip --python" in line or "pip wheel" in line:
            assert "--mount=type=cache,target=/root/.cache/pip" in line
            assert "--mount=type=secret,id=pip" in line
            assert "--constraint constraints.txt" in line or "--no-deps" in line


def test_nothing_secret_is_an_argument_or_variable() -> None:
    named = re.findall(r"^(?:ARG|ENV) (.*)$", INSTRUCTIONS, re.MULTILINE)
    assert not [line for line in named if re.search("PASSWORD|SECRET|TOKEN|KEY", line)]


def test_files_that_are_copied_are_let_in_and_others_are_not() -> None:
    let_in = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for sources in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.*) \S+$", INSTRUCTIONS, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert any(source == name or source.startswith(f"{name}/") for name in let_in), source
    assert "*" in (ROOT / ".dockerignore").read_text().splitlines()


def test_packages_of_the_project_are_all_in_the_wheel() -> None:
    copied = re.findall(r"^COPY (\w+) \1$", stages()["wheel"][1], re.MULTILINE)
    assert sorted(copied) == ["distill", "engines", "fewstep", "service"]


def ready(port: int, **more: str) -> tuple[int, str]:
    done = run(sys.executable, READY, env=os.environ | {"FEWSTEP_PORT": str(port)} | more)
    return done.returncode, done.stdout


def test_the_health_check_follows_readiness(settings: Settings) -> None:
    with run_server(settings, {"fake": FakeRuntime()}) as running:
        port = int(running.url.rpartition(":")[2])
        code, said = ready(port)
        assert (code, '"status":"ready"' in said) == (0, True)
        assert ready(port, http_proxy="http://127.0.0.1:1")[0] == 0, "goes through no proxy"
        running.server.config.loaded_app  # noqa: B018
        app = running.server.config.app
        app.state.service.models._draining = True  # type: ignore[union-attr]
        code, said = ready(port)
        assert (code, '"status":"draining"' in said) == (1, True)


def test_the_health_check_of_a_server_that_is_not_there() -> None:
    port = free_port()
    code, said = ready(port)
    assert code == 1
    assert f"nothing answers on 127.0.0.1:{port}" in said


def test_the_health_check_needs_no_package(tmp_path: Path) -> None:
    shutil.copy(READY, tmp_path / "ready")
    done = run(sys.executable, "-I", "-S", tmp_path / "ready", env={"FEWSTEP_PORT": str(free_port())})
    assert "nothing answers" in done.stdout, done.stderr
