"""Models and health: what the page computes is what the server said."""

from __future__ import annotations

from itertools import pairwise

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Page, expect

from tests.e2e.conftest import Server

from .acting import from_api
from .conftest import Open

COUNTS = st.lists(st.integers(0, 50), min_size=2, max_size=8)


def test_models_show_what_they_prove(playground: Page, server: Server) -> None:
    playground.get_by_role("link", name="Models").click()
    card = playground.get_by_role("article", name="shapes-sana-sid")
    [model] = httpx.get(f"{server.url}/v1/models").json()["data"]
    for text in (model["backend"], model["precision"], "1, 2, 4", model["digests"]["bundle"][7:19]):
        expect(card).to_contain_text(text)
    parts = {measured["part"] for measured in model["parity"]["measurements"]}
    expect(card.get_by_text("holds")).to_have_count(len(parts))
    expect(card.get_by_text("off", exact=True)).to_have_count(0)
    for label, row in model["quality"].items():
        expect(
            card.get_by_role("rowheader", name=label.removeprefix(f"{model['id']}, "), exact=True)
        ).to_be_visible()
        expect(card).to_contain_text(f"{100 * row['accuracy']['mean']:.1f} %")


def test_a_certificate_that_does_not_hold_is_seen(visit: Open, server: Server) -> None:
    listed = httpx.get(f"{server.url}/v1/models").json()
    listed["data"][0]["parity"]["measurements"][0]["relative"] = 0.5
    listed["data"][0]["quality"] = None
    page = visit("about:blank")
    page.route("**/v1/models", lambda route: route.fulfill(json=listed))
    page.goto(f"{server.url}/#/models")
    expect(page.get_by_text("off", exact=True)).to_have_count(1)
    expect(page.get_by_text("No quality card")).to_be_visible()


def test_the_card_of_a_job_has_a_row_for_each_step_count(visit: Open, server: Server) -> None:
    listed = httpx.get(f"{server.url}/v1/models").json()
    figures = {"score": 41.0, "accuracy_1": 0.844, "frechet_1": 528.1, "accuracy_4": 1.0, "frechet_4": 390.8}
    listed["data"][0]["quality"] = figures
    page = visit("about:blank")
    page.route("**/v1/models", lambda route: route.fulfill(json=listed))
    page.goto(f"{server.url}/#/models")
    expect(page.get_by_role("row", name="1 step 84.4 % 528")).to_be_visible()
    expect(page.get_by_role("row", name="4 steps 100.0 % 391")).to_be_visible()
    expect(page.get_by_role("columnheader", name="Fréchet distance")).to_be_visible()


def test_health_follows_the_metrics(playground: Page, server: Server) -> None:
    playground.get_by_role("link", name="Health").click()
    expect(playground.locator(".tile")).to_have_count(6)
    for seed in range(6):
        from_api(server.url, prompt="a red circle", n=2, seed=seed, num_inference_steps=1)
    tile = playground.locator(".tile").filter(has_text="images a second").locator(".figure")
    expect(tile).not_to_have_text("0")
    expect(playground.locator(".tile").filter(has_text="p95").locator(".figure")).to_contain_text("s")
    expect(playground.locator(".tile").filter(has_text="embedding")).to_contain_text("%")
    expect(playground.get_by_role("row").filter(has_text="decode").locator(".bars")).to_be_visible()
    expect(playground.get_by_role("row").filter(has_text="/v1/images/generations")).to_be_visible()
    expect(playground.locator(".chart svg")).to_have_count(2)
    playground.locator(".chart svg").first.focus()
    playground.keyboard.press("ArrowLeft")
    expect(playground.locator(".chart output").first).not_to_be_empty()


def test_streams_count_among_the_requests(playground: Page, server: Server) -> None:
    name = "fewstep_request_duration_seconds_count"
    before = server.metrics()[name]
    playground.get_by_role("button", name="Draw", exact=True).click()
    expect(playground.locator("figure.card a[download]")).to_have_count(4)
    assert server.metrics()[name] == before + 1


def test_metrics_text_is_read_as_prometheus_writes_it(playground: Page) -> None:
    text = "\n".join(
        [
            "# HELP a_total x",
            'a_total{model="m",route="/v1/\\"x\\\\y"} 3.0',
            'b_bucket{le="0.5",stage="s"} 1.0',
            'b_bucket{le="+Inf",stage="s"} 4.0',
            "c 1e-05",
            "d +Inf",
        ]
    )
    read = playground.evaluate(
        """async text => {
            const { Scrape } = await import("/static/js/prometheus.js"), scrape = new Scrape(text, 0);
            const buckets = scrape.buckets("b", { stage: "s" }).map(([bound, count]) => [String(bound), count]);
            return [scrape.find("a_total")[0].labels.route, scrape.sum("a_total", { model: "m" }),
                    scrape.sum("a_total", { model: "n" }), buckets, scrape.sum("c"), String(scrape.sum("d"))];
        }""",
        text,
    )
    assert read == ['/v1/"x\\y', 3, 0, [["0.5", 1], ["Infinity", 4]], 1e-05, "Infinity"]


def expected_quantile(share: float, bounds: list[float], counts: list[int]) -> float:
    """Prometheus' `histogram_quantile`, written once more."""
    rank, below, low = share * sum(counts), 0, 0.0
    for bound, count in zip(bounds, counts):
        if below + count >= rank:
            return low if bound == float("inf") else low + (bound - low) * (rank - below) / (count or 1)
        below, low = below + count, bound
    raise AssertionError


def test_quantiles_are_those_of_prometheus(playground: Page) -> None:
    @settings(max_examples=40)
    @given(counts=COUNTS.filter(any), share=st.sampled_from([0.0, 0.5, 0.9, 0.95, 1.0]))
    def check(counts: list[int], share: float) -> None:
        bounds = [0.1 * 2**index for index in range(len(counts) - 1)] + [float("inf")]
        cumulative = [sum(counts[: index + 1]) for index in range(len(counts))]
        found = playground.evaluate(
            """async ([share, bounds, counts]) => (await import("/static/js/prometheus.js"))
                .quantile(share, bounds.map((bound, index) => [bound ?? Infinity, counts[index]]))""",
            [share, [*bounds[:-1], None], cumulative],
        )
        assert found == pytest.approx(expected_quantile(share, bounds, counts))

    check()


def test_a_counter_that_fell_belongs_to_a_new_server(playground: Page) -> None:
    found = playground.evaluate(
        """async () => {
            const { Scrape, Window } = await import("/static/js/prometheus.js");
            const scrape = (value, at) => new Scrape(`a_total ${value}`, at);
            const window = (one, other) => new Window(scrape(one, 10), scrape(other, 20));
            return [window(5, 25).rate("a_total"), window(25, 5).rate("a_total"), window(5, 5).rate("a_total")];
        }"""
    )
    assert found == [2, 0.5, 0]


def test_axes_have_a_few_round_values_around_the_line(playground: Page) -> None:
    for low, high in ((0, 1), (0, 7.3), (12, 13), (0, 0.004), (250, 9000)):
        check_between(playground, low, high)


def check_between(page: Page, low: float, high: float) -> None:
    ticks = page.evaluate(
        "async ([low, high]) => (await import('/static/js/chart.js')).round(low, high)", [low, high]
    )
    assert 3 <= len(ticks) <= 6
    assert ticks[0] <= low <= high <= ticks[-1]
    steps = {round(other - one, 9) for one, other in pairwise(ticks)}
    assert len(steps) == 1
    assert float(f"{steps.pop():e}".split("e")[0]) in (1, 2, 2.5, 5)
