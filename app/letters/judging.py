"""What would become of a refused event if it were sent again now."""

from typing import NamedTuple

from app.contract import reasons
from app.contract.events import Event, Rejection, decode_event, judge_bytes
from app.contract.rows import DeadLetter
from app.engine.clients import Clients
from app.engine.policy_topic import policy_values
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


def judge_again(letter: DeadLetter, original: Original, policy: Policy, now_ms: int) -> Again:
    """The event as it would be sent at `now_ms` (epoch ms), its record's timestamp then, and how it would be judged."""
    event = judge_bytes(original.value)
    key = event.user_id.encode() if isinstance(event, Event) else original.key
    again = Original(key, original.value)
    if letter.reason in reasons.SETTLED:
        return Again(again, Rejection(letter.reason, letter.field, reasons.EXPLAINED[letter.reason].retry))
    bounds = policy.bounds
    judged = decode_event(
        again.value, key, now_ms, policy.platforms(), bounds.max_event_age_ms, bounds.max_clock_skew_ms
    )
    return Again(again, judged if isinstance(judged, Rejection) else None)
