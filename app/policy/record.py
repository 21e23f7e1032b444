"""The record of what is in force: the versions of the policy on the topic `onecount.policy`, and how a policy file
fits it.

Stick with the method: counts of one platform are comparable only while its method stays. So a changed policy is
refused unless it says from which future instant on it holds, and then it becomes the next version; what was counted
before is never judged anew.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from app.policy.load import PolicyError
from app.policy.model import Bounds, Policy, Version

# A new version must leave the running workers time to take it up before it holds.
NOTICE_MS: Final = 60_000


class Recorded(msgspec.Struct, frozen=True):
    """One record of the policy topic: a version, and the bounds that it was recorded with.

    `topics`: topics that the counts are made with, each with its partitions and its id. One that is recorded later comes
    with the version of then once more.
    """

    bounds: Bounds
    version: Version
    topics: dict[str, tuple[int, str]] = {}


encode = msgspec.json.Encoder(order="sorted").encode
decode = msgspec.json.Decoder(Recorded).decode


def in_force(values: Iterable[bytes]) -> list[Recorded]:
    """The recorded versions, oldest first, from the topic's values in log order; of two with one number the first
    holds.
    """
    found: list[Recorded] = []
    for recorded in map(_decoded, values):
        if recorded.version.number == len(found) + 1:
            found.append(recorded)
    return found


def topics(values: Iterable[bytes]) -> dict[str, tuple[int, str]]:
    """The recorded topics, from the topic's values in log order; of two of one name the first holds."""
    found: dict[str, tuple[int, str]] = {}
    for recorded in map(_decoded, values):
        found = recorded.topics | found
    return found


def _decoded(value: bytes) -> Recorded:
    try:
        return decode(value)
    except msgspec.DecodeError as error:
        raise PolicyError(
            f"the recorded policy is unreadable ({error}): was it written by a newer release? Then deploy that one; else run `onecount reset`"
        ) from error


def fit(
    recorded: list[Recorded], wanted: Policy, effective_from_ms: int | None, now_ms: int, runs: bool = False
) -> tuple[Policy, Recorded | None]:
    """The policy in force for a process that wants `wanted` (a single version), and the version to record first, if
    any. `runs`: it judged by the record already, and so takes up what others add to it, whatever its file held at its start.

    Raises `PolicyError` where the file differs from the record without an `effective_from` in the future.
    """
    rules = wanted.versions[0]
    if not recorded:
        return wanted, Recorded(wanted.bounds, rules)
    versions = tuple(record.version for record in recorded)
    latest = recorded[-1]
    if latest.bounds != wanted.bounds:
        changed = [
            name for name in Bounds.__struct_fields__ if getattr(latest.bounds, name) != getattr(wanted.bounds, name)
        ]
        raise PolicyError(
            f"{', '.join(changed)} differ from what the counts were made with (policy version {latest.version.number}); set them back, "
            "or run `onecount reset` to count anew"
        )
    policy = Policy(wanted.bounds, versions)
    if _same_rules(latest.version, rules) or (runs and any(_same_rules(version, rules) for version in versions)):
        return policy, None
    if any(_same_rules(version, rules) for version in versions[:-1]) and effective_from_ms is None:
        raise PolicyError(
            f"the policy file holds an older version; version {latest.version.number} is recorded: deploy that one everywhere"
        )
    if effective_from_ms is None:
        raise PolicyError(
            f"the policy differs from version {latest.version.number}, which is in force ({', '.join(_differences(latest.version, rules))}); "
            "give it an effective_from in the future, or set it back"
        )
    earliest_ms = max(now_ms + NOTICE_MS + wanted.bounds.max_clock_skew_ms, latest.version.effective_from_ms + 1)
    if effective_from_ms < earliest_ms:
        raise PolicyError(
            f"effective_from must be at least {(earliest_ms - now_ms) // 1000} s from now, so that every worker knows it before it holds; "
            "what was counted is not judged anew"
        )
    version = msgspec.structs.replace(rules, number=len(versions) + 1, effective_from_ms=effective_from_ms)
    return Policy(wanted.bounds, (*versions, version)), Recorded(wanted.bounds, version)


def _same_rules(recorded: Version, wanted: Version) -> bool:
    return (recorded.platforms, recorded.actions, recorded.formats, recorded.merge_reports_ms) == (
        wanted.platforms,
        wanted.actions,
        wanted.formats,
        wanted.merge_reports_ms,
    )


def _differences(recorded: Version, wanted: Version) -> list[str]:
    found = ["merge_reports"] if recorded.merge_reports_ms != wanted.merge_reports_ms else []
    for label, old, new in (
        ("platform", recorded.platforms, wanted.platforms),
        ("action", recorded.actions, wanted.actions),
    ):
        found += [f"{label} {name}" for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return found + [f"format {name}" for name in sorted({*recorded.formats} ^ {*wanted.formats})]
