"""Input files of batches: all that the live route would take is taken, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.batches.lines import Limits, check_lines, read_lines
from service.errors import ServiceError
from service.schemas import ImagesRequest

from ..test_fuzz import bodies
from .office import jsonl, line

LIMITS = Limits(lines=100, line_bytes=4096)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "requests.jsonl"
    path.write_bytes(content)
    return path


def test_blank_lines_and_line_ends_of_any_kind_are_borne(tmp_path: Path) -> None:
    texts = [json.dumps(line(str(number))).encode() for number in range(3)]
    path = written(tmp_path, b"\n" + texts[0] + b"\r\n\n  \n" + texts[1] + b"\n" + texts[2])
    assert check_lines(path, LIMITS) == 3
    read = list(read_lines(path, LIMITS))
    assert [(number, one.custom_id) for number, one in read] == [(2, "0"), (5, "1"), (6, "2")]
    assert read[0][1].body == ImagesRequest(prompt="a red circle")


def test_a_line_as_long_as_may_be_is_taken_and_one_byte_more_is_not(tmp_path: Path) -> None:
    empty = len(json.dumps(line("a", prompt="")))
    fits = [line("a", prompt="x" * (4096 - empty)), line("b")]
    assert check_lines(written(tmp_path, jsonl(fits)), LIMITS) == 2
    too_long = [line("a", prompt="x" * (4097 - empty)), line("b", prompt="y" * 90_000), line("c")]
    with pytest.raises(ServiceError, match=r"2 of 3 lines .*Line 1: It is longer .*line 2: It is longer"):
        check_lines(written(tmp_path, jsonl(too_long)), LIMITS)


def test_a_field_given_twice_in_a_line(tmp_path: Path) -> None:
    content = jsonl([line("a")]).replace(b'"prompt"', b'"prompt": "b", "prompt"')
    with pytest.raises(ServiceError, match="Line 1: Parameter 'prompt' is given more than once"):
        check_lines(written(tmp_path, content), LIMITS)


def test_line_separators_inside_a_prompt_end_no_line(tmp_path: Path) -> None:
    content = json.dumps(line("a", prompt="one\u2028two"), ensure_ascii=False).encode()
    assert check_lines(written(tmp_path, content), LIMITS) == 1


def test_only_the_first_bad_lines_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    content = jsonl([line(str(number), n=99 if number % 2 else 1) for number in range(20)])
    with pytest.raises(ServiceError) as raised:
        check_lines(written(tmp_path, content), LIMITS)
    message = raised.value.message
    assert message.startswith("10 of 20 lines cannot be accepted. Line 2: Invalid 'body.n'")
    assert message.endswith("And 7 more.")
    assert message.count("Invalid 'body.n'") == 3


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(bodies(), min_size=1, max_size=4))
def test_a_body_is_taken_when_the_live_route_takes_it(tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    def live(body: dict[str, Any]) -> bool:
        try:
            request = ImagesRequest.model_validate(json.loads(json.dumps(body)))
        except ValidationError:
            return False
        return not (
            request.stream
            or request.partial_images
            or request.response_format == "url"
            or request.deadline_ms is not None
        )

    content = jsonl([{**line(str(number)), "body": body} for number, body in enumerate(asked)])
    good = sum(map(live, asked))
    path = written(tmp_path, content)
    if good == len(asked):
        assert check_lines(path, Limits(100, 1 << 20)) == good
    else:
        with pytest.raises(ServiceError, match=f"^{len(asked) - good} of {len(asked)} lines"):
            check_lines(path, Limits(100, 1 << 20))


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_with_a_message(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = written(tmp_path_factory.mktemp("bytes"), content)
    with pytest.raises(ServiceError) as raised:
        check_lines(path, LIMITS)
    assert raised.value.status == 400
    assert raised.value.param == "input_file_id"
