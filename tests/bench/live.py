"""Produces events of W1's shape at a steady rate, each with the current time as its event_time.

    python -m tests.bench.live BOOTSTRAP TOPIC RATE SECONDS PROBE_EVERY

Every so many touches one is a *probe*: its campaign is `probe-<event time>-<number>`, so that it has a count row of its own,
which says when it was produced. Prints one JSON line at the end.
"""

import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Final

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
PROBE: Final = "probe-"


def main() -> None:
    """Produces as the arguments say."""
    bootstrap, topic, rate, seconds, probe_every = sys.argv[1:]
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "partitioner": "murmur2_random",
            "linger.ms": 1,
            "compression.type": "lz4",
            "enable.idempotence": True,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    stream = events(random.Random(1), int(probe_every))
    sent = {"events": 0, "conversions": 0, "probes": 0}
    begun = time.monotonic()
    while (elapsed := time.monotonic() - begun) < float(seconds):
        for _ in range(int(elapsed * float(rate)) - sent["events"]):
            kind, user, value = next(stream)
            producer.produce(topic, value, user)
            sent["events"] += 1
            if kind in sent:
                sent[kind] += 1
        producer.poll(0)
        time.sleep(TURN_S)
    left = producer.flush(30)
    print(json.dumps({**sent, "undelivered": left, "seconds": round(elapsed, 2)}))


def events(rnd: random.Random, probe_every: int) -> Iterator[tuple[str, bytes, bytes]]:
    """Yields what an event is (conversions, probes or touches), its key and its value; its time is the moment it is asked for."""
    recent: list[tuple[int, int]] = [(0, 0)] * RECENT
    touches = number = 0
    low, span = 20**0.1, (USERS + 20) ** 0.1 - 20**0.1  # users by a density of 1 / (rank + 20)^0.9, as in W1
    while True:
        number += 1
        kind = rnd.choices(KINDS, KIND_WEIGHTS)[0]
        user, ad = int((low + span * rnd.random()) ** 10) - 20, rnd.randrange(ADS)
        if kind == "conversion" and rnd.random() < 0.6:
            user, ad = recent[rnd.randrange(RECENT)]
        time_ms = time.time_ns() // 1_000_000
        campaign = ad // 10
        common = (
            f'{{"event_id":"l{number:09d}","event_type":"{kind}","event_time":{time_ms},"platform":"{PLATFORMS[campaign // 5 % 4]}",'
            f'"advertiser_id":"a{campaign // 20:02d}","user_id":"u{user:07d}"'
        )
        key = f"u{user:07d}".encode()
        if kind == "conversion":
            action = rnd.choices(ACTIONS, ACTION_WEIGHTS)[0]
            value = rnd.randrange(4, 801) / 4
            tail = f',"conversion_name":"{action}","value":{value},"currency":"USD","order_id":"o{number}"}}'
            yield "conversions", key, (common + tail).encode()
            continue
        touches += 1
        recent[touches % RECENT] = (user, ad)
        is_probe = touches % probe_every == 0
        name = f"{PROBE}{time_ms}-{number}" if is_probe else f"c{campaign:03d}"
        tail = f',"campaign_id":"{name}","ad_id":"ad{ad:04d}","landing_page":"/lp/{ad % 20}"}}'
        yield "probes" if is_probe else "touches", key, (common + tail).encode()


if __name__ == "__main__":
    main()
