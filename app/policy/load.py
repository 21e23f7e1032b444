"""Reads policy.yaml, and refuses an impossible one before anything starts."""

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any, Final
from zoneinfo import available_timezones

import jsonschema
import yaml

from app.contract.events import parse_time_ms, to_micros
from app.contract.rows import ALL
from app.policy.desk import CLOSED_KEPT_MS, Desk, FollowUp
from app.policy.model import (
    DAY_MS,
    MAX_LOOKBACK_MS,
    METHODS,
    Action,
    Bounds,
    ClickIds,
    Journeys,
    Platform,
    Policy,
    Version,
)

_UNITS_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": DAY_MS}
_DURATIONS: Final = (
    "window",
    "allowed_lateness",
    "idle_timeout",
    "correction_horizon",
    "max_event_age",
    "max_clock_skew",
    "dedup_window",
    "order_window",
    "adjustment_window",
)
MANY_ACTIONS: Final = 10
MAX_MERGE_MS: Final = DAY_MS // 24  # at most dedup_window, so that a cut log never hides a report alone


class PolicyError(Exception):
    """The policy cannot be used; the message says where and what to do."""


def duration_ms(text: str) -> int:
    """Milliseconds of a duration such as 200ms, 10s, 5m, 48h or 30d."""
    match = re.fullmatch(r"([0-9]+)(ms|s|m|h|d)", text)
    if match is None:
        raise PolicyError(f"{text!r} is no duration; write a whole number and its unit, such as 10s, 5m, 48h or 30d")
    return int(match.group(1)) * _UNITS_MS[match.group(2)]


def schema() -> dict[str, Any]:
    """The policy file's own JSON Schema."""
    return json.loads(resources.files("app.policy").joinpath("schema.json").read_text())


def load_policy(path: Path | str) -> tuple[Policy, int | None]:
    """The policy of a YAML file as its version 1, and the file's `effective_from` (epoch ms) if it has one.

    Raises `PolicyError` for a file that is missing, breaks the schema or asks for the impossible.
    """
    try:
        document = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise PolicyError(
            f"cannot read the policy {path}: {error.strerror}; set ONECOUNT_POLICY to its path"
        ) from error
    except yaml.YAMLError as error:
        raise PolicyError(f"{path} is not valid YAML: {error}") from error
    return parse_policy(document, str(path))


def parse_policy(document: object, name: str = "policy") -> tuple[Policy, int | None]:
    """As `load_policy`, of a document already read."""
    validator = jsonschema.Draft202012Validator(schema())
    problem = jsonschema.exceptions.best_match(validator.iter_errors(document))
    if problem is not None:
        where = "/".join(str(part) for part in problem.absolute_path) or "the top"
        raise PolicyError(f"{name}: at {where}: {problem.message}")
    assert isinstance(document, dict)
    bounds = _bounds(document)
    version = Version(
        number=1,
        effective_from_ms=0,
        platforms={key: _platform(key, value) for key, value in document["platforms"].items()},
        actions={key: _action(value) for key, value in document["actions"].items()},
        formats=tuple(sorted(document.get("formats", ()))),
        merge_reports_ms=duration_ms(document["merge_reports"]) if "merge_reports" in document else 0,
    )
    policy = Policy(bounds, (version,))
    _refuse_impossible(policy, name)
    parse_desk(document, version, name)
    effective_from_ms = None
    if "effective_from" in document:
        effective_from_ms = parse_time_ms(document["effective_from"])
        if effective_from_ms is None:
            raise PolicyError(f"{name}: effective_from {document['effective_from']!r} is not RFC 3339 with a zone")
    return policy, effective_from_ms


def load_desk(path: Path | str) -> Desk:
    """The `desk` section of a policy file. Raises `PolicyError`."""
    policy, _ = load_policy(path)
    return parse_desk(yaml.safe_load(Path(path).read_text()), policy.versions[0], str(path))


def parse_desk(document: dict[str, Any], version: Version, name: str = "policy") -> Desk:
    """The `desk` section of a policy document that keeps the schema. Raises `PolicyError` where a rule of it could never apply."""
    desk = document.get("desk", {})
    if desk and "journeys" not in document:
        raise PolicyError(
            f"{name}: desk needs journeys, of which leads, revenue and return are made: add `journeys: {{}}`"
        )
    advertisers = desk.get("advertisers", {})
    zones = {key: value.get("time_zone", "UTC") for key, value in advertisers.items()}
    currencies = {key: value["cost_currency"] for key, value in advertisers.items() if "cost_currency" in value}
    for advertiser, zone in zones.items():
        if zone not in available_timezones():
            raise PolicyError(
                f"{name}: desk: {advertiser}: {zone!r} is no time zone; write an IANA name such as Europe/Berlin"
            )
    follow_ups = {
        key: FollowUp(rule["what"], duration_ms(rule["within"])) for key, rule in desk.get("follow_ups", {}).items()
    }
    orders = document.get("journeys", {}).get("orders", [])
    for action, rule in follow_ups.items():
        if version.counted_action(action) is None:
            raise PolicyError(
                f"{name}: desk: follow_ups: {action!r} is no action of the catalogue that names an outcome"
            )
        if action in orders:
            raise PolicyError(
                f"{name}: desk: follow_ups: {action!r} is one of journeys.orders: a paid order closes leads and is none, so "
                "nobody would ever be told to follow it up"
            )
        if rule.within_ms <= 0:
            raise PolicyError(f"{name}: desk: follow_ups: {action}: within must be above 0, or it is overdue at once")
    tolerances = desk.get("tolerances", {})
    for platform in tolerances:
        if platform != "default" and platform not in version.platforms:
            raise PolicyError(f"{name}: desk: tolerances: the policy has no platform {platform!r}")
    closed_kept_ms = duration_ms(desk["closed_leads_kept"]) if "closed_leads_kept" in desk else CLOSED_KEPT_MS
    if closed_kept_ms < DAY_MS:
        raise PolicyError(
            f"{name}: desk: closed_leads_kept must be at least 1d, so that a reader sees how a lead ended"
        )
    return Desk(zones, currencies, follow_ups, tolerances, closed_kept_ms)


def warnings(policy: Policy) -> list[str]:
    """What is allowed but probably not meant."""
    found = []
    actions = policy.versions[-1].actions
    if len(actions) > MANY_ACTIONS:
        found.append(
            f"{len(actions)} actions: more than {MANY_ACTIONS} are hard to act on; keep those that are tied to revenue or retention"
        )
    found += [
        f"action {name} names no outcome: its conversions are noise, in no count"
        for name, action in actions.items()
        if not action.outcome
    ]
    return found


def _bounds(document: dict[str, Any]) -> Bounds:
    values: dict[str, Any] = {f"{key}_ms": duration_ms(document[key]) for key in _DURATIONS if key in document}
    values |= {key: tuple(document[key]) for key in ("dimensions", "keep") if key in document}
    if "partitioner" in document:
        values["partitioner"] = document["partitioner"]
    if "journeys" in document:
        values["journeys"] = _journeys(document["journeys"])
    if "click_ids" in document:
        values["click_ids"] = ClickIds(
            **{f"{key}_ms": duration_ms(text) for key, text in document["click_ids"].items()}
        )
    return Bounds(**values)


def _journeys(document: dict[str, Any]) -> Journeys:
    values: dict[str, Any] = {
        f"{key}_ms": duration_ms(document[key]) for key in ("window", "half_life", "customer_window") if key in document
    }
    values |= {key: document[key] for key in ("credit", "max_touches", "max_pages") if key in document}
    values |= {key: tuple(document[key]) for key in ("models", "orders") if key in document}
    abandonment = document.get("abandonment", {})
    if abandonment:
        values["abandoned_actions"] = tuple(abandonment["actions"])
    if "after" in abandonment:
        values["abandon_after_ms"] = duration_ms(abandonment["after"])
    return Journeys(**values)


def _platform(name: str, value: dict[str, Any]) -> Platform:
    method, windows = value["method"], value["windows"]
    if set(windows) != set(METHODS[method]):
        raise PolicyError(
            f"platform {name}: method {method} needs a window for {' and '.join(METHODS[method])}, and for nothing else; "
            f"it has {', '.join(sorted(windows))}"
        )
    counts = {action: rule["count"] for action, rule in value.get("actions", {}).items()}
    if "count" in value:
        counts.setdefault("*", value["count"])
    return Platform(method, {kind: duration_ms(text) for kind, text in windows.items()}, counts)


def _action(value: dict[str, Any]) -> Action:
    return Action(
        action_class=value["class"],
        intent=value["intent"],
        outcome=value.get("outcome"),
        count=value["count"],
        value_micros=to_micros(value["value"]) if "value" in value else None,
    )


def _refuse_impossible(policy: Policy, name: str) -> None:
    bounds, version = policy.bounds, policy.versions[0]
    for platform, rule in version.platforms.items():
        for kind, window_ms in rule.windows_ms.items():
            if not 0 < window_ms <= MAX_LOOKBACK_MS:
                raise PolicyError(f"{name}: platform {platform}: the {kind} window must be above 0 and at most 90d")
        for action in rule.counts:
            if action != "*" and action not in version.actions:
                raise PolicyError(
                    f"{name}: platform {platform} overrides the action {action!r}, which the catalogue lacks"
                )
    if bounds.window_ms < 1000 or DAY_MS % bounds.window_ms:
        raise PolicyError(f"{name}: window must be at least 1s and divide a day")
    for key in ("correction_horizon_ms", "max_event_age_ms", "dedup_window_ms", "idle_timeout_ms"):
        if getattr(bounds, key) <= 0:
            raise PolicyError(f"{name}: {key.removesuffix('_ms')} must be above 0")
    if bounds.dedup_window_ms < DAY_MS // 24:
        raise PolicyError(f"{name}: dedup_window must be at least 1h, real repeats come seconds to hours apart")
    if version.merge_reports_ms > MAX_MERGE_MS:
        raise PolicyError(f"{name}: merge_reports must be at most 1h: the page and the server tell of one moment")
    missing = set(bounds.dimensions) - set(bounds.keep)
    if missing:
        raise PolicyError(
            f"{name}: dimensions {', '.join(sorted(missing))} are not in keep, so a credited touch could not name them"
        )
    if ALL in version.platforms:
        raise PolicyError(f"{name}: no platform may be called {ALL}: the counts over all platforms are")
    if bounds.journeys is not None:
        _refuse_journeys(bounds.journeys, version, name)
    if bounds.click_ids is not None:
        _refuse_click_ids(bounds.click_ids, bounds, version, name)
    if not any(action.outcome for action in version.actions.values()):
        raise PolicyError(f"{name}: no action names an outcome, so nothing would ever be counted")


def _refuse_click_ids(click_ids: ClickIds, bounds: Bounds, version: Version, name: str) -> None:
    """A conversion that waited for its click for as long as it may must still be in time for its user's partition, whose events
    may be ahead of the click's by an eighth of the horizon; and it must find every click that may earn it.
    """
    if click_ids.park_for_ms <= 0:
        raise PolicyError(f"{name}: click_ids: park_for must be above 0")
    needed_ms = -(-click_ids.park_for_ms * 8 // 7)
    if bounds.correction_horizon_ms < needed_ms:
        raise PolicyError(
            f"{name}: click_ids: what waited for park_for would be too late to be counted: correction_horizon must be at least 8/7 of it "
            f"({needed_ms / DAY_MS:.3g}d), or park_for at most 7/8 of correction_horizon ({bounds.correction_horizon_ms * 7 / 8 / DAY_MS:.3g}d)"
        )
    longest_ms = max((rule.windows_ms.get("click", 0) for rule in version.platforms.values()), default=0)
    if click_ids.known_for_ms < longest_ms + click_ids.park_for_ms:
        raise PolicyError(
            f"{name}: click_ids: known_for must be at least the longest click window and park_for "
            f"({(longest_ms + click_ids.park_for_ms) / DAY_MS:.3g}d), or a click could be forgotten that earns a conversion"
        )


def _refuse_journeys(journeys: Journeys, version: Version, name: str) -> None:
    if not 0 < journeys.window_ms <= MAX_LOOKBACK_MS:
        raise PolicyError(f"{name}: journeys: window must be above 0 and at most 90d")
    for platform, rule in version.platforms.items():
        for kind, window_ms in rule.windows_ms.items():
            if window_ms > journeys.window_ms:
                raise PolicyError(
                    f"{name}: journeys: window is shorter than the {kind} window of {platform}: a journey would lack "
                    "touches that earn its conversion"
                )
    for key in ("half_life_ms", "customer_window_ms", "abandon_after_ms"):
        if getattr(journeys, key) <= 0:
            raise PolicyError(f"{name}: journeys: {key.removesuffix('_ms')} must be above 0")
    for action in (*journeys.orders, *journeys.abandoned_actions):
        if version.counted_action(action) is None:
            raise PolicyError(
                f"{name}: journeys: {action!r} is no action of the catalogue that names an outcome, so it is never counted"
            )
    both = sorted({*journeys.orders} & {*journeys.abandoned_actions})
    if both:
        raise PolicyError(
            f"{name}: journeys: {', '.join(both)} cannot be both in orders and in abandonment: what completes a cart is not left "
            "behind itself"
        )
    if journeys.abandoned_actions and journeys.abandon_after_ms > journeys.window_ms:
        raise PolicyError(
            f"{name}: journeys: abandonment: after is longer than window, which is as far back as an abandoned action is "
            "looked for: none would ever be taken up again"
        )
    if journeys.abandoned_actions and not journeys.orders:
        raise PolicyError(f"{name}: journeys: abandonment needs orders, the actions that complete what was abandoned")
