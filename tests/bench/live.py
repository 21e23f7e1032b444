"""Produces events of W1's shape at a steady rate, each with the current time as its event_time.

    python -m tests.bench.live BOOTSTRAP TOPIC RATE SECONDS PROBE_EVERY

Every so many touches one is a *probe*: its campaign is `probe-<event time>-<number>`, so that it has a count row of its own,
which says when it was produced. Prints one JSON line at the end.

The producer shares the cores with what it measures, as no ad platform does, so it costs as little as it can: up to POOL events
are made before the first one is sent, and get their time, their ids and orders as they are sent; after POOL the same users and
ads come again.
"""

import gc
import json
import random
import sys
import time
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Final, NamedTuple

from confluent_kafka import Producer

PLATFORMS: Final = ("google_ads", "meta", "tiktok", "linkedin")
ACTIONS: Final = ("purchase", "signup", "demo_booked", "newsletter")
ACTION_WEIGHTS: Final = (40, 30, 10, 20)
KINDS: Final = ("view", "click", "conversion")
KIND_WEIGHTS: Final = (80, 17, 3)
USERS: Final = 200_000
ADS: Final = 10_000  # ten a campaign; an ad fixes its campaign, advertiser and platform
RECENT: Final = 10_000  # touches that a conversion may follow
TURN_S: Final = 0.005
POOL: Final = 1_000_000
PROBE: Final = "probe-"


class Shape(NamedTuple):
    """An event but for what is known only as it is sent: `text` takes %(n)d, its number, and %(ms)d, its time."""

    kind: str  # conversions, probes or touches
    user: bytes
    text: bytes

    def at(self, number: int, time_ms: int) -> dict[str, bytes]:
        """The record of the event at that time (epoch ms)."""
        return {"key": self.user, "value": self.text % {b"n": number, b"ms": time_ms}}


def main() -> None:
    """Produces as the arguments say."""
    bootstrap, topic = sys.argv[1:3]
    rate, seconds, probe_every = float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "partitioner": "murmur2_random",
            "linger.ms": 5,  # what Kafka's own producer has as its default
            "compression.type": "lz4",
            "enable.idempotence": True,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    pool = list(islice(shapes(random.Random(1), probe_every), min(POOL, int(rate * seconds) + 1)))
    gc.freeze()
    coming = cycle(pool)
    sent = {"events": 0, "conversions": 0, "probes": 0, "touches": 0}
    begun_ms, begun = time.time() * 1000, time.monotonic()
    while (elapsed := time.monotonic() - begun) < seconds:
        records, time_ms = [], time.time_ns() // 1_000_000
        for shape in islice(coming, int(elapsed * rate) - sent["events"]):
            sent["events"] += 1
            sent[shape.kind] += 1
            records.append(shape.at(sent["events"], time_ms))
        if producer.produce_batch(topic, records) != len(records):
            sys.exit("live: librdkafka's queue is full: the broker cannot take so many events")
        producer.poll(0)
        time.sleep(TURN_S)
    left = producer.flush(30)
    print(json.dumps({**sent, "undelivered": left, "begun_ms": begun_ms, "seconds": round(elapsed, 2)}))


def shapes(rnd: random.Random, probe_every: int) -> Iterator[Shape]:
    """Yields events of W1's kinds, users and ads, without an end."""
    recent: list[tuple[int, int]] = [(0, 0)] * RECENT
    touches = 0
    low, span = 20**0.1, (USERS + 20) ** 0.1 - 20**0.1  # users by a density of 1 / (rank + 20)^0.9, as in W1
    while True:
        kind = rnd.choices(KINDS, KIND_WEIGHTS)[0]
        user, ad = int((low + span * rnd.random()) ** 10) - 20, rnd.randrange(ADS)
        if kind == "conversion" and rnd.random() < 0.6:
            user, ad = recent[rnd.randrange(RECENT)]
        campaign = ad // 10
        common = (
            f'{{"event_id":"l%(n)09d","event_type":"{kind}","event_time":%(ms)d,"platform":"{PLATFORMS[campaign // 5 % 4]}",'
            f'"advertiser_id":"a{campaign // 20:02d}","user_id":"u{user:07d}"'
        )
        key = f"u{user:07d}".encode()
        if kind == "conversion":
            action = rnd.choices(ACTIONS, ACTION_WEIGHTS)[0]
            value = rnd.randrange(4, 801) / 4
            tail = f',"conversion_name":"{action}","value":{value},"currency":"USD","order_id":"o%(n)d"}}'
            yield Shape("conversions", key, (common + tail).encode())
            continue
        touches += 1
        recent[touches % RECENT] = (user, ad)
        is_probe = touches % probe_every == 0
        name = f"{PROBE}%(ms)d-%(n)d" if is_probe else f"c{campaign:03d}"
        tail = f',"campaign_id":"{name}","ad_id":"ad{ad:04d}","landing_page":"/lp/{ad % 20}"}}'
        yield Shape("probes" if is_probe else "touches", key, (common + tail).encode())


if __name__ == "__main__":
    main()
