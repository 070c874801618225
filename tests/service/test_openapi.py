"""The OpenAPI document: well-formed, complete, and true of the answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.schemas import MAX_IMAGES, ImagesRequest

from .running import Running

JOB_PREFIXES = ("/v1/distillation", "/v1/fine_tuning")
JOB_ROUTES = (
    ("POST", ""),
    ("GET", ""),
    ("GET", "/{id}"),
    *(("POST", f"/{{id}}/{change}") for change in ("cancel", "pause", "resume")),
    ("GET", "/{id}/events"),
    ("GET", "/{id}/checkpoints"),
    ("GET", "/{id}/checkpoints/{checkpoint}/sample"),
)
PROMISED = {
    ("POST", "/v1/images/generations"),
    ("GET", "/v1/images/files/{name}"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{id}"),
    ("POST", "/v1/files"),
    ("GET", "/v1/files"),
    ("GET", "/v1/files/{id}"),
    ("DELETE", "/v1/files/{id}"),
    ("GET", "/v1/files/{id}/content"),
    *((method, f"{prefix}/jobs{path}") for prefix in JOB_PREFIXES for method, path in JOB_ROUTES),
    ("GET", "/v1/distillation/teachers"),
    ("POST", "/v1/batches"),
    ("GET", "/v1/batches"),
    ("GET", "/v1/batches/{id}"),
    ("POST", "/v1/batches/{id}/cancel"),
    ("GET", "/v1/models/aliases"),
    ("POST", "/v1/models/aliases"),
    ("DELETE", "/v1/models/aliases/{alias}"),
    ("GET", "/v1/models/{id}/versions"),
    ("POST", "/v1/models/{id}/versions"),
    ("POST", "/v1/models/{id}/promote"),
    ("POST", "/v1/models/{id}/rollback"),
    ("POST", "/v1/models/{id}/load"),
    ("POST", "/v1/models/{id}/unload"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/metrics"),
}
METHODS = {"get", "put", "post", "delete", "options", "head", "patch", "trace"}
ROUTE = "/v1/images/generations"
JOBS = "/v1/distillation/jobs"


@pytest.fixture(scope="module")
def api(shared: Running) -> dict[str, Any]:
    document: dict[str, Any] = shared.client.get("/openapi.json").json()
    return document


def operations(api: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def resolve(api: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        name = schema["$ref"].removeprefix("#/components/schemas/")
        schema = api["components"]["schemas"][name]
    return schema


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from ([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from references(child)


def conforms(api: dict[str, Any], schema: dict[str, Any], value: Any, where: str = "body") -> None:
    """A small JSON Schema check: types, required and known properties, items, alternatives."""
    schema = resolve(api, schema)
    if "anyOf" in schema:
        assert any(_fits(api, each, value, where) for each in schema["anyOf"]), where
        return
    if "const" in schema:
        assert value == schema["const"], where
    if "enum" in schema:
        assert value in schema["enum"], where
    kinds = {
        "object": dict,
        "array": list,
        "boolean": bool,
        "string": str,
        "integer": int,
        "number": (int, float),
        "null": type(None),
    }
    if "type" in schema:
        assert isinstance(value, kinds[schema["type"]]), f"{where}: {value!r} is no {schema['type']}"
    if isinstance(value, dict):
        known = schema.get("properties", {})
        assert set(schema.get("required", [])) <= set(value), where
        if known:
            assert set(value) <= set(known), where
        for name, child in value.items():
            conforms(api, known.get(name, {}), child, f"{where}.{name}")
    if isinstance(value, list):
        for number, child in enumerate(value):
            conforms(api, schema.get("items", {}), child, f"{where}[{number}]")


def _fits(api: dict[str, Any], schema: dict[str, Any], value: Any, where: str) -> bool:
    try:
        conforms(api, schema, value, where)
    except AssertionError:
        return False
    return True


def test_the_document_is_openapi(api: dict[str, Any]) -> None:
    assert re.fullmatch(r"3\.1\.\d+", api["openapi"])
    assert set(api) >= {"info", "paths", "components"}
    assert set(api["info"]) >= {"title", "version"}
    for method, path, operation in operations(api):
        assert method in METHODS
        assert path.startswith("/")
        assert operation["responses"]
        assert all(re.fullmatch(r"[1-5](\d\d|XX)|default", status) for status in operation["responses"])
        assert all("description" in response for response in operation["responses"].values())
    ids = [operation["operationId"] for _, _, operation in operations(api)]
    assert len(ids) == len(set(ids))


def test_all_promised_routes_and_no_others_are_in_it(api: dict[str, Any]) -> None:
    assert {(method.upper(), path) for method, path, _ in operations(api)} == PROMISED


def test_path_parameters_are_declared(api: dict[str, Any]) -> None:
    for _, path, operation in operations(api):
        named = set(re.findall(r"{(\w+)}", path))
        declared = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path" and p["required"]}
        assert declared == named, path


def test_every_reference_leads_somewhere_and_no_schema_is_left_over(api: dict[str, Any]) -> None:
    used = set(references(api))
    named = {f"#/components/schemas/{name}" for name in api["components"]["schemas"]}
    assert used == named


def test_every_api_route_declares_its_errors_in_openais_form(api: dict[str, Any]) -> None:
    for _, path, operation in operations(api):
        if path.startswith("/v1/"):
            for status in ("4XX", "5XX"):
                content = operation["responses"][status]["content"]["application/json"]["schema"]
                error = resolve(api, resolve(api, content)["properties"]["error"])
                assert set(error["properties"]) == {"message", "type", "param", "code"}, path
                assert set(error["required"]) == {"message", "type", "param", "code"}, path


def test_the_request_has_every_field_with_its_bounds(api: dict[str, Any]) -> None:
    body = api["paths"][ROUTE]["post"]["requestBody"]
    assert body["required"] is True
    schema = resolve(api, body["content"]["application/json"]["schema"])
    assert set(schema["properties"]) == set(ImagesRequest.model_fields)
    assert schema["required"] == ["prompt"]

    def number(name: str) -> dict[str, Any]:
        return next(each for each in schema["properties"][name]["anyOf"] if each["type"] == "integer")

    assert (number("n")["minimum"], number("n")["maximum"]) == (1, MAX_IMAGES)
    # FastAPI writes bounds as floating-point numbers, which end 2^63 - 1 at 2^63.
    assert (number("seed")["minimum"], number("seed")["maximum"]) == (0, pytest.approx(2**63 - 1))
    assert (number("output_compression")["minimum"], number("output_compression")["maximum"]) == (0, 100)


ANSWERS = [
    ("post", ROUTE, {"json": {"prompt": "a", "n": 2}}),
    ("post", ROUTE, {"json": {"prompt": "a", "response_format": "url", "output_format": "webp"}}),
    ("post", ROUTE, {"json": {"prompt": "a", "n": 0}}),
    ("post", ROUTE, {"json": {"prompt": "a", "model": "nobody"}}),
    ("post", ROUTE, {"content": b"{", "headers": {"content-type": "application/json"}}),
    ("post", ROUTE, {"content": b" " * 30_000, "headers": {"content-type": "application/json"}}),
    ("get", "/v1/models", {}),
    ("get", "/v1/models/{id}", {"at": "/v1/models/fake"}),
    ("get", "/v1/models/{id}", {"at": "/v1/models/nobody"}),
    ("get", "/v1/images/files/{name}", {"at": "/v1/images/files/nothing.png"}),
    ("post", JOBS, {"json": {"model": "shapes-sana", "training_file": "shapes:train"}}),
    ("post", JOBS, {"json": {"model": "nobody", "training_file": "shapes:train"}}),
    ("get", JOBS, {}),
    ("get", JOBS + "/{id}", {"at": f"{JOBS}/nobody"}),
    ("post", JOBS + "/{id}/cancel", {"at": f"{JOBS}/nobody/cancel"}),
    ("post", "/v1/files", {"data": {"purpose": "batch"}, "files": {"file": b"{}"}}),
    ("post", "/v1/files", {"data": {"purpose": "batch"}}),
    ("get", "/v1/files", {}),
    ("delete", "/v1/files/{id}", {"at": "/v1/files/nothing"}),
    ("get", "/health/live", {}),
    ("get", "/health/ready", {}),
]


@pytest.mark.parametrize(("method", "path", "request_"), ANSWERS)
def test_answers_are_as_described(
    shared: Running, api: dict[str, Any], method: str, path: str, request_: dict[str, Any]
) -> None:
    how = dict(request_)
    with httpx.Client(base_url=shared.url) as client:
        response = client.request(method, how.pop("at", path), **how)
    described = api["paths"][path][method]["responses"]
    status = str(response.status_code)
    entry = described.get(status) or described[f"{status[0]}XX"]
    conforms(api, entry["content"]["application/json"]["schema"], response.json())


def test_the_check_itself_notices_a_wrong_answer(api: dict[str, Any]) -> None:
    schema = api["paths"]["/health/live"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    conforms(api, schema, {"status": "live", "models": {}})
    for wrong in ({"status": "fine"}, {"status": 1}, {}, [], {"status": "live", "more": 1}):
        assert not _fits(api, schema, wrong, "body"), wrong


def test_it_is_sent_compressed_and_by_get_alone(shared: Running) -> None:
    answer = shared.client.get("/openapi.json")
    assert answer.headers["content-encoding"] == "gzip"
    assert shared.client.get("/openapi.json", headers={"accept-encoding": "identity"}).json() == answer.json()
    assert shared.client.post("/openapi.json").status_code == 405
