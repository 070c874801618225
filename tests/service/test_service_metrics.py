"""The names of metrics are public."""

from __future__ import annotations

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from service.metrics import Metrics

from .running import Running

FROZEN = {
    "fewstep_requests_total": {"model", "route", "outcome"},
    "fewstep_images_total": {"model", "steps"},
    "fewstep_padded_images_total": {"stage"},
    "fewstep_request_duration_seconds": set(),
    "fewstep_queue_wait_seconds": set(),
    "fewstep_stage_duration_seconds": {"stage"},
    "fewstep_batch_size": {"stage"},
    "fewstep_queue_depth": {"model", "stage"},
    "fewstep_inflight_images": {"model"},
    "fewstep_embedding_cache_hits_total": set(),
    "fewstep_embedding_cache_misses_total": set(),
    "fewstep_result_cache_hits_total": set(),
    "fewstep_result_cache_misses_total": set(),
    "fewstep_reduced_images_total": {"model"},
    "fewstep_cancelled_images_total": {"model"},
    "fewstep_prediction_ratio": {"model"},
    "fewstep_engine_restarts_total": {"model"},
    "fewstep_jobs": {"status"},
    "fewstep_job_duration_seconds": set(),
    "fewstep_batches": {"status"},
    "fewstep_batch_requests_total": {"outcome"},
    "fewstep_ready": set(),
    "fewstep_model_ready": {"model"},
    "fewstep_queue_limit_images": set(),
    "fewstep_version_requests_total": {"model", "version", "outcome"},
    "fewstep_model_version_share": {"model", "version", "digest"},
    "fewstep_model_memory_bytes": {"model", "version"},
    "fewstep_build_info": {"version", "python"},
    "process_cpu_seconds_total": set(),
    "process_max_fds": set(),
    "process_open_fds": set(),
    "process_resident_memory_bytes": set(),
    "process_start_time_seconds": set(),
    "process_virtual_memory_bytes": set(),
}
BUCKETS = "0.01 0.02 0.03 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1.0 1.5 2.0 3.0 5.0 10.0 30.0 +Inf"


def without_suffix(name: str) -> str:
    for suffix in ("_bucket", "_sum", "_count"):
        name = name.removesuffix(suffix)
    return name


def test_names_and_labels_are_frozen(shared: Running) -> None:
    assert shared.generate().status_code == 200
    seen: dict[str, set[str]] = {}
    for family in parse_prometheus(shared.client.get("/metrics").text):
        for sample in family.samples:
            seen.setdefault(without_suffix(sample.name), set()).update(set(sample.labels) - {"le"})
    assert seen == FROZEN


def test_stages_and_buckets(shared: Running) -> None:
    assert shared.generate().status_code == 200
    families = {family.name: family for family in parse_prometheus(shared.client.get("/metrics").text)}
    stages = {sample.labels["stage"] for sample in families["fewstep_stage_duration_seconds"].samples}
    assert stages == {"encode", "denoise", "decode", "file"}
    duration = families["fewstep_request_duration_seconds"].samples
    assert " ".join(sample.labels["le"] for sample in duration if "le" in sample.labels) == BUCKETS


def test_openmetrics_by_content_negotiation(shared: Running) -> None:
    plain = shared.client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain")
    open_text = shared.client.get(
        "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}
    )
    assert open_text.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in parse_openmetrics(open_text.text)}
    assert "fewstep_requests" in names


def test_outcomes_and_routes(shared: Running) -> None:
    def count(**labels: str) -> float:
        return shared.metric("fewstep_requests_total", **labels)

    route = "/v1/images/generations"
    before = count(model="fake", route=route, outcome="ok"), count(route=route, outcome="invalid")
    shared.generate()
    shared.generate(n=0)
    shared.generate(model="x")
    assert count(model="fake", route=route, outcome="ok") == before[0] + 1
    assert count(route=route, outcome="invalid") == before[1] + 2
    # Neither what clients invent as names nor what probes poll becomes a series.
    assert count(model="x") == 0
    shared.client.get("/v1/images/invented")
    shared.client.get("/health/ready")
    shared.client.get("/v1/models/fake")
    assert count(route="unmatched", outcome="invalid") >= 1
    assert count(route="/v1/models/{id}", model="fake", outcome="ok") >= 1
    for prefix in ("/v1/distillation", "/v1/fine_tuning"):
        shared.client.get(f"{prefix}/jobs/ftjob-invented/events")
        assert count(route=f"{prefix}/jobs/{{id}}/events", outcome="invalid") == 1
    assert 'route="/health' not in shared.client.get("/metrics").text


def test_readiness_is_a_metric(shared: Running) -> None:
    assert shared.metric("fewstep_ready") == 1
    assert shared.metric("fewstep_model_ready", model="fake") == 1
    assert shared.metric("fewstep_model_ready") == 2
    assert shared.metric("fewstep_queue_limit_images") == 256


def test_a_server_that_is_not_ready_says_so_by_model() -> None:
    metrics = Metrics()
    metrics.health.report(False, {"a": True, "b": False})
    metrics.health.report(False, {"b": False})
    assert metrics.registry.get_sample_value("fewstep_ready") == 0
    assert metrics.registry.get_sample_value("fewstep_model_ready", {"model": "b"}) == 0
    assert metrics.registry.get_sample_value("fewstep_model_ready", {"model": "a"}) is None, "unloaded"


def test_running_jobs_show_where_they_are_and_vanish_when_they_end() -> None:
    metrics = Metrics()
    told = {"percent": 25.0, "images_per_second": 8.0, "eta_seconds": None, "losses": {"fake": 0.5}}
    metrics.running.show({"job-1": told, "job-2": {"percent": 50.0, "quality": {"accuracy_1": 0.75}}})

    def shown() -> dict[tuple[str, str], float]:
        return {
            (sample.name, ",".join(sample.labels.values())): sample.value
            for family in metrics.registry.collect()
            for sample in family.samples
            if sample.name.startswith("fewstep_job_") and "job" in sample.labels
        }

    assert shown() == {
        ("fewstep_job_progress_ratio", "job-1"): 0.25,
        ("fewstep_job_progress_ratio", "job-2"): 0.5,
        ("fewstep_job_images_per_second", "job-1"): 8.0,
        ("fewstep_job_loss", "job-1,fake"): 0.5,
        ("fewstep_job_quality", "job-2,accuracy_1"): 0.75,
    }
    metrics.running.show({"job-2": {}})
    assert shown() == {("fewstep_job_progress_ratio", "job-2"): 0.0}
