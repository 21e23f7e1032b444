"""Why an event is refused: the closed list that the dead-letter topic, the metrics and the runbook share."""

from typing import Final

# The bytes are no event at all.
NULL_RECORD: Final = "null_record"
EMPTY: Final = "empty"
TOO_LARGE: Final = "too_large"
INVALID_UTF8: Final = "invalid_utf8"
INVALID_JSON: Final = "invalid_json"
TOO_DEEP: Final = "too_deep"
NOT_AN_OBJECT: Final = "not_an_object"
DUPLICATE_KEY: Final = "duplicate_key"
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
# An accepted adjustment that settlement refuses.
ADJUSTMENT_TWICE: Final = "adjustment_twice"
ADJUSTMENT_TOO_OLD: Final = "adjustment_too_old"
ADJUSTMENT_PRECEDES_CONVERSION: Final = "adjustment_precedes_conversion"

EVENT_REASONS: Final = (
    NULL_RECORD,
    EMPTY,
    TOO_LARGE,
    INVALID_UTF8,
    INVALID_JSON,
    TOO_DEEP,
    NOT_AN_OBJECT,
    DUPLICATE_KEY,
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
ADJUSTMENT_REASONS: Final = (ADJUSTMENT_TWICE, ADJUSTMENT_TOO_OLD, ADJUSTMENT_PRECEDES_CONVERSION)
ALL_REASONS: Final = EVENT_REASONS + ADJUSTMENT_REASONS
