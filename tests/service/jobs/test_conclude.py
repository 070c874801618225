"""The end of a job: kept and judged; published only if the gate holds, and if not the reason is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engines.bundle import Bundle
from service.errors import ServiceError
from service.jobs.artifacts import Artifacts
from service.jobs.conclude import NOT_ASKED, Conclusion, Retention, psnr_of
from service.jobs.desk import Claim
from service.jobs.gate import Gate, Publish, Verdict
from service.jobs.leases import Lease
from service.jobs.stages import Plan

SHIPPED = Path(__file__).parents[3] / "engines/shipped/shapes-sana-sid"
ALL = Retention()


class Shelf:
    """A publisher that takes everything, or nothing."""

    def __init__(self, refusal: str | None = None) -> None:
        self.refusal, self.published = refusal, list[str]()

    def publish(
        self, claim: Claim, publish: Publish, bundle: Bundle, verdict: Verdict, rest: Callable[[], None]
    ) -> dict[str, Any]:
        if self.refusal:
            raise ServiceError(self.refusal)
        self.published.append(bundle.digest)
        return {"digest": bundle.digest}


def rows(accuracy: float) -> str:
    return json.dumps({"small, 1 step": {"accuracy": {"mean": accuracy, "spread": 0.0}}})


def finished(tmp_path: Path, gate: Gate | None, job: str = "job-1", now: float | None = None) -> Claim:
    """A job whose commands are done; the model served now, if there is one, has the accuracy `now`."""
    plan = Plan(tmp_path / job, "small", {}, gate, lambda: None if now is None else SHIPPED)
    (plan.student / "run/checkpoints/000010").mkdir(parents=True)
    (plan.student / "run/samples").mkdir()
    (plan.student / "run/samples/000010.png").write_bytes(b"png")
    (plan.student / "generator.json").write_text("{}")
    shutil.copytree(SHIPPED, plan.bundle)
    (plan.folder / "evaluate.out").write_text(rows(0.9))
    if now is not None:
        (plan.folder / "compare.out").write_text(rows(now))
        (plan.folder / "compare.json").write_text('{"code": 0}')
    return Claim(Lease(job, 1), plan, Publish(model="small") if gate else None)


def conclude(tmp_path: Path, claim: Claim, shelf: Shelf, retention: Retention = ALL) -> dict[str, Any]:
    ending = Conclusion(Artifacts(str(tmp_path / "kept")), shelf, retention)(claim, lambda: None)
    assert ending.status == "succeeded"
    return ending.result


def wanted(**gate: object) -> Gate:
    return Gate.model_validate(gate)


def test_what_passes_is_published_and_kept(tmp_path: Path) -> None:
    claim, shelf = finished(tmp_path, wanted(at_least={"accuracy": 0.9, "psnr_db": 40})), Shelf()
    result = conclude(tmp_path, claim, shelf)
    digest = Bundle.load(SHIPPED).digest
    assert (result["published"], result["reasons"]) == (True, [])
    assert result["version"] == {"digest": digest}
    assert shelf.published == [digest]
    assert result["bundle"]["bundle_digest"] == digest
    assert Bundle.load(Path(result["bundle"]["url"])).digest == digest
    assert Path(result["student"]["url"], "generator.json").is_file()
    assert not Path(result["student"]["url"], "run").exists()
    assert Path(result["samples"]["url"], "000010.png").is_file()
    assert not (claim.plan.student / "run/checkpoints").exists()
    json.dumps(result, allow_nan=False)


def test_what_does_not_pass_is_kept_and_the_reason_told(tmp_path: Path) -> None:
    claim, shelf = finished(tmp_path, wanted(worse_by={"accuracy": 0.01}), now=0.95), Shelf()
    result = conclude(tmp_path, claim, shelf)
    assert not result["published"]
    assert result["reasons"] == [
        "accuracy in 1 step(s) is 0.9, at least 0.94 is needed, the model served now has 0.95"
    ]
    assert shelf.published == []
    assert Bundle.load(Path(result["bundle"]["url"])).digest == result["bundle"]["bundle_digest"]


def test_as_good_as_what_is_served_passes(tmp_path: Path) -> None:
    claim, shelf = finished(tmp_path, wanted(worse_by={"accuracy": 0}), now=0.9), Shelf()
    assert conclude(tmp_path, claim, shelf)["published"]


def test_a_server_that_does_not_take_it_leaves_it_unpublished(tmp_path: Path) -> None:
    claim = finished(tmp_path, wanted())
    result = conclude(tmp_path, claim, Shelf("model small was loaded and cannot draw"))
    assert not result["published"]
    assert result["reasons"] == ["model small was loaded and cannot draw"]


def test_who_does_not_ask_gets_a_student_that_is_kept(tmp_path: Path) -> None:
    shelf = Shelf()
    result = conclude(tmp_path, finished(tmp_path, None), shelf)
    assert (result["published"], result["reasons"], result["verdict"]) == (False, [NOT_ASKED], None)
    assert shelf.published == []


def test_concluded_twice_it_is_the_same(tmp_path: Path) -> None:
    claim = finished(tmp_path, wanted())
    assert conclude(tmp_path, claim, Shelf()) == conclude(tmp_path, claim, Shelf())


def test_a_damaged_bundle_ends_the_job_with_the_reason(tmp_path: Path) -> None:
    claim = finished(tmp_path, wanted())
    (claim.plan.bundle / "decoder.onnx").write_bytes(b"damaged")
    with pytest.raises(ServiceError, match="does not match its digest"):
        conclude(tmp_path, claim, Shelf())


def test_only_the_newest_students_of_a_name_are_kept(tmp_path: Path) -> None:
    kept = Artifacts(str(tmp_path / "kept"))
    for number in range(4):
        claim = finished(tmp_path, None, f"job-{number}")
        conclude(tmp_path, claim, Shelf(), Retention(students=2, checkpoints=True))
        assert (claim.plan.student / "run/checkpoints").exists()
    assert kept.signed("small") == ["job-3", "job-2"]
    assert [kept.parts(f"job-{number}") for number in range(4)][:2] == [[], []]
    assert kept.parts("job-3") == ["bundle", "samples", "student"]


def test_the_certificate_says_how_far_the_bundle_is_from_pytorch() -> None:
    psnr = psnr_of(Bundle.load(SHIPPED))
    assert psnr is not None
    assert psnr >= 40
