"""A person's rows in the output topics: which still stand, and their deletion."""

from collections.abc import Callable
from typing import Final, NamedTuple

import orjson
from confluent_kafka import OFFSET_BEGINNING

from app.contract import rows
from app.contract.leads import decode_lead, decode_overdue
from app.engine.clients import Clients
from app.engine.rebuild import read_partition
from app.policy.model import Policy
from app.settings import Settings

Delete = Callable[[str, int, list[bytes]], None]  # writes null values: topic, partition, keys
ALL_OF_IT: Final = None


class Person(NamedTuple):
    """Who is forgotten, up to and including a time (epoch ms)."""

    advertiser_id: str
    user_id: str
    until_ms: int


class Removed(NamedTuple):
    """How many rows of one topic the counter has deleted, and how many older ones were deleted here."""

    by_counter: int
    older: int


def row_topics(settings: Settings, policy: Policy) -> tuple[str, ...]:
    """The topics with rows of persons: the key is a JSON array that begins with advertiser and user, the row has an
    `event_time`, and all rows of a user lie on the partition that owns the user.
    """
    journeys = (settings.journeys_topic, settings.models_topic) if policy.bounds.journeys else ()
    return settings.attributed_topic, *journeys


def leads_left(clients: Clients, settings: Settings, person: Person) -> dict[str, int]:
    """By topic of the desk, if it is there: how many leads of the person still stand that began up to the forget. The desk
    withdraws them itself, as it reads the deletions; a second writer could only be in its way.
    """
    begun = {
        settings.leads_topic: lambda value: decode_lead(value).opened_time,
        settings.overdue_topic: lambda value: decode_overdue(value).waiting_since,
    }
    found = {}
    for topic in clients.topics(begun):
        latest = {
            message.key(): message.value()
            for message in read_partition(clients, topic, 0, OFFSET_BEGINNING, ALL_OF_IT)
            if (message.key() or b"").startswith(_prefix(person))
        }
        found[topic] = sum(value is not None and begun[topic](value) <= person.until_ms for value in latest.values())
    return found


def _prefix(person: Person) -> bytes:
    return orjson.dumps([person.advertiser_id, person.user_id])[:-1] + b","


def delete_rows(clients: Clients, topic: str, partition: int, person: Person, since: int, delete: Delete) -> Removed:
    """Deletes the rows that still stand when the counter has come past the forget, which began at offset `since` of the topic.

    These are older than what a counter holds, so it has no part in them any more: whatever it does, a replay and a rebuild
    too, it writes no row of this person that is not later than the forget. Only an event id that is used again for a later
    conversion after all that time could meet its deletion here; `onecount verify` would tell.
    """
    prefix = _prefix(person)
    standing: dict[bytes, bytes] = {}
    deleted: set[bytes] = set()
    for message in read_partition(clients, topic, partition, OFFSET_BEGINNING, ALL_OF_IT):
        key, value = message.key(), message.value()
        if key is None or not key.startswith(prefix):
            continue
        if value is not None:
            standing[key] = value
        elif standing.pop(key, None) is not None and message.offset() >= since:
            deleted.add(key)
    left = [key for key, value in standing.items() if rows.attributed_time_ms(value) <= person.until_ms]
    if left:
        delete(topic, partition, left)
    return Removed(len(deleted - standing.keys()), len(left))
