"""The part of the catalogue that is the gateway's own."""

from typing import Final

from app.observe.metric import GATEWAYS, STEP_BUCKETS_S, Metric

GATEWAY: Final = (
    Metric(
        "onecount_gateway_events_total",
        "counter",
        ("door", "outcome"),
        "Events of requests, by address and outcome.",
        "`outcome`: `accepted` (Kafka has it), `rejected` (told to the sender), `unavailable` (to be sent again)",
        "`unavailable`: Kafka is slow or away; `rejected`: the next metric says why",
        GATEWAYS,
    ),
    Metric(
        "onecount_gateway_rejected_events_total",
        "counter",
        ("reason",),
        "Events rejected, by reason; pixels too.",
        "the reasons are those of dead letters, `not_allowed` and `personal_data`. Whoever sent a request was told; a page was not",
        "a jump: a sender or a page's tag changed; onecount.js shows the reasons in the browser's network log",
        GATEWAYS,
    ),
    Metric(
        "onecount_gateway_pixels_total",
        "counter",
        ("outcome",),
        "Pixels by outcome.",
        "`taken`, `rejected`, `limited` (beyond the advertiser's rate), `lost` (no room to wait for Kafka, too many requests at once, or no policy yet)",
        "`limited`: a higher `events_per_s` in the gateway's file, or somebody floods it; `lost`: as for lost pixels",
        GATEWAYS,
    ),
    Metric(
        "onecount_gateway_lost_pixels_total",
        "counter",
        (),
        "Pixels taken that Kafka did not take within 5 minutes.",
        "they are gone: nobody sends a pixel again",
        "see Kafka; a longer outage loses more",
        GATEWAYS,
    ),
    Metric(
        "onecount_gateway_refused_requests_total",
        "counter",
        ("status",),
        "Requests refused as a whole, by HTTP status.",
        "nothing of them was taken; docs/gateway.md has each status",
        "401, 403: a key or page that is not in the file; 429: beyond a rate; 503: Kafka, or no room",
        GATEWAYS,
    ),
    Metric(
        "onecount_gateway_kafka_seconds",
        "histogram",
        (),
        "How long Kafka took for a request's events.",
        "until all in-sync replicas had them; the rest of an answer's time is some milliseconds",
        "above a second: the brokers are slow, or replicas are out of sync",
        GATEWAYS,
        STEP_BUCKETS_S,
    ),
    Metric(
        "onecount_gateway_waiting_events",
        "gauge",
        ("way",),
        "Events that wait for Kafka.",
        "`answered`: a sender waits with them; `pixels`: nobody does. At most `ONECOUNT_GATEWAY_MAX_WAITING` of each",
        "growing: Kafka is slow or away; at the most events are answered by 503 and pixels are lost",
        GATEWAYS,
    ),
    Metric(
        "onecount_gateway_limiter_failures_total",
        "counter",
        (),
        "Looks at Redis for a rate that failed.",
        "without Redis rates let everything in, or nothing (`ONECOUNT_GATEWAY_LIMITER_FAILS`)",
        "Redis is away or slow, or the gateway's user lacks a right there",
        GATEWAYS,
    ),
)
