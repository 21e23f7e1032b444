"""onecount.js in a real browser (Debian's chromium), from the landing with a click id to the row in conversions.attributed."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import orjson
import pytest
from confluent_kafka import OFFSET_BEGINNING, TopicPartition
from playwright.sync_api import Browser, BrowserContext, Page

from app.engine.clients import KafkaClients
from tests.chromium import chromium
from tests.conftest import Services
from tests.gateway.harness import CONFIG, Gateway, conversion, taken
from tests.integration.deployment import Deployment, deployed

STATIC = Path(__file__).resolve().parents[2] / "app" / "gateway" / "static"
MAX_SCRIPT_BYTES = 3_000
PAGE = """<!doctype html><title>shop</title>
<script>window.onecount = window.onecount || function () { (onecount.q = onecount.q || []).push(arguments) }</script>
<script async src="http://t.shop.localhost:PORT/onecount.js" data-advertiser="shop" data-platform="default" MORE></script>
<a id="next" href="/next.html">next</a>
"""


class Site:
    """The shop's pages on www.shop.localhost, the gateway on t.shop.localhost: one site to a browser, as in production."""

    def __init__(self, deployment: Deployment, folder: Path) -> None:
        self.deployment = deployment
        handler = partial(_Quiet, directory=str(folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://www.shop.localhost:{self._server.server_port}"
        shop = {"origins": [self.url], "cookie": {"domain": "shop.localhost"}}
        self.gateway = Gateway(deployment, {"keys": CONFIG["keys"], "advertisers": {"shop": shop}}).ready()
        for name, more in (("index", ""), ("next", ""), ("asks", 'data-consent="wait"')):
            (folder / f"{name}.html").write_text(PAGE.replace("PORT", str(self.gateway.port)).replace("MORE", more))
        deployment.start("counter")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def events(self, count: int, holds: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Those events of the raw topic, in order of their time, as soon as there are so many."""
        found: list[dict[str, Any]] = []

        def are_there() -> bool:
            found[:] = sorted(filter(holds, taken(self.deployment, "")), key=lambda event: event["event_time"])
            return len({event["event_id"] for event in found}) >= count

        self.deployment.wait_until(are_there, f"{count} events", 20)
        return found

    def rows(self, count: int, event_id: str) -> list[dict[str, Any]]:
        """The present rows of a conversion in conversions.attributed, as soon as so many are counted."""
        found: list[dict[str, Any]] = []

        def are_there() -> bool:
            rows = self._latest()
            found[:] = [row for row in rows.values() if row and row["event_id"] == event_id]
            return sum(row["conversions"] for row in found) == count

        self.deployment.wait_until(are_there, f"{count} conversions", 20)
        return found

    def _latest(self) -> dict[bytes, dict[str, Any] | None]:
        consumer = KafkaClients(self.deployment.settings).reader()
        latest: dict[bytes, dict[str, Any] | None] = {}
        try:
            topic = self.deployment.settings.attributed_topic
            consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(4)])
            ended = 0
            while ended < 4:
                for message in consumer.consume(100, 0.2):
                    if message.error() is not None:
                        ended += 1
                    else:
                        latest[message.key()] = orjson.loads(message.value()) if message.value() else None
        finally:
            consumer.close()
        return latest


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    name, pages = f"test-js-{os.getpid()}", tmp_path_factory.mktemp("pages")
    with deployed(services.bootstrap, services.redis_url, name, tmp_path_factory.mktemp("js")) as deployment:
        running = Site(deployment, pages)
        yield running
        running.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser without a past."""
    opened = browser.new_context()
    yield opened
    opened.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A page that has complained of nothing at the end."""
    opened = context.new_page()
    complaints: list[str] = []
    opened.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    yield opened
    assert [text for text in complaints if "favicon" not in text and "404" not in text] == []


def cookies(context: BrowserContext) -> list[Any]:
    return [cookie for cookie in context.cookies() if cookie["name"] == "oc_id"]


def test_the_script_is_small_and_made_from_its_source() -> None:
    source, served = STATIC / "onecount.js", STATIC / "onecount.min.js"
    made = subprocess.run(
        [sys.executable, "-m", "rjsmin"], input=source.read_bytes(), capture_output=True, check=True, timeout=30
    )
    assert made.stdout == served.read_bytes(), "run: python -m rjsmin < onecount.js > onecount.min.js"
    assert len(made.stdout) < MAX_SCRIPT_BYTES


@pytest.mark.timeout(120)
def test_from_landing_to_the_count_and_the_server_tells_of_it_too(
    site: Site, page: Page, context: BrowserContext
) -> None:
    page.goto(f"{site.url}/?gclid=G-1&utm_campaign=spring&utm_content=a7&utm_source=google&utm_medium=cpc")
    first = site.events(2, lambda event: event.get("click_id") == "G-1" or event.get("page") == "/")
    page.reload()  # the same click once more
    page.click("#next")
    page.wait_for_function("() => typeof onecount === 'function' && !onecount.q")
    order = {"conversion_name": "purchase", "value": 99.5, "currency": "EUR", "event_id": "order-1"}
    page.evaluate("order => onecount('conversion', order)", order)
    (bought,) = site.events(1, lambda event: event["event_id"] == "order-1")
    (cookie,) = cookies(context)
    assert (cookie["value"], cookie["domain"]) == (bought["user_id"], ".shop.localhost")
    assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (True, True, "Lax")
    click, visit = first[0], first[1]
    assert (click["event_type"], click["platform"], click["campaign_id"]) == ("click", "google_ads", "spring")
    assert (click["ad_id"], click["source"], click["medium"], click["landing_page"]) == ("a7", "google", "cpc", "/")
    assert (visit["event_type"], visit["page"]) == ("visit", "/")
    assert click["event_time"] < visit["event_time"] < bought["event_time"]
    assert bought["reported_by"] == "browser"
    # the shop's server has the cookie too, and tells of the order with and without the platform, later and with another time
    for platform in ({}, {"platform": "google_ads"}):
        told = conversion("order-1", value=119.4, currency="EUR", order_id="o-1", **platform)
        assert site.gateway.post(told | {"user_id": cookie["value"]}).status_code == 202
    marker = conversion("marker", user_id=cookie["value"], platform="google_ads")  # counted after all of these
    assert site.gateway.post(marker).status_code == 202
    site.rows(1, "marker")
    (row,) = site.rows(1, "order-1")
    assert (row["platform"], row["status"], row["conversions"], row["value"]) == ("google_ads", "counted", 1, 99.5)
    assert (row["campaign_id"], row["ad_id"]) == ("spring", "a7")
    assert (row["order_id"], row["currency"]) == ("o-1", "EUR"), "what the page left out is the server's"
    assert row["event_time"] == bought["event_time"], "the browser's report is the first one"


@pytest.mark.timeout(120)
def test_what_is_sent_while_the_page_is_left_arrives_and_once_is_once(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/?fbclid={'F' * 200}")
    page.wait_for_function("() => typeof onecount === 'function' && !onecount.q")
    page.evaluate(
        "() => { onecount('conversion', {conversion_name: 'signup', event_id: 'left-1'}); location.href = '/next.html' }"
    )
    # sent twice or not, as whoever leaves gets no answer: it is one event of one user
    click, *again = site.events(1, lambda event: event.get("click_id") == "F" * 200)
    assert (click["platform"], click["campaign_id"], len(click["event_id"])) == ("meta", "unknown", 128)
    assert {(event["event_id"], event["user_id"]) for event in again} <= {(click["event_id"], click["user_id"])}
    signup = site.events(1, lambda event: event["event_id"] == "left-1")
    assert {event["user_id"] for event in signup} == {click["user_id"]}, "sent twice or not, the user is the same"
    (row,) = site.rows(1, "left-1")
    assert (row["platform"], row["conversions"]) == ("meta", 1)


@pytest.mark.timeout(120)
def test_of_two_click_ids_the_last_one_is_that_of_the_click_and_of_none_the_campaign(site: Site, page: Page) -> None:
    page.goto(f"{site.url}/?gclid=stale&utm_campaign=c&fbclid=fresh")
    (click,) = site.events(1, lambda event: event.get("click_id") in ("stale", "fresh"))
    assert (click["platform"], click["event_id"]) == ("meta", "fresh")
    page.goto(f"{site.url}/?utm_campaign=newsletter-1&utm_source=mail")
    (click,) = site.events(1, lambda event: event.get("campaign_id") == "newsletter-1")
    assert (click["platform"], click["source"]) == ("default", "mail")


@pytest.mark.timeout(120)
def test_nothing_is_sent_before_consent_and_nobody_is_remembered_without(
    site: Site, page: Page, context: BrowserContext
) -> None:
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url) if "/v1/browser" in request.url else None)
    page.goto(f"{site.url}/asks.html?ttclid=T-1")
    page.wait_for_function("() => typeof onecount === 'function' && !onecount.q")
    page.wait_for_timeout(300)
    assert requests == []
    page.evaluate("() => onecount('consent', 'denied')")
    (click,) = site.events(1, lambda event: event.get("platform") == "tiktok")
    assert click["user_id"].startswith("once-")
    assert "T-1" not in click.values()
    assert cookies(context) == []
    assert page.evaluate("() => [Object.keys(sessionStorage), document.cookie]") == [[], ""]
    page.evaluate("() => onecount('consent', 'granted')")
    page.evaluate("() => onecount('visit', {page: '/granted'})")
    (seen,) = site.events(1, lambda event: event.get("page") == "/granted")
    assert [cookie["value"] for cookie in cookies(context)] == [seen["user_id"]]


@pytest.mark.timeout(120)
def test_global_privacy_control_is_a_no(site: Site, browser: Browser) -> None:
    context = browser.new_context(extra_http_headers={"Sec-GPC": "1"})
    context.add_init_script("Object.defineProperty(navigator, 'globalPrivacyControl', {value: true})")
    page = context.new_page()
    page.goto(f"{site.url}/?msclkid=M-1")
    (click,) = site.events(1, lambda event: event.get("platform") == "microsoft_ads")
    assert click["user_id"].startswith("once-")
    assert "M-1" not in click.values()
    assert cookies(context) == []
    assert page.evaluate("() => Object.keys(sessionStorage)") == []
    context.close()
