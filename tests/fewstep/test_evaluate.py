"""`fewstep evaluate` with published networks: whole runs of the command, resumed ones, and refusals."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.pipeline import find_pipeline
from engines.store import find_bundle
from fewstep.cli import main, parser
from fewstep.evaluate import _check
from fewstep.models import Images, Model, open_model

from ..tiny_encoders import Colours, save_encoder, save_script

CAPTIONS = [
    f"a {colour} {shape} on a white background"
    for colour in ("red", "blue")
    for shape in ("circle", "star", "square")
]


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIP, a feature network and COCO-style captions of six pictures."""
    folder = tmp_path_factory.mktemp("networks")
    save_encoder("clip", folder / "clip")
    save_script(Colours(), folder / "colours.pt")
    annotations = [
        {"image_id": picture, "caption": caption + end}
        for picture, caption in enumerate(CAPTIONS)
        for end in ("", ".")
    ]
    (folder / "captions.json").write_text(json.dumps({"annotations": annotations}))
    main(["shapes", "render", "--count", "12", "--out", str(folder / "real")])
    return folder


@pytest.fixture
def flags(networks: Path) -> list[str]:
    return [
        *("--prompts", str(networks / "captions.json"), "--clip", str(networks / "clip")),
        *("--fid-features", str(networks / "colours.pt"), "--fid-size", "32"),
        *("--reference-images", str(networks / "real"), "--batch", "4"),
    ]


@pytest.fixture
def student(tmp_path: Path) -> Path:
    return Path(shutil.copytree(find_pipeline("shapes-sana-sid"), tmp_path / "student"))


def rows(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", *map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_bundle_and_its_student_measure_alike(
    flags: list[str], student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole line twice, by PyTorch and by ONNX Runtime."""
    by_torch = rows(capsys, student, *flags, "--steps", "1")["student, 1 step"]
    by_onnx = rows(capsys, find_bundle("shapes-sana-sid"), *flags, "--steps", "1")
    (label,) = by_onnx
    assert label.endswith(", 1 step")
    for name in ("fid", "clip_score", "clip_cosine"):
        assert by_onnx[label][name]["mean"] == pytest.approx(by_torch[name]["mean"], abs=0.01)
    assert by_onnx[label]["protocol"] == by_torch["protocol"]


def test_rows_say_how_they_were_made(
    flags: list[str], student: Path, networks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = rows(capsys, student, *flags, "--steps", "1,2", "--images", "4", "--seeds", "0,1")
    assert list(found) == ["student, 1 step", "student, 2 steps"]
    protocol = found["student, 1 step"]["protocol"]
    assert (protocol["prompts"], protocol["images"], protocol["seeds"]) == ("captions.json", 4, [0, 1])
    assert protocol["fid_network"]["name"] == "colours"
    assert protocol["fid_reference_images"] == 12
    assert protocol["clip"]["name"] == "clip"
    assert found["student, 1 step"]["fid"]["spread"] > 0, "other seeds, other pictures"


def test_a_table_for_people(student: Path, networks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["--prompts", str(networks / "captions.json"), "--clip", str(networks / "clip"), "--steps", "1"]
    assert main(["evaluate", str(student), *wanted]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "| model | CLIP score | CLIP cosine |"
    assert lines[2].startswith("| student, 1 step | ")


def test_the_card_keeps_what_it_has(
    flags: list[str], student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (student / "quality.json").write_text(json.dumps({"score": 0.5}))
    shapes = rows(capsys, student, "--steps", "1", "--images", "4", "--seeds", "0", "--card")
    real = rows(capsys, student, *flags, "--steps", "1,2", "--card")
    card = json.loads((student / "quality.json").read_text())
    assert card == {
        "score": 0.5,
        "student, 1 step": shapes["student, 1 step"] | real["student, 1 step"],
        "student, 2 steps": real["student, 2 steps"],
    }
    assert not set(shapes["student, 1 step"]) & set(real["student, 1 step"])


class Stopping:
    """Opens real models whose drawing is stopped after so many batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def open(self, *arguments: Any) -> Model:
        model = open_model(*arguments)

        def draw(prompts: Sequence[str], seeds: Sequence[int], steps: int, guidance: float) -> Images:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return model.draw(prompts, seeds, steps, guidance)

        return replace(model, draw=draw)


def test_a_stopped_evaluation_goes_on_to_the_same_figures(
    flags: list[str],
    student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def wanted(name: str) -> list[object]:
        return [student, *flags, "--steps", "1,2", "--pictures", tmp_path / name]

    whole = rows(capsys, *wanted("whole"))
    with monkeypatch.context() as patch:
        patch.setattr("fewstep.evaluate.open_model", Stopping(batches=3).open)
        assert main(["evaluate", *map(str, wanted("stopped"))]) == 130
    drawn = sorted(path.relative_to(tmp_path / "stopped") for path in (tmp_path / "stopped").rglob("*.png"))
    assert len(drawn) == 6 + 4
    with monkeypatch.context() as patch:
        patch.setattr("fewstep.evaluate.open_model", Stopping(batches=1).open)
        assert rows(capsys, *wanted("stopped")) == whole
    files = [path for path in (tmp_path / "whole").rglob("*") if path.is_file()]
    assert len(files) == 2 * (6 + 1)
    for path in files:
        twin = tmp_path / "stopped" / path.relative_to(tmp_path / "whole")
        assert twin.read_bytes() == path.read_bytes()


def test_kept_pictures_are_of_one_model(
    flags: list[str], student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the weights are the same: the levels of `generator.json` change the pictures."""
    wanted = ["evaluate", str(student), *flags, "--steps", "2", "--pictures", str(tmp_path / "p")]
    assert main(wanted) == 0
    spec = json.loads((student / "generator.json").read_text())
    spec["levels"]["2"] = [1.0, 0.4]
    (student / "generator.json").write_text(json.dumps(spec))
    capsys.readouterr()
    assert main(wanted) == 2
    assert "holds pictures of digest sha256:" in capsys.readouterr().err


def test_statistics_take_the_place_of_the_pictures(
    flags: list[str], student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = ["--reference-statistics", tmp_path / "real.safetensors"]
    first = rows(capsys, student, *flags, *kept, "--steps", "1")
    where = flags.index("--reference-images")
    again = rows(capsys, student, *flags[:where], *flags[where + 2 :], *kept, "--steps", "1")
    assert again == first


def test_a_teacher_is_measured_with_its_guidance(
    flags: list[str], tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = rows(capsys, tiny_teacher, *flags, "--steps", "2", "--guidance", "1,4.5")
    assert list(found) == ["tiny-sana, 2 steps, guidance 1", "tiny-sana, 2 steps, guidance 4.5"]


PROMPTS = ["--prompts", "captions.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clip", "clip"], "--clip needs --prompts FILE"),
        (["--fid-features", "x.pt"], "--fid-features needs --prompts FILE"),
        (["--pictures", "p"], "--pictures needs --prompts FILE"),
        (PROMPTS, "nothing to measure; give --fid-features, --clip or both"),
        ([*PROMPTS, "--fid-features", "colours.pt"], "one of them is missing"),
        ([*PROMPTS, "--clip", "clip", "--reference-images", "real"], "one of them is missing"),
        ([*PROMPTS, "--clip", "clip", "--floor"], "--floor and --split are of the shapes world"),
        ([*PROMPTS, "--clip", "clip", "--split", "train"], "--floor and --split are of the shapes world"),
        ([*PROMPTS, "--clip", "nowhere"], "no encoder 'nowhere'"),
        ([*PROMPTS, "--clip", "clip", "--images", "7"], "has prompts for 6 pictures; 7 are wanted"),
        ([*PROMPTS, "--clip", "clip", "--steps", "3"], "this student offers [1, 2, 4]"),
        ([*PROMPTS, "--clip", "clip", "--batch", "0"], "expected a positive whole number"),
        (["--prompts", "gone.txt", "--clip", "clip"], "no prompts 'gone.txt'"),
        (
            [*PROMPTS, "--fid-features", "colours.pt", "--reference-images", "real/00000.txt"],
            "no pictures in real/00000.txt",
        ),
    ],
)
def test_bad_wishes(
    arguments: list[str],
    message: str,
    networks: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(networks)
    before = sorted(networks.rglob("*"))
    try:
        code = main(["evaluate", "shapes-sana-sid", *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]
    assert sorted(networks.rglob("*")) == before


def test_a_bundles_card_is_sealed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = Path(shutil.copytree(find_bundle("shapes-sana-sid"), tmp_path / "bundle"))
    assert main(["evaluate", str(bundle), "--images", "2", "--seeds", "0", "--card"]) == 2
    assert "a bundle's card is sealed" in capsys.readouterr().err
    assert not (bundle / "quality.json").exists()


def test_the_commands_of_the_protocol_parse() -> None:
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    commands = re.findall(r"```sh\nfewstep (.*?)```", text, re.DOTALL)
    assert len(commands) == 2
    for command in commands:
        options = parser().parse_args(shlex.split(command.replace("\\\n", "")))
        _check(options)
        assert options.images == 10_000
        assert options.fid_size == 256


def test_a_damaged_card_is_told_before_anything_is_measured(
    student: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (student / "quality.json").write_text("{")
    assert main(["evaluate", str(student), "--images", "2", "--seeds", "0", "--card"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "quality.json is not valid JSON" in line


def test_digests_of_models() -> None:
    names = ["shapes-sana", "shapes-sana-sid", str(find_bundle("shapes-sana-sid"))]
    digests = [open_model(name).digest() for name in names]
    assert len(set(digests)) == 3
    assert digests == [open_model(name).digest() for name in names]
    assert open_model("shapes-sana", few_step=True).digest() not in digests
    assert all(np.char.startswith(digests, "sha256:"))
