"""The committed contract documents are those of the code, they are valid, and they judge as the code does."""

import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from app.contract.document import PAGE, documents, schema_of, topic_table, with_tables
from app.contract.meanings import MEANINGS
from app.contract.rows import encode
from app.contract.topics import DAY_MS, DELETIONS_KEPT_MS
from app.policy.load import load_policy
from app.policy.model import Journeys
from app.settings import Settings
from tests.unit.test_contract import adjustment, conversion, view, without

DOCS = Path(__file__).resolve().parents[2] / "docs"
FOLDER = DOCS / "contract"
POLICY = DOCS.parent / "deploy" / "policy.yaml"
# AsyncAPI's own JSON Schema of version 3.0.0, bindings included; from its package @asyncapi/specs (Apache-2.0).
ASYNCAPI_SCHEMA = Path(__file__).with_name("asyncapi-3.0.0.schema.json.gz")
MADE_BY = "run: python -m app.contract.document docs"


def test_the_committed_documents_are_those_of_the_code() -> None:
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == documents(), MADE_BY


def test_the_tables_of_the_page_are_those_of_the_code() -> None:
    page = (DOCS / PAGE).read_text()
    assert page.count("<!-- table: ") == len(MEANINGS) + 1
    assert page == with_tables(page), MADE_BY


@pytest.mark.parametrize("struct", list(MEANINGS))
def test_every_field_of_a_row_has_a_meaning(struct: type[msgspec.Struct]) -> None:
    assert tuple(MEANINGS[struct]) == struct.__struct_fields__


# --- AsyncAPI


@pytest.fixture(scope="module")
def asyncapi() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "asyncapi.yaml").read_text())


@pytest.fixture(scope="module")
def asyncapi_schema() -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(json.loads(gzip.decompress(ASYNCAPI_SCHEMA.read_bytes())))


def test_the_asyncapi_document_is_valid_and_an_unsound_one_is_not(
    asyncapi: dict[str, Any], asyncapi_schema: jsonschema.Draft7Validator
) -> None:
    asyncapi_schema.validate(asyncapi)
    for path, wrong in (
        (("channels", "count", "bindings", "kafka", "topicConfiguration", "cleanup.policy"), ["compacted"]),
        (("channels", "count", "bindings", "kafka", "partitions"), 0),
        (("operations", "send_count", "action"), "publish"),
        (("components", "messages", "count", "bindings", "kafka", "keys"), {}),
    ):
        broken = json.loads(json.dumps(asyncapi))
        place = broken
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = wrong
        assert not asyncapi_schema.is_valid(broken), path


def test_every_reference_of_the_asyncapi_document_leads_somewhere(asyncapi: dict[str, Any]) -> None:
    def references(value: Any) -> list[str]:
        if isinstance(value, list):
            return [found for each in value for found in references(each)]
        if isinstance(value, dict):
            return (
                [value["$ref"]] if "$ref" in value else [found for each in value.values() for found in references(each)]
            )
        return []

    found = references(asyncapi)
    assert len(found) >= 16
    for reference in found:
        if reference.startswith("./"):
            assert (FOLDER / reference).exists(), reference
            continue
        place = asyncapi
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]


def test_the_documents_say_what_topics_create_makes_by_default(asyncapi: dict[str, Any]) -> None:
    from app.engine.topics import all_specs_of

    settings = Settings()
    policy = load_policy(POLICY)[0]
    policy = msgspec.structs.replace(policy, bounds=msgspec.structs.replace(policy.bounds, journeys=Journeys()))
    specs = {spec.name: spec for spec in all_specs_of(settings, policy)}
    addresses = {channel["address"] for channel in asyncapi["channels"].values()}
    upserts = {settings.attributed_topic, settings.counts_topic, settings.journeys_topic, settings.models_topic}
    desk = {*settings.desk_inputs, *settings.money_inputs, *settings.desk_outputs}
    assert addresses == {*settings.events_topics, *upserts, *desk, settings.dlq_topic}
    for channel in asyncapi["channels"].values():
        binding = channel["bindings"]["kafka"]
        assert binding["partitions"] == (specs[channel["address"]].partitions or settings.partitions)
        config = binding["topicConfiguration"]
        told = {name: ",".join(value) if isinstance(value, list) else str(value) for name, value in config.items()}
        assert told == specs[channel["address"]].config
        assert f"| `{channel['address']}` |" in topic_table()


def test_the_example_consumers_know_how_long_deletions_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS.parent / "deploy" / "bi"))
    import output_topics

    assert output_topics.DELETIONS_KEPT_S * 1000 == DELETIONS_KEPT_MS
    days = DELETIONS_KEPT_MS // DAY_MS
    assert f"Do not stand still for more than {days} days" in (DOCS / PAGE).read_text()


# --- JSON Schema


@pytest.mark.parametrize(
    "name",
    [
        "event",
        "attributed",
        "count",
        "journey",
        "model",
        "rollup",
        "lead",
        "overdue_lead",
        "follow_up",
        "refused_follow_up",
        "order",
        "report",
        "spend",
        "reconciliation",
        "return",
        "refused_money",
        "dead_letter",
    ],
)
def test_a_schema_is_one(name: str) -> None:
    jsonschema.Draft7Validator.check_schema(schema_of(name))


@pytest.mark.parametrize("event", [view(), conversion(), adjustment(), view(event_type="click", cost=1)])
def test_a_sound_event_fits_the_schema(event: dict[str, object]) -> None:
    jsonschema.validate(event, schema_of("event"))


@pytest.mark.parametrize(
    "event", [without(view(), "campaign_id"), view(event_type="tick"), conversion(value=-1), without(view(), "user_id")]
)
def test_an_unsound_event_does_not_fit_the_schema(event: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(event, schema_of("event"))


def test_a_dead_letter_fits_its_schema() -> None:
    from app.contract.events import Rejection
    from app.contract.rows import dead_letter

    letter = dead_letter(Rejection("empty", "", "the value is empty"), "ads.events", 0, 1, 2, None, b"")
    jsonschema.validate(json.loads(encode(letter)), schema_of("dead_letter"))
