"""The metrics of events that name only a click, where the policy has `click_ids`."""

from typing import Final

from app.observe.metric import COUNTERS, MATCHERS, Metric

CLICKS: Final = (
    Metric(
        "onecount_userless_events_total",
        "counter",
        (),
        "Conversions and adjustments that name a click id and no user.",
        "handed to the matcher; they are counted once it has found their user",
        "a jump: a source lost its user ids",
        COUNTERS,
    ),
    Metric(
        "onecount_matched_events_total",
        "counter",
        (),
        "Events that found their user by their click id.",
        "sent to the user's owner, which counts them",
        "none while `onecount_userless_events_total` grows: see whether a matcher runs, and `onecount_state_records` of `waiting`",
        MATCHERS,
    ),
)
