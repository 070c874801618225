"""The server as Ray Serve deployments: on a real cluster of two nodes, a replica really killed under load."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

pytest.importorskip("ray.serve", reason="needs the extra `ray`")

from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError
from starlette.requests import Request

from fewstep.ray_serve import TRIES, Engine, Forwarded, Head, Ingress, build
from service.errors import ServiceError

NODES = ("127.0.0.2", "127.0.0.3")  # Ray takes 127.0.0.1 for the machine's outer address
ROUTE = "/v1/images/generations"
SETTINGS = {"threads": 1, "log_level": "error"}

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The application on two nodes with a CPU each, and so a replica on each."""
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        nodes = Cluster()
        try:
            for address in NODES:
                nodes.add_node(
                    num_cpus=1, node_ip_address=address, include_dashboard=False, object_store_memory=10**8
                )
            ray.init(address=nodes.address, log_to_driver=False)
            port = free_port()
            serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"})
            settings = {**SETTINGS, "data_dir": str(tmp_path_factory.mktemp("data"))}
            serve.run(on_each_node(build({"settings": settings})), name="fewstep", route_prefix="/")
            wait_until(lambda: post(f"http://127.0.0.1:{port}", seed=0).status_code == 200)
            yield f"http://127.0.0.1:{port}"
            serve.shutdown()
        finally:
            ray.shutdown()
            nodes.shutdown()


def on_each_node(application: Any) -> Any:
    """As `deployments` of the file would: two engines, one CPU each; an ingress that takes none."""
    ingress = application._bound_deployment
    engine = ingress.init_args[0]._bound_deployment
    two = engine.options(num_replicas=2, ray_actor_options={"num_cpus": 1}, health_check_period_s=1)
    front = ingress.options(ray_actor_options={"num_cpus": 0})
    return front.bind(two.bind(*engine.init_args))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def post(url: str, **body: Any) -> httpx.Response:
    asked = {"prompt": "a red circle on a white background", "num_inference_steps": 1, **body}
    return httpx.post(url + ROUTE, json=asked, timeout=120, trust_env=False)


def wait_until(condition: Callable[[], object], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.2)


def engines() -> list[psutil.Process]:
    ours = psutil.Process().children(recursive=True)
    return [each for each in ours if "ServeReplica:fewstep:Engine" in " ".join(each.cmdline())]


@pytest.mark.slow
def test_a_replica_dies_under_load_and_no_request_is_lost(url: str) -> None:
    wait_until(lambda: len(engines()) == 2)
    undisturbed = {seed: post(url, seed=seed).json()["data"][0]["b64_json"] for seed in range(4)}
    victim, done = engines()[0], threading.Semaphore(0)

    def ask(number: int) -> httpx.Response:
        answer = post(url, seed=number % 4)
        done.release()
        return answer

    with ThreadPoolExecutor(8) as callers:
        asked = [callers.submit(ask, number) for number in range(120)]
        for _ in range(20):
            done.acquire()
        victim.kill()
        answers = [each.result() for each in asked]
    assert [answer.status_code for answer in answers] == [200] * 120
    for number, answer in enumerate(answers):
        assert answer.json()["data"][0]["b64_json"] == undisturbed[number % 4]
    wait_until(lambda: len(engines()) == 2 and victim.pid not in [each.pid for each in engines()])


@pytest.mark.slow
def test_it_is_the_same_application(url: str) -> None:
    answer = post(url, seed=3, n=2, output_format="jpeg")
    assert [entry["seed"] for entry in answer.json()["data"]] == [3, 4]
    assert base64.b64decode(answer.json()["data"][0]["b64_json"])[:2] == b"\xff\xd8"
    assert answer.headers["server-timing"].startswith("queue;dur=")
    assert answer.headers["x-request-id"].startswith("req_")
    assert httpx.get(url + "/health/ready").status_code == 200
    assert "fewstep_images_total" in httpx.get(url + "/metrics").text
    wrong = post(url, size="1x1")
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "size")
    assert httpx.get(url + "/v1/nothing").json()["error"]["code"]
    streamed = post(url, stream=True, n=2, seed=1).text
    assert streamed.count("event: image_generation.completed") == 2
    link = post(url, response_format="url").json()["data"][0]["url"]
    assert httpx.get(link).content[:4] == b"\x89PNG", "by any replica, from the shared folder"


class Handle:
    """Stands for the deployment: each call does what is next in the list."""

    def __init__(self, *outcomes: list[Any] | Exception) -> None:
        self.outcomes, self.asked = list(outcomes), list[Forwarded]()

    def options(self, stream: bool) -> Handle:
        assert stream
        return self

    @property
    def answer(self) -> Handle:
        return self

    def remote(self, forwarded: Forwarded) -> AsyncIterator[Any]:
        self.asked.append(forwarded)
        return self._give(self.outcomes.pop(0))

    async def _give(self, outcome: list[Any] | Exception) -> AsyncIterator[Any]:
        for item in outcome if isinstance(outcome, list) else [outcome]:
            if isinstance(item, Exception):
                raise item
            yield item


def ask(handle: Handle, method: str = "POST", path: str = ROUTE) -> tuple[int, dict[bytes, bytes], bytes]:
    """What a client would see."""
    scope = {"type": "http", "method": method, "path": path, "query_string": b"a=1", "headers": []}
    scope |= {"client": ("1.2.3.4", 5), "scheme": "http", "server": ("test", 80), "root_path": ""}
    messages: list[Any] = []
    body_left = [b"{}"]

    async def receive() -> Any:
        if not body_left:
            await asyncio.Event().wait()  # a client that stays
        return {"type": "http.request", "body": body_left.pop(), "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    async def run() -> None:
        response = await Ingress(handle)(Request(scope, receive))
        await response(scope, receive, send)

    asyncio.run(run())
    body = b"".join(message.get("body", b"") for message in messages)
    return messages[0]["status"], dict(messages[0]["headers"]), body


FINE = Head(201, [(b"content-length", b"2"), (b"x-a", b"b")], b"ok")


def test_an_answer_goes_through_unchanged() -> None:
    handle = Handle([FINE])
    assert ask(handle) == (201, {b"content-length": b"2", b"x-a": b"b"}, b"ok")
    (asked,) = handle.asked
    assert (asked.method, asked.path, asked.query, asked.body) == ("POST", ROUTE, b"a=1", b"{}")
    assert asked.client == ("1.2.3.4", 5)


@pytest.mark.parametrize(("method", "path"), [("POST", ROUTE), ("GET", "/v1/models")])
def test_another_replica_is_asked_when_one_is_lost(method: str, path: str) -> None:
    handle = Handle(ActorDiedError(), ActorDiedError(), [FINE])
    assert ask(handle, method, path)[2] == b"ok"
    assert len(handle.asked) == 3


def test_it_is_given_up_in_the_end() -> None:
    handle = Handle(*[ActorDiedError()] * TRIES)
    status, headers, body = ask(handle)
    assert (status, headers[b"retry-after"]) == (503, b"1")
    assert b'"replica_lost"' in body
    assert len(handle.asked) == TRIES


def test_what_may_have_had_an_effect_is_not_repeated() -> None:
    handle = Handle(ActorDiedError(), [FINE])
    assert ask(handle, "POST", "/v1/models/a/load")[0] == 503
    assert len(handle.asked) == 1


def test_too_many_requests_for_all_replicas() -> None:
    status, headers, body = ask(Handle(BackPressureError(num_queued_requests=9, max_queued_requests=8)))
    assert (status, headers[b"retry-after"]) == (503, b"1")
    assert b'"queue_full"' in body


def test_a_stream_that_loses_its_replica_ends_with_an_error() -> None:
    head = Head(200, [(b"content-type", b"text/event-stream")], b"data: 1\n\n")
    status, _, body = ask(Handle([head, b"data: 2\n\n", ActorDiedError()]))
    assert status == 200
    assert body.startswith(b"data: 1\n\ndata: 2\n\nevent: error\ndata: {")
    assert b'"replica_lost"' in body


def test_a_replica_answers_without_ray(tmp_path: Path) -> None:
    """And notices when whoever asked has gone."""

    async def run() -> None:
        engine = Engine({**SETTINGS, "data_dir": tmp_path})
        await engine.check_health()
        body = b'{"prompt": "a red circle", "seed": 1, "num_inference_steps": 4, "n": 4}'
        headers = [(b"content-type", b"application/json"), (b"host", b"a")]
        request = Forwarded("POST", ROUTE, b"", headers, None, body)
        head, *rest = [piece async for piece in engine.answer(request)]
        assert isinstance(head, Head)
        assert (head.status, rest) == (200, [])
        assert head.body.count(b"b64_json") == 4

        leaving = asyncio.create_task(anext(engine.answer(request)))
        (generator,) = engine._models.generators.values()
        while not generator.inflight:
            await asyncio.sleep(0.001)
        leaving.cancel()
        await asyncio.wait([leaving])
        while generator.inflight:
            await asyncio.sleep(0.001)
        await engine._models.drain(1)

    asyncio.run(asyncio.wait_for(run(), 120))


def test_a_wrong_setting_ends_the_deployment() -> None:
    with pytest.raises(ServiceError, match="queue_limit"):
        build({"settings": {"queue_limit": 0}})
    with pytest.raises(
        ServiceError, match="FEWSTEP_QUEU_LIMIT is not a setting; did you mean FEWSTEP_QUEUE_LIMIT"
    ):
        build({"settings": {"queu_limit": 3}})


def test_the_file_in_deploy_names_what_is_there() -> None:
    """Its schema is Ray's own, its settings are the server's, its deployments are the application's."""
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text()))
    (application,) = config.applications
    assert application.import_path == "fewstep.ray_serve:build"
    bound = build(application.args)
    engine = bound._bound_deployment.init_args[0]._bound_deployment
    names = {bound._bound_deployment.name, engine.name}
    assert {deployment.name for deployment in application.deployments} == names
