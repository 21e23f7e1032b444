"""Rows of conversions, journeys and models as what a batch publishes, and as what is counted of them."""

from app.contract import rows
from app.contract.journeys import JourneyRow, ModelRow
from app.contract.rows import AttributedRow
from app.engine.fold import Fold
from app.publish import records
from app.settings import Settings


def publish(partition: int, changed: list[tuple[bytes, AttributedRow | None]], settings: Settings, fold: Fold) -> None:
    """Adds rows of conversions, or their deletions, to what the batch publishes."""
    if not changed:
        return
    shown = [row for _, row in changed if row is not None]
    fold.counted.update([("conversion", row.platform, row.method, row.status) for row in shown])
    fold.converted += [
        (row.platform, row.conversion_name, row.time_to_convert_ms)
        for row in shown
        if row.revision == 1 and row.status == rows.COUNTED and row.time_to_convert_ms is not None
    ]
    out = fold.outputs.setdefault((settings.attributed_topic, partition), [])
    out += [{"key": key, "value": None if row is None else rows.encode(row)} for key, row in changed]


def publish_journeys(
    partition: int,
    journeys: list[tuple[bytes, JourneyRow | None]],
    models: list[tuple[bytes, ModelRow | None]],
    settings: Settings,
    fold: Fold,
) -> None:
    """Adds rows of journeys and of their models, or their deletions, to what the batch publishes."""
    for topic, changed in ((settings.journeys_topic, journeys), (settings.models_topic, models)):
        for key, row in changed:
            value = None if row is None else rows.encode(row)
            records.add(fold.outputs, topic, partition, {"key": key, "value": value})
