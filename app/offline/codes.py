"""The reasons of an import's report, and what Google Ads and Meta say in the same case.

Google's codes are those of its API (ConversionUploadError, ConversionAdjustmentUploadError, DateError, FieldError and so on:
https://developers.google.com/google-ads/api/reference/rpc/latest/ConversionUploadErrorEnum.ConversionUploadError). Meta
documents no codes by row: an invalid row is error 100, one that is too old 2804003, and what it finds twice it drops without
a word (https://developers.facebook.com/documentation/ads-commerce/conversions-api/offline-events).
"""

import sys
from pathlib import Path
from typing import Final, NamedTuple

from app.contract import reasons
from app.importer.prepare import NO_USER_ID, UNKNOWN_ACTION

# What became of a row. Of a row that several platforms judge, the first of these that one of them says.
COUNTED: Final = "counted"
APPLIED: Final = "applied"  # an adjustment
UNCOUNTED: Final = "uncounted"
DUPLICATE: Final = "duplicate"
RETRACTED: Final = "retracted"
UNATTRIBUTED: Final = "unattributed"
REFUSED: Final = "refused"  # by the counter: there is a dead letter
REJECTED: Final = "rejected"  # by the import: it was not sent
LEFT_OUT: Final = "left_out"  # by the mapping, on purpose
NOISE: Final = "noise"
SENT: Final = "sent"  # a touch or visit, which has no row of its own
READY: Final = "ready"  # a dry run's row that would be sent
UNKNOWN: Final = "unknown"  # nothing is known of it (yet)

ONE_PER_CLICK: Final = "one_per_click"
REPEATED: Final = "repeated_in_file"
REPEATED_ORDER: Final = "repeated_order_in_file"
REPEATED_ADJUSTMENT: Final = "repeated_adjustment_in_file"
DUPLICATE_ORDER: Final = "duplicate_order"
ADJUSTED: Final = "adjusted"
PRECEDES_CLICK: Final = "precedes_click"
EXPIRED_CLICK: Final = "expired_click"
CLICK_NOT_FOUND: Final = "click_not_found"
CLICK_NOT_CREDITED: Final = "click_not_credited"
NO_OUTCOME: Final = "no_outcome"
CONVERSION_NOT_FOUND: Final = "conversion_not_found"
NOT_SEEN: Final = "not_seen"


class Code(NamedTuple):
    """A reason in words, and the codes of the platforms; "" where one has none for it."""

    means: str
    google_ads: str = ""
    meta: str = ""


_INVALID: Final = "100 Invalid parameter"
_BAD_FILE: Final = Code("the row cannot be read: `detail` says what is wrong", "", _INVALID)
_BAD_FIELD: Final = Code(
    "a field breaks its rule: `field` and `detail` say which", "FieldError.INVALID_VALUE", _INVALID
)

CODES: Final[dict[str, Code]] = {
    # the counter's word
    ONE_PER_CLICK: Code("the action counts one a touch, and an earlier conversion has it: no error"),
    DUPLICATE_ORDER: Code(
        "another report of an order that was counted before", "ORDER_ID_ALREADY_IN_USE", "dropped as duplicate"
    ),
    REPEATED: Code(
        "an earlier row is the same conversion", "DUPLICATE_CLICK_CONVERSION_IN_REQUEST", "dropped as duplicate"
    ),
    REPEATED_ORDER: Code("an earlier row is of the same order", "DUPLICATE_ORDER_ID", "dropped as duplicate"),
    REPEATED_ADJUSTMENT: Code("an earlier row is the same adjustment", "DUPLICATE_ADJUSTMENT_IN_REQUEST"),
    ADJUSTED: Code("an adjustment has retracted it", "", ""),
    PRECEDES_CLICK: Code("the click is not before the conversion", "CONVERSION_PRECEDES_EVENT", ""),
    EXPIRED_CLICK: Code("the click is longer ago than the platform's window", "EXPIRED_EVENT", ""),
    CLICK_NOT_FOUND: Code("no click with this id, or of this user, was found", "EVENT_NOT_FOUND", ""),
    CLICK_NOT_CREDITED: Code(
        "a click within the window lies in the raw topic, but was refused or is another user's", "EVENT_NOT_FOUND", ""
    ),
    NO_OUTCOME: Code(
        "the action names no business outcome in the policy, so it is in no count", "INVALID_CONVERSION_ACTION_TYPE", ""
    ),
    CONVERSION_NOT_FOUND: Code(
        "an adjustment that names no order known so far: it waits for one", "CONVERSION_NOT_FOUND", ""
    ),
    NOT_SEEN: Code("sent, and neither a row nor a dead letter of it is there (yet)"),
    # the import's
    UNKNOWN_ACTION: Code("no action of the policy", "NO_CONVERSION_ACTION_FOUND", ""),
    NO_USER_ID: Code("a click id and no user", "", ""),
    "no_identifier": Code(
        "neither a click id nor a user; an adjustment: no conversion", "FieldError.REQUIRED", _INVALID
    ),
    "unparseable_click_id": Code("the click id cannot be one", "UNPARSEABLE_GCLID", _INVALID),
    "damaged_id": Code(
        "a spreadsheet program changed the order's or the user's id: format the column as text",
        "FieldError.INVALID_VALUE",
        _INVALID,
    ),
    "unknown_adjustment": Code(
        "an adjustment that is neither a retraction nor a restatement", "FieldError.INVALID_VALUE", ""
    ),
    "unreadable_time": Code(
        "the time is in none of the mapping's formats",
        "DateError.INVALID_STRING_DATE_TIME_SECONDS_WITH_OFFSET",
        _INVALID,
    ),
    "time_without_zone": Code(
        "the time has no zone, and nothing says the file's",
        "DateError.INVALID_STRING_DATE_TIME_SECONDS_WITH_OFFSET",
        "",
    ),
    "unreadable_number": Code(
        "the value is no number: 1234.50, without a currency's sign or thousands", "FieldError.INVALID_VALUE", _INVALID
    ),
    "unreadable_url": _BAD_FILE,
    "unreadable_json": _BAD_FILE,
    "unreadable_row": _BAD_FILE,
    "wrong_column_count": _BAD_FILE,
    "not_an_object": _BAD_FILE,
    "no_rule": Code("no rule of the mapping holds for the row"),
    "unencodable": _BAD_FILE,
    # the contract's, in an import or as a dead letter
    reasons.MISSING_FIELD: Code("a field is empty that must not be", "FieldError.REQUIRED", _INVALID),
    reasons.INVALID_FIELD: _BAD_FIELD,
    reasons.INVALID_TIME: Code("no time", "DateError.INVALID_STRING_DATE_TIME_SECONDS_WITH_OFFSET", _INVALID),
    reasons.UNKNOWN_PLATFORM: Code("the policy has no counting method for the platform"),
    reasons.UNKNOWN_EVENT_TYPE: _BAD_FIELD,
    reasons.TOO_LARGE: _BAD_FILE,
    reasons.TOO_OLD: Code(
        "older than max_event_age when it was sent", "EXPIRED_EVENT", "2804003 Event Timestamp Too Old"
    ),
    reasons.IN_THE_FUTURE: Code("of the future", "DateError.LATER_THAN_MAXIMUM_DATE", _INVALID),
    reasons.BEYOND_CORRECTION_HORIZON: Code(
        "older than what has been counted, by more than correction_horizon",
        "EXPIRED_EVENT",
        "2804003 Event Timestamp Too Old",
    ),
    # Google takes several restatements of an order and refuses only one of the same time, so it has no word for this
    reasons.ADJUSTMENT_TWICE: Code("the order was restated before, or retracted: it is adjusted once of each kind"),
    reasons.ADJUSTMENT_TOO_OLD: Code("longer after its order than adjustment_window", "CONVERSION_EXPIRED", ""),
    reasons.ADJUSTMENT_PRECEDES_CONVERSION: Code("before its order", "ADJUSTMENT_PRECEDES_CONVERSION", ""),
    # Google converts
    reasons.ADJUSTMENT_IN_ANOTHER_CURRENCY: Code("a restatement in another currency than its order's"),
}


def platform_code(platform: str | None, reason: str) -> str:
    """What the platform (google_ads, meta; None: none) calls a reason; "" where it has no word for it."""
    code = CODES.get(reason)
    return "" if code is None or platform is None else getattr(code, platform)


def table() -> str:
    """The reasons as a Markdown table, for docs/offline.md: `python -m app.offline.codes docs/offline.md` puts it there."""
    lines = ["| reason | meaning | Google Ads | Meta |", "| --- | --- | --- | --- |"]
    for reason, code in CODES.items():
        google, meta = (f"`{each}`" if each else "" for each in (code.google_ads, code.meta))
        lines.append(f"| `{reason}` | {code.means} | {google} | {meta} |")
    return "\n".join(lines)


def with_table(page: str) -> str:
    """The page with its table made anew."""
    begin, end = "<!-- table: reasons -->\n", "<!-- end -->"
    before, _, rest = page.partition(begin)
    return f"{before}{begin}{table()}\n{end}{rest.partition(end)[2]}"


if __name__ == "__main__":
    place = Path(sys.argv[1])
    place.write_text(with_table(place.read_text()))
