"""Artifacts in a folder and on a real S3-compatible server: whole or absent, every digest checked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.errors import ServiceError
from service.jobs.artifacts import Artifacts

KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of a bucket on moto's server."""
    pytest.importorskip("s3fs", reason="needs the extra `s3`")
    server = pytest.importorskip("moto.server", reason="needs moto").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem(anon=False).mkdir("artifacts")
        yield "s3://artifacts/jobs"
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> Artifacts:
    if request.param == "folder":
        return Artifacts(str(tmp_path / "kept"))
    url = request.getfixturevalue("s3")
    return Artifacts(f"{url}/{tmp_path.name}")


@pytest.fixture
def student(tmp_path: Path) -> Path:
    folder = tmp_path / "student"
    for name, content in {"generator.json": b"{}", "unet/weights.bin": bytes(range(256)) * 40}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "run/checkpoints").mkdir(parents=True)
    (folder / "run/checkpoints/big").write_bytes(b"x")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_what_goes_in_comes_out(artifacts: Artifacts, student: Path, tmp_path: Path) -> None:
    assert artifacts.parts("job-1") == []
    digest = artifacts.put(student, "job-1", "student", skip=("run",))
    assert artifacts.parts("job-1") == ["student"]
    artifacts.get("job-1", "student", tmp_path / "back", digest)
    shutil.rmtree(student / "run")
    assert content(tmp_path / "back") == content(student)
    assert artifacts.put(student, "job-1", "student") == digest, "the same files have the same digest"


def test_a_file_that_was_changed_there_is_refused_and_leaves_nothing(
    artifacts: Artifacts, student: Path, tmp_path: Path
) -> None:
    artifacts.put(student, "job-1", "student")
    name = f"{artifacts._root}/job-1/student/unet/weights.bin"
    artifacts._system.pipe_file(name, b"something else")
    with pytest.raises(ServiceError, match="weights.bin does not match its digest"):
        artifacts.get("job-1", "student", tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir() if "back" in path.name] == []


def test_another_part_than_the_expected_one_is_refused(
    artifacts: Artifacts, student: Path, tmp_path: Path
) -> None:
    digest = artifacts.put(student, "job-1", "student")
    (student / "generator.json").write_text('{"another": 1}')
    assert artifacts.put(student, "job-1", "student") != digest
    with pytest.raises(ServiceError, match=f"{digest} was expected"):
        artifacts.get("job-1", "student", tmp_path / "back", digest)


def test_a_part_without_its_listing_is_not_there(artifacts: Artifacts, student: Path, tmp_path: Path) -> None:
    artifacts.put(student, "job-1", "student")
    artifacts.remove("job-1", "student")
    artifacts.remove("job-1", "student")
    assert artifacts.parts("job-1") == []
    with pytest.raises(ServiceError, match="is not there, or not whole"):
        artifacts.get("job-1", "student", tmp_path / "back")


def test_a_transfer_that_breaks_off_leaves_the_part_absent(
    artifacts: Artifacts, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts.put(student, "job-1", "student")

    def full(source: str, target: str, **_options: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(artifacts._system, "put_file", full)
    with pytest.raises(ServiceError, match="No space left on device") as caught:
        artifacts.put(student, "job-1", "student")
    assert caught.value.status == 503
    assert artifacts.parts("job-1") == [], "its files may be of both by now"


def test_what_arrives_altered_is_noticed_at_once(
    artifacts: Artifacts, student: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "other").write_bytes(b"other")
    send = artifacts._system.put_file

    def swapped(source: str, target: str, **options: object) -> None:
        send(str(tmp_path / "other"), target, **options)

    monkeypatch.setattr(artifacts._system, "put_file", swapped)
    with pytest.raises(ServiceError, match="is not what was sent"):
        artifacts.put(student, "job-1", "student")
    assert artifacts.parts("job-1") == []


def test_a_listing_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "kept/job-1").mkdir(parents=True)
    for name in ("../../evil", "/evil"):
        (tmp_path / "kept/job-1/student.json").write_text(json.dumps({"files": {name: "sha256:0"}}))
        with pytest.raises(ServiceError, match="leads out of it"):
            Artifacts(str(tmp_path / "kept")).get("job-1", "student", tmp_path / "back")


def test_places_that_do_not_exist_are_named() -> None:
    with pytest.raises(ServiceError, match=r"cannot reach nosuch://place: .*[Pp]rotocol"):
        Artifacts("nosuch://place")


def test_each_file_is_told(student: Path, tmp_path: Path) -> None:
    told: list[str] = []
    Artifacts(str(tmp_path / "kept"), told.append).put(student, "job-1", "student", skip=("run",))
    assert told == ["sending job-1/student/generator.json", "sending job-1/student/unet/weights.bin"]


def test_jobs_that_have_left_everything_are_listed_the_newest_first(artifacts: Artifacts) -> None:
    assert artifacts.signed("small") == []
    for job, name in (("job-1", "small"), ("job-2", "other"), ("job-3", "small")):
        artifacts.sign(job, {"name": name})
    assert artifacts.signed("small") == ["job-3", "job-1"]
    artifacts.unsign("job-3")
    assert artifacts.signed("small") == ["job-1"]
