"""What ad platforms take: the columns of their upload files, their limits, and how a conversion is written there.

Google Ads: https://support.google.com/google-ads/answer/7014069 (conversions from clicks) and .../7686280 (adjustments).
Meta: https://developers.facebook.com/documentation/ads-commerce/gateway-products/conversions-api-gateway/upload-events.
"""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NamedTuple

from app.contract.events import from_micros

_HOUR_MS: Final = 3_600_000
_DAY_MS: Final = 24 * _HOUR_MS
_MAX_ORDER_ID: Final = 64  # Google's limit of a transaction id
_GBRAID: Final = "0AAAAA"  # how all gbraids of real logs begin, and no gclid


class Sale(NamedTuple):
    """A counted conversion as a feed has it. `action`: the platform's name of it; times in epoch ms, `value` in millionths."""

    action: str
    order_id: str
    time_ms: int
    value_micros: int
    currency: str | None
    touch_ms: int
    click_id: str
    user_id: str


class Change(NamedTuple):
    """What became of a conversion that was exported: its new value in millionths, None where it no longer counts."""

    action: str
    order_id: str
    changed_ms: int
    value_micros: int | None
    currency: str | None
    user_id: str


class Feed(NamedTuple):
    """A platform's files. `refuse` says why a conversion cannot be in them ("" if it can)."""

    conversions: tuple[str, ...]
    adjustments: tuple[str, ...] | None  # None: the platform takes none
    user_column: str
    preamble: tuple[str, ...]
    click_hold_ms: int  # it takes no conversion sooner after the click
    max_age_ms: int  # and none that is older
    adjustment_hold_ms: int
    adjustment_max_age_ms: int
    refuse: Callable[[Sale], str]
    write: Callable[[Sale, str], tuple[str, ...]]


def order_id_of(order_id: str | None, event_id: str) -> str:
    """By which the platform tells the conversion from others: its order, or without one its event; never too long."""
    name = order_id or event_id
    return name if len(name) <= _MAX_ORDER_ID else hashlib.sha256(name.encode()).hexdigest()[:32]


def _money(micros: int) -> str:
    """100, 99.5: without an exponent or a thousands' sign."""
    text = f"{from_micros(micros):.6f}".rstrip("0")
    return text.removesuffix(".")


def _second(time_ms: int, after_ms: int = -1) -> str:
    """The time in UTC, in whole seconds as the files have it; a second later where it would not be after a touch any more."""
    seconds = time_ms // 1000
    if seconds * 1000 <= after_ms:
        seconds += 1
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _refuse_google(sale: Sale) -> str:
    return "gbraid" if sale.click_id.startswith(_GBRAID) else ""


def _google(sale: Sale, _: str) -> tuple[str, ...]:
    when = _second(sale.time_ms, sale.touch_ms)
    return sale.click_id, sale.action, when, _money(sale.value_micros), sale.currency or "", sale.order_id


def adjustment_cells(change: Change) -> tuple[str, ...]:
    """A line of Google's file of adjustments."""
    head = change.order_id, change.action, _second(change.changed_ms)
    if change.value_micros is None:
        return *head, "RETRACT", "", ""
    return *head, "RESTATE", _money(change.value_micros), change.currency or ""


def _refuse_meta(sale: Sale) -> str:
    return "no_currency" if sale.value_micros and not sale.currency else ""  # Meta would take it for US dollars


def _meta(sale: Sale, data_set_id: str) -> tuple[str, ...]:
    is_fbc = sale.click_id.startswith("fb.")
    fbc = sale.click_id if is_fbc else f"fb.1.{sale.touch_ms}.{sale.click_id}"
    when = _second(sale.time_ms, sale.touch_ms)
    value = _money(sale.value_micros)
    return data_set_id, sale.action, when, "physical_store", value, sale.currency or "", sale.order_id, fbc


FEEDS: Final = {
    "google_ads": Feed(
        (
            "Google Click ID",
            "Conversion Name",
            "Conversion Time",
            "Conversion Value",
            "Conversion Currency",
            "Order ID",
        ),
        (
            "Order ID",
            "Conversion Name",
            "Adjustment Time",
            "Adjustment Type",
            "Adjusted Value",
            "Adjusted Value Currency",
        ),
        "User ID",
        ("Parameters:TimeZone=+0000",),
        6 * _HOUR_MS,  # TOO_RECENT_EVENT
        90 * _DAY_MS,  # the longest click-through window
        24 * _HOUR_MS,  # TOO_RECENT_CONVERSION
        54 * _DAY_MS,  # CONVERSION_EXPIRED
        _refuse_google,
        _google,
    ),
    "meta": Feed(
        ("DATA_SET_ID", "EVENT_NAME", "EVENT_TIME", "ACTION_SOURCE", "VALUE", "CURRENCY", "ORDER_ID", "CLICK_ID"),
        None,
        "EXTERNAL_ID",
        (),
        0,
        7 * _DAY_MS,  # one event that is older fails the whole request
        0,
        0,
        _refuse_meta,
        _meta,
    ),
}

# Why a conversion or a change of one is in no file, in words.
SKIPPED: Final = {
    "no_click_id": "the credited touch has no click id (a view, or a landing without one)",
    "touch_gone": "the raw topics no longer hold the credited touch, whose click id is needed",
    "gbraid": "the click id is a gbraid, for which Google's file of clicks has no column",
    "no_currency": "no currency, and Meta would take the value for US dollars",
    "too_recent": "held back: the platform takes no click of the last hours; it goes into a later run",
    "too_old": "older than the platform takes",
    "adjustment_too_recent": "held back: the platform adjusts nothing of the last day; it goes into a later run",
    "adjustment_too_old": "changed, but older than the platform adjusts",
    "no_adjustments": "changed, but the platform's files take no adjustments",
    "counted_again": "retracted there and counted again since: the platform takes no retracted conversion back",
}
