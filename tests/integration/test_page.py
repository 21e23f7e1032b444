"""`onecount serve` in a real browser (Debian's chromium), over a real Kafka and real workers."""

import json
import os
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from confluent_kafka import OFFSET_BEGINNING, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from playwright.sync_api import Browser, Page

from app.contract import rows
from app.engine.clients import KafkaClients
from app.engine.topics import create_topics
from app.local import local_kafka
from app.policy.load import load_policy
from tests.chromium import chromium
from tests.conftest import Services
from tests.integration.deployment import Deployment, deployed

LOADS_WITHIN_MS = 1_000
SHOWS_WITHIN_MS = 2_000
WAIT_MS = 20_000
WINDOW_MS = int(time.time()) // 60 * 60_000  # of the rows that a test publishes itself
ADS = {"advertiser_id": "shop", "platform": "meta", "campaign_id": "spring", "ad_id": "a7"}
# Tells of every change of a number with the time of it, so that nothing of the browser's own polling is in the measurement.
OBSERVE = """id => {
  window.seen = [];
  new MutationObserver(() => window.seen.push([document.getElementById(id).textContent, Date.now()]))
    .observe(document.getElementById(id), {childList: true, characterData: true, subtree: true});
}"""


class Served:
    """A deployment with workers, and its page."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        deployment.start("counter")
        deployment.start("aggregator")
        _, self.url = deployment.serve()

    def send(self, **event: Any) -> None:
        """One event, as a producer outside would send it."""
        producer = Producer({"bootstrap.servers": self.deployment.settings.bootstrap, "partitioner": "murmur2_random"})
        value = {"event_time": time.time_ns() // 1_000_000, **event}
        producer.produce(self.deployment.settings.events_topics[0], json.dumps(value), value["user_id"])
        assert producer.flush(10) == 0

    def published_ms(self, clicks: int) -> int:
        """When the row was published in which the clicks of the page came to be so many, by the broker's clock."""
        consumer = KafkaClients(self.deployment.settings).reader()
        try:
            topic = self.deployment.settings.counts_topic
            consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(4)])
            found: list[tuple[int, bytes, int]] = []
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                found += [
                    (message.timestamp()[1], message.key(), json.loads(message.value())["clicks"])
                    for message in consumer.consume(1_000, 0.2)
                    if message.error() is None
                ]
                latest: dict[bytes, int] = {}
                for at_ms, key, count in sorted(found, key=itemgetter(0)):  # partitions come in any order
                    latest[key] = count
                    if sum(latest.values()) == clicks:
                        return at_ms
            raise AssertionError(f"no {clicks} clicks were published: {found}")
        finally:
            consumer.close()


@pytest.fixture(scope="module")
def served(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    name = f"test-page-{os.getpid()}"
    with deployed(services.bootstrap, services.redis_url, name, tmp_path_factory.mktemp("page")) as deployment:
        yield Served(deployment)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that has complained of nothing at the end."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    complaints: list[str] = []
    opened.on(
        "console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None
    )
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    foreign: list[str] = []
    opened.on("request", lambda request: foreign.append(request.url) if "127.0.0.1" not in request.url else None)
    yield opened
    context.close()
    assert complaints == []
    assert foreign == []


def shows(page: Page, id_: str, text: str) -> None:
    """Waits until an element says just this."""
    page.wait_for_function(
        "([id, text]) => document.getElementById(id).textContent === text", arg=[id_, text], timeout=WAIT_MS
    )


@pytest.mark.timeout(180)
def test_the_page_is_there_at_once_and_shows_what_is_counted_within_two_seconds(served: Served, page: Page) -> None:
    begun = time.monotonic()
    page.goto(served.url)
    page.wait_for_function("() => document.getElementById('conversions').textContent === '0'")
    assert (time.monotonic() - begun) * 1000 < LOADS_WITHIN_MS
    shows(page, "status-text", "Nothing counted yet")
    assert "onecount generate" in page.inner_text("#notice")
    page.evaluate(OBSERVE, "clicks")
    delays = []
    for clicks in (1, 2, 3):
        served.send(event_id=f"click{clicks}", event_type="click", user_id="ada@example.com", **ADS)
        shows(page, "clicks", str(clicks))
        seen_ms = next(at for text, at in page.evaluate("window.seen") if text == str(clicks))
        delays.append(seen_ms - served.published_ms(clicks))
    assert max(delays) < SHOWS_WITHIN_MS, delays
    shows(page, "status-text", "Live")


@pytest.mark.timeout(180)
def test_conversions_corrections_and_refused_events_are_shown_and_no_user(served: Served, page: Page) -> None:
    page.goto(served.url)
    now_ms = time.time_ns() // 1_000_000
    order = {"conversion_name": "purchase", "order_id": "order-77", "currency": "EUR", "advertiser_id": "shop"}
    served.send(event_id="seen", event_type="click", user_id="bob@example.com", event_time=now_ms - 5_000, **ADS)
    served.send(
        event_id="c1", event_type="conversion", user_id="bob@example.com", platform="meta", value=1234.5, **order
    )
    shows(page, "conversions", "1")
    shows(page, "value", "EUR\xa01,234.50")
    assert "purchase" in page.inner_text("#actions")
    restated = {"event_type": "adjustment", "adjustment": "restate", "order_id": "order-77", "value": 1000.0}
    served.send(event_id="r1", user_id="bob@example.com", advertiser_id="shop", **restated)
    page.wait_for_selector("#corrections .change", timeout=WAIT_MS)
    change = page.inner_text("#corrections").replace("\xa0", " ")
    assert "EUR 1,234.50 → EUR 1,000.00" in change
    shows(page, "value", "EUR\xa01,000.00")
    served.send(event_id="x", event_type="nonsense", user_id="eve@example.com", advertiser_id="shop")
    page.wait_for_function(
        "() => document.getElementById('refused').textContent.includes('Unknown event type')", timeout=WAIT_MS
    )
    text = page.content()
    assert not any(secret in text for secret in ("example.com", "order-77"))


@pytest.mark.timeout(180)
def test_what_platforms_claim_stands_beside_what_there_was(served: Served, page: Page) -> None:
    page.goto(served.url)
    now_ms = time.time_ns() // 1_000_000
    order = {"conversion_name": "purchase", "order_id": "order-78", "currency": "CHF", "advertiser_id": "other"}
    for at, platform in enumerate(("meta", "google_ads")):
        ad = {
            "advertiser_id": "other",
            "platform": platform,
            "campaign_id": "spring",
            "event_time": now_ms - 9_000 + at,
        }
        served.send(event_id=f"on-{platform}", event_type="click", user_id="joe@example.com", **ad)
        report = {"event_type": "conversion", "value": 40.0, "event_time": now_ms, **order}
        served.send(event_id=f"by-{platform}", user_id="joe@example.com", platform=platform, **report)
    page.wait_for_selector("option[value=other]", state="attached", timeout=WAIT_MS)
    page.select_option("select[name=advertiser]", "other")
    shows(page, "conversions", "2")
    shows(page, "value", "CHF\xa080.00")
    shows(page, "conversions-once", "1 each counted once")
    shows(page, "value-once", "CHF\xa040.00 each once")
    assert "claimed by platforms" in page.inner_text("#conversions-more")
    said = " ".join(page.inner_text("#actions").split())
    assert said.endswith("Action Claimed Each once CHF claimed CHF once purchase 2 1 80.00 40.00")
    assert "all" not in page.eval_on_selector_all(
        "select[name=platform] option", "all => all.map((each) => each.value)"
    )
    page.select_option("select[name=platform]", "meta")  # nothing is counted once over one platform
    shows(page, "conversions", "1")
    assert page.is_hidden("#conversions-once")
    assert " ".join(page.inner_text("#actions").split()).endswith("Action Conversions Value CHF purchase 1 40.00")


@pytest.mark.timeout(180)
def test_the_page_can_be_walked_by_keyboard_and_remembers_what_was_chosen(served: Served, page: Page) -> None:
    page.goto(served.url)
    page.wait_for_selector("#campaigns tbody th", timeout=WAIT_MS)
    walked = []
    for _ in range(40):
        page.keyboard.press("Tab")
        focus = page.evaluate("""() => {
          const e = document.activeElement, style = getComputedStyle(e.matches('.choice input') ? e.nextElementSibling : e);
          return {what: e.name || e.id || e.getAttribute('aria-label') || e.tagName, ring: style.outlineStyle};
        }""")
        if focus["what"] == "BODY":
            break
        assert focus["ring"] != "none", focus
        walked.append(focus["what"])
    for stop in ("span", "platform", "measure", "Conversions over time", "corrections"):
        assert stop in walked, walked
    assert walked[0] == "A"  # the link that skips the bar
    page.focus("[role=slider]")
    page.keyboard.press("Home")
    first = page.get_attribute("[role=slider]", "aria-valuetext")
    page.keyboard.press("End")
    last = page.get_attribute("[role=slider]", "aria-valuetext")
    assert first != last
    assert last is not None
    assert last in page.inner_text("#readout")
    page.focus("input[name=span][value=hour]")
    page.keyboard.press("ArrowRight")
    shows(page, "title", "What counted in the last 24 hours")
    page.select_option("select[name=platform]", "meta")
    assert page.url.endswith("?span=day&platform=meta")
    page.reload()
    shows(page, "title", "What counted in the last 24 hours")
    page.wait_for_function("() => document.querySelector('select[name=platform]').value === 'meta'", timeout=WAIT_MS)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_object_to(served: Served, page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(served.url)
    page.wait_for_selector("#campaigns tbody th", timeout=WAIT_MS)
    page.click("#chart-details summary")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(244, 246, 249)", "dark": "rgb(13, 17, 24)"}[scheme]
    # axe is put into the page past its Content-Security-Policy, by the browser's own debugging protocol
    found = Axe().run(
        page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    )
    assert found.violations_count == 0, found.generate_report()
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_an_outage_of_kafka_is_told_with_the_last_figures_and_ends_by_itself_and_so_does_a_reset(
    topic_prefix: str, tmp_path: Path, page: Page
) -> None:
    with local_kafka() as kafka, deployed(kafka.bootstrap, "redis://unused", topic_prefix, tmp_path) as deployment:
        publish(deployment, clicks=1234)
        process, url = deployment.serve()
        page.goto(url)
        shows(page, "clicks", "1,234")
        kafka.kill()
        shows(page, "status-text", "No answer from Kafka")
        assert "No answer from Kafka since" in page.inner_text("#notice")
        assert page.inner_text("#clicks") == "1,234"
        kafka.start()
        publish(deployment, clicks=1235, revision=2)
        shows(page, "clicks", "1,235")
        shows(page, "status-text", "Live")
        remake(deployment)
        publish(deployment, clicks=7)
        shows(page, "clicks", "7")
        page.goto("about:blank")
        process.terminate()
        assert process.wait(15) == 0
        said = [json.loads(line)["event"] for line in deployment.logs().splitlines() if line.startswith("{")]
        assert said == ["page", "no answer from Kafka", "Kafka answers again", "stopped"]


def publish(deployment: Deployment, clicks: int, revision: int = 1) -> None:
    """A row of counts, as an aggregator would publish it."""
    names = (WINDOW_MS, WINDOW_MS + 60_000, "meta", "shop", {"campaign_id": "spring"}, "", "")
    row = rows.CountRow(*names, 0, 0, clicks, 0, 0.0, 0.0, revision, False)
    producer = Producer({"bootstrap.servers": deployment.settings.bootstrap})
    producer.produce(deployment.settings.counts_topic, rows.encode(row), b"the only key")
    assert producer.flush(20) == 0


def remake(deployment: Deployment) -> None:
    """Deletes the topics of counts and makes them anew, as `onecount reset` does."""
    admin = AdminClient({"bootstrap.servers": deployment.settings.bootstrap})
    admin.delete_topics([deployment.settings.counts_topic], operation_timeout=20)[
        deployment.settings.counts_topic
    ].result()
    policy = load_policy(deployment.settings.policy)[0]
    deployment.wait_until(lambda: create_topics(deployment.settings, policy), "the topic is made anew")


@pytest.mark.timeout(120)
def test_a_browser_that_takes_nothing_does_not_hold_the_others_up_and_sigterm_ends_all(
    served: Served, page: Page
) -> None:
    process, url = served.deployment.serve()
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    sleepers = [socket.create_connection((host, int(port))) for _ in range(20)]
    for sleeper in sleepers:
        sleeper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sleeper.sendall(b"GET /events/hour HTTP/1.1\r\nHost: localhost\r\n\r\n")
    page.goto(url)
    shows(page, "status-text", "Live")
    process.send_signal(signal.SIGTERM)
    shows(page, "status-text", "No connection")
    page.goto("about:blank")  # before the browser tries again, and complains
    assert process.wait(15) == 0
    for sleeper in sleepers:
        sleeper.close()


def test_a_port_that_is_taken_is_refused_in_one_line(served: Served) -> None:
    port = served.url.rstrip("/").rpartition(":")[2]
    found = served.deployment.onecount("serve", ONECOUNT_PAGE_PORT=port)
    assert found.returncode == 2
    assert "ONECOUNT_PAGE_PORT" in found.stderr
    assert "Traceback" not in found.stderr


def test_the_page_listens_on_this_machine_only_and_says_that_it_lives(served: Served) -> None:
    assert served.url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{served.url}live", timeout=5) as answer:
        assert answer.read() == b"live\n"
