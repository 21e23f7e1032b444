"""The committed contract documents are those of the code, and they judge as the code does."""

import json
from pathlib import Path

import jsonschema
import pytest

from app.contract.document import documents, schema_of
from app.contract.rows import encode
from tests.unit.test_contract import adjustment, conversion, view, without

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "contract"


def test_the_committed_documents_are_those_of_the_code() -> None:
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == documents(), (
        "run: python -m app.contract.document docs/contract"
    )


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
