"""Why an event is refused: the closed list that the dead-letter topic, the metrics and the runbook share."""

from typing import Final, NamedTuple

# The bytes are no event at all.
NULL_RECORD: Final = "null_record"
EMPTY: Final = "empty"
TOO_LARGE: Final = "too_large"
INVALID_UTF8: Final = "invalid_utf8"
INVALID_JSON: Final = "invalid_json"
TOO_DEEP: Final = "too_deep"
NOT_AN_OBJECT: Final = "not_an_object"
DUPLICATE_KEY: Final = "duplicate_key"
# It is written by a schema of a registry, and that does not help.
UNKNOWN_SCHEMA: Final = "unknown_schema"
UNDECODABLE: Final = "undecodable"
# A field breaks its rule.
MISSING_FIELD: Final = "missing_field"
INVALID_FIELD: Final = "invalid_field"
INVALID_TIME: Final = "invalid_time"
UNKNOWN_EVENT_TYPE: Final = "unknown_event_type"
UNKNOWN_PLATFORM: Final = "unknown_platform"
KEY_MISMATCH: Final = "key_mismatch"
# The event is sound, its time is not: the first two against the record's Kafka timestamp, the third against the
# partition's stream time.
TOO_OLD: Final = "too_old"
IN_THE_FUTURE: Final = "in_the_future"
BEYOND_CORRECTION_HORIZON: Final = "beyond_correction_horizon"
# The event names no user, and the matcher knows none either.
CLICK_NOT_FOUND: Final = "click_not_found"
# An accepted adjustment that settlement refuses.
ADJUSTMENT_TWICE: Final = "adjustment_twice"
ADJUSTMENT_TOO_OLD: Final = "adjustment_too_old"
ADJUSTMENT_PRECEDES_CONVERSION: Final = "adjustment_precedes_conversion"
ADJUSTMENT_IN_ANOTHER_CURRENCY: Final = "adjustment_in_another_currency"

EVENT_REASONS: Final = (
    NULL_RECORD,
    EMPTY,
    TOO_LARGE,
    INVALID_UTF8,
    INVALID_JSON,
    TOO_DEEP,
    NOT_AN_OBJECT,
    DUPLICATE_KEY,
    UNKNOWN_SCHEMA,
    UNDECODABLE,
    MISSING_FIELD,
    INVALID_FIELD,
    INVALID_TIME,
    UNKNOWN_EVENT_TYPE,
    UNKNOWN_PLATFORM,
    KEY_MISMATCH,
    TOO_OLD,
    IN_THE_FUTURE,
    BEYOND_CORRECTION_HORIZON,
)
SCHEMA_REASONS: Final = (UNKNOWN_SCHEMA, UNDECODABLE)  # of the event reasons those that no JSON can cause
ADJUSTMENT_REASONS: Final = (
    ADJUSTMENT_TWICE,
    ADJUSTMENT_TOO_OLD,
    ADJUSTMENT_PRECEDES_CONVERSION,
    ADJUSTMENT_IN_ANOTHER_CURRENCY,
)
ALL_REASONS: Final = (*EVENT_REASONS, CLICK_NOT_FOUND, *ADJUSTMENT_REASONS)


class Explanation(NamedTuple):
    """What a reason means, what mends it at its source, and whether the same bytes can be sent again (`onecount dlq retry`)."""

    means: str
    remedy: str
    retry: str


# The verdicts that rest on what else was counted. To send the event again changes none of them.
SETTLED: Final = frozenset((BEYOND_CORRECTION_HORIZON, *ADJUSTMENT_REASONS))

_SAME_BYTES: Final = "no: the same bytes are refused again, except by a newer release that takes them"
_VERDICT: Final = "no: the adjustment is remembered, and its verdict follows later events by itself"
EXPLAINED: Final = {
    NULL_RECORD: Explanation(
        "the record has no value", "an event is a JSON object: find who writes null values to a raw topic", _SAME_BYTES
    ),
    EMPTY: Explanation("the value has no bytes", "find who writes empty records to a raw topic", _SAME_BYTES),
    TOO_LARGE: Explanation(
        "the event is larger than 256 KiB", "leave out of the event what nobody counts", _SAME_BYTES
    ),
    INVALID_UTF8: Explanation(
        "the bytes are no UTF-8", "encode the event as UTF-8, without a byte order mark", _SAME_BYTES
    ),
    INVALID_JSON: Explanation(
        "the text is no JSON", "write the event by a JSON library; numbers must be finite", _SAME_BYTES
    ),
    TOO_DEEP: Explanation("arrays or objects nest deeper than 64 levels", "flatten the event", _SAME_BYTES),
    NOT_AN_OBJECT: Explanation("the JSON is no object", "one event a record, as {...}", _SAME_BYTES),
    DUPLICATE_KEY: Explanation(
        "a key stands twice, so nobody knows which value is meant", "write each key once", _SAME_BYTES
    ),
    UNKNOWN_SCHEMA: Explanation(
        "the schema registry does not have the schema that the record names",
        "register the schema before the first event of it is sent, in the registry that ONECOUNT_SCHEMA_REGISTRY names",
        "yes, once the registry has the schema, within dedup_window of the record; later a recount would take record and retry for two",
    ),
    UNDECODABLE: Explanation(
        "the bytes are no event of the schema that the record names",
        "write by the schema whose id is sent; docs/formats.md says what a schema must have",
        _SAME_BYTES,
    ),
    MISSING_FIELD: Explanation(
        "a field that this type of event needs is not there", "send it: docs/contract/event.schema.json", _SAME_BYTES
    ),
    INVALID_FIELD: Explanation(
        "a field breaks its rule (type, length, range)", "mend it: docs/contract/event.schema.json", _SAME_BYTES
    ),
    INVALID_TIME: Explanation(
        "event_time is neither epoch milliseconds nor RFC 3339 with a zone", "send one of the two", _SAME_BYTES
    ),
    UNKNOWN_EVENT_TYPE: Explanation(
        "event_type is none of the contract's", "send one of the types of docs/contract/event.schema.json", _SAME_BYTES
    ),
    UNKNOWN_PLATFORM: Explanation(
        "no version of the policy that holds at the record's Kafka timestamp, or held before, names the platform",
        "mend the producer's spelling, or give the platform its counting method in the policy",
        "yes, once a version that names the platform holds",
    ),
    KEY_MISMATCH: Explanation(
        "the record's key is not its user_id",
        "key each record by its user_id, or not at all",
        "yes: it is sent under its user_id. Only do so if that, and not the key, is whose event it is",
    ),
    TOO_OLD: Explanation(
        "event_time is longer before the record's Kafka timestamp than max_event_age",
        "stamp each record with its event's time (onecount import does), or send it sooner",
        "no: by now it is older still",
    ),
    IN_THE_FUTURE: Explanation(
        "event_time is further ahead of the record's Kafka timestamp than max_clock_skew",
        "set the producer's clock right; seconds, microseconds or local time for epoch milliseconds look the same",
        "yes, once its time has come. It counts at the event_time that it names: if that is wrong, send a right one instead",
    ),
    BEYOND_CORRECTION_HORIZON: Explanation(
        "event_time is further behind the newest event of its partition than correction_horizon",
        "send it within the horizon; history goes into new topics before newer events come",
        "no: the partition's time never goes back",
    ),
    CLICK_NOT_FOUND: Explanation(
        "a conversion or adjustment that names a click id and no user: no click with this id was accepted until park_for after its event_time",
        "see whether the click's producer sends click_id, with the same advertiser_id (and platform, if the conversion names one)",
        "yes, once its click is counted, as long as it is not older than max_event_age. Later send it anew with its user_id",
    ),
    ADJUSTMENT_TWICE: Explanation(
        "the order has an earlier adjustment of this kind, or was retracted before",
        "one retraction and one restatement an order: see why the source sends more",
        _VERDICT,
    ),
    ADJUSTMENT_TOO_OLD: Explanation(
        "the adjustment came later after its order than adjustment_window", "adjust within the window", _VERDICT
    ),
    ADJUSTMENT_PRECEDES_CONVERSION: Explanation(
        "the adjustment's event_time is before its order's", "send the time at which the order was adjusted", _VERDICT
    ),
    ADJUSTMENT_IN_ANOTHER_CURRENCY: Explanation(
        "a restatement names another currency than its order",
        "restate in the order's currency: onecount converts nothing",
        _VERDICT,
    ),
}
