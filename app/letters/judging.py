"""What would become of a refused event if it were sent again now."""

from typing import NamedTuple

from app.contract import reasons
from app.contract.events import Event, Rejection, decode_event, judge_bytes
from app.contract.rows import DeadLetter
from app.engine.clients import Clients
from app.engine.policy_topic import policy_values
from app.formats.opening import Body, Formats, open_formats
from app.letters.original import Original
from app.policy import record
from app.policy.load import load_policy
from app.policy.model import Policy
from app.settings import Settings


class Again(NamedTuple):
    """An event as it is sent again: the bytes of its first record, keyed by its user where it names one.

    `refusal`: why it would be refused once more; None where it would be accepted as far as can be known beforehand.
    """

    record: Original
    refusal: Rejection | None


def policy_in_force(settings: Settings, clients: Clients) -> Policy:
    """What the workers judge by: the recorded policy, or the file's where nothing is recorded yet. Raises `PolicyError`."""
    recorded = record.in_force(policy_values(settings, clients))
    if not recorded:
        return load_policy(settings.policy)[0]
    return Policy(recorded[-1].bounds, tuple(each.version for each in recorded))


def formats_in_force(settings: Settings, policy: Policy) -> Formats | None:
    """What reads the records that the workers read. Raises `RegistryRefused`."""
    return open_formats(policy.formats(), settings.registry, settings.request_timeout_ms / 1000)


def body_of(original: Original, formats: Formats | None, now_ms: int) -> Body:
    """The event's JSON, as a record of `now_ms` (epoch ms) would be read. Raises `RegistryUnavailable`."""
    return original.value if formats is None else formats.open(original.value, original.headers, now_ms)


def judge_again(
    letter: DeadLetter, original: Original, policy: Policy, now_ms: int, formats: Formats | None = None
) -> Again:
    """The event as it would be sent at `now_ms` (epoch ms), its record's timestamp then, and how it would be judged."""
    body = body_of(original, formats, now_ms)
    if isinstance(body, Rejection):
        return Again(original, body)
    event = judge_bytes(body)
    key = event.user_id.encode() if isinstance(event, Event) else original.key
    again = original._replace(key=key)
    if letter.reason in reasons.SETTLED:
        return Again(again, Rejection(letter.reason, letter.field, reasons.EXPLAINED[letter.reason].retry))
    bounds = policy.bounds
    judged = decode_event(
        *(body, key, now_ms, policy.platforms()),
        *(bounds.max_event_age_ms, bounds.max_clock_skew_ms, bounds.click_ids is not None),
    )
    return Again(again, judged if isinstance(judged, Rejection) else None)
