"""The whole pipeline in memory on events in every format: whatever happens to workers, Kafka, Redis and the registry, the oracle's
answer is published, and it is the answer to the same events in JSON.
"""

import json
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any, Final

import msgspec
from hypothesis import event, given, note, settings
from hypothesis import strategies as st

from app.formats.opening import FORMATS
from app.policy.model import Policy
from tests.formats.registry import Registry as Held
from tests.formats.registry import fresh
from tests.formats.written import Writers, binary, structured
from tests.memory.deployment import Deployment, deployed
from tests.property.checks import differences
from tests.property.forgets import delete_older
from tests.property.plans import Action, Story, make_plan
from tests.property.worlds import Arrival, World, make_world

DOWN: Final = (503, "down")
STRAY: Final = b"\0\0\0\x27\x0fof a schema that nobody has"


def taking_formats(policy: Policy, since: int) -> Policy:
    """The policy with every format from its version of this index on."""
    versions = [
        msgspec.structs.replace(version, formats=FORMATS if index >= since else ())
        for index, version in enumerate(policy.versions)
    ]
    return msgspec.structs.replace(policy, versions=tuple(versions))


def written(arrival: Arrival, chance: Random, writers: Writers) -> Arrival:
    """The record in some format; as it is where no serializer would write it."""
    try:
        found: Any = json.loads(arrival.value or b"")
    except ValueError:
        return replace(arrival, value=STRAY) if chance.random() < 0.2 else arrival
    way = chance.choice(["json", "avro", "protobuf", "structured", "binary", "avro in binary"])
    if not isinstance(found, dict) or not {"event_id", "event_type"} <= found.keys() or way == "json":
        return arrival
    with suppress(Exception):  # a serializer of somebody else's may raise what it likes
        match way:
            case "avro":
                return replace(arrival, value=writers.avro(found))
            case "protobuf":
                return replace(arrival, value=writers.protobuf(found))
            case "structured":
                value, headers = structured(found)
                return replace(arrival, value=value, headers=tuple(headers))
            case "binary":
                value, headers = binary(found)
                return replace(arrival, value=value, headers=tuple(headers))
            case _:
                return replace(arrival, value=writers.avro(found), headers=tuple(binary(found)[1]))
    return arrival


Told = tuple[World, int, list[Action], int]


@st.composite
def stories(draw: st.DrawFn) -> Told:
    """A world in JSON, how many partitions its deltas have, what happens, and a seed for the formats and the registry."""
    seed = draw(st.integers(0, 2**64))
    chance = Random(seed)
    world = make_world(chance)
    happens = make_plan(chance, world.order)
    kept = st.integers(0, 29)
    arrivals = tuple(arrival for arrival in world.arrivals if draw(kept))
    return replace(world, arrivals=arrivals), chance.randint(1, 2), [each for each in happens if draw(kept)], seed


def play(story: Story, happens: list[Action], held: Held | None, chance: Random) -> None:
    """Lets the story happen; with a registry that is away for some of it."""
    for action in happens:
        if held is not None:
            held.broken = DOWN if chance.random() < 0.3 else None
        story.play(action)
    if held is not None:
        held.broken = None
    story.finish()


def rows(deployment: Deployment) -> dict[tuple[str, bytes | None], Any]:
    """What the output topics hold at last, by topic and key, without what tells how it came about."""
    found: dict[tuple[str, bytes | None], Any] = {}
    names = deployment.settings
    for topic in (names.attributed_topic, names.counts_topic, names.journeys_topic, names.models_topic):
        for message in deployment.broker.committed(topic):
            row = json.loads(message.value()) if message.value() else None
            found[topic, message.key()] = row and {name: row[name] for name in row if name not in ("revision", "final")}
    return {key: row for key, row in found.items() if row is not None}


@settings(max_examples=30)
@given(stories())
def test_what_is_published_is_the_oracles_answer_in_whatever_format_events_come(
    shared: Held, shared_writers: Writers, told: Told
) -> None:
    world, deltas, happens, seed = told
    chance = Random(seed)
    since = chance.randrange(len(world.policy.versions))
    arrivals = tuple(written(arrival, chance, shared_writers) for arrival in world.arrivals)
    mixed = replace(world, policy=taking_formats(world.policy, since), arrivals=arrivals)
    story = Story(mixed, deltas, shared.url)
    with fresh(shared.url), deployed(story.deployment) as deployment:
        play(story, happens, shared, chance)
        delete_older(deployment)
        for worker in deployment.workers.values():
            event("the registry was away" if "schema registry" in worker.ended else "another end")
            note(f"{worker.name}: last ended by {worker.ended or 'nothing'}")
        found = differences(deployment)
        assert not found, "\n".join(found)


@settings(max_examples=15)
@given(st.integers(0, 2**64))
def test_counts_are_those_of_the_same_events_in_json(shared: Held, shared_writers: Writers, seed: int) -> None:
    chance = Random(seed)
    world = make_world(chance)
    plain = Story(world, 1)
    with deployed(plain.deployment) as deployment:
        play(plain, [], None, chance)
        must = rows(deployment)
    arrivals = tuple(written(arrival, chance, shared_writers) for arrival in world.arrivals)
    mixed = Story(replace(world, policy=taking_formats(world.policy, 0), arrivals=arrivals), 1, shared.url)
    with fresh(shared.url), deployed(mixed.deployment) as deployment:
        play(mixed, [], None, chance)
        assert rows(deployment) == must
        event(f"{min(len(must), 5)} rows")
