"""What a counter tells the matchers with a batch: whose its new clicks are, and which events name a click id and no user."""

import numpy as np

from app.columns.texts import texts_of
from app.contract import click_ids
from app.contract.click_ids import ClickRow, Row, UserlessRow
from app.contract.rows import KEPT_KEY_BYTES
from app.engine.fold import Fold, Record
from app.intake.decode import CLICK, Decoded
from app.intake.partitioner import owners
from app.intake.walk import CLICK_ID
from app.publish import records

Keyed = tuple[bytes, Row]  # a row behind its key


def click_rows(parts: np.ndarray, decoded: Decoded, fresh: np.ndarray, suppressed: set[int]) -> list[Keyed]:
    """A row for each new click that has an id. `fresh`: the new events, as indices into `decoded`."""
    texts = decoded.texts
    rows = fresh[(decoded.types[fresh] == CLICK) & (texts[CLICK_ID].lengths[fresh] > 0)]
    if suppressed:
        rows = rows[~np.isin(parts[decoded.rows[rows]], list(suppressed))]
    names = ("advertiser_id", CLICK_ID, "platform", "user_id", "event_id")
    columns = [[texts[name].at(row) or "" for row in rows.tolist()] for name in names]
    return [
        (click_ids.click_key(advertiser, click_id), ClickRow(platform, user, time_ms, event_id))
        for advertiser, click_id, platform, user, event_id, time_ms in zip(
            *columns, decoded.times_ms[rows].tolist(), strict=True
        )
    ]


def userless_rows(
    messages: list[Record], values: list[bytes | None], parts: np.ndarray, decoded: Decoded, suppressed: set[int]
) -> list[Keyed]:
    """A row for each event that names no user; `values`: the JSON of each record, whatever its format is."""
    found = []
    for index, (event, time_ms) in decoded.userless:
        if int(parts[index]) in suppressed:
            continue
        message = messages[index]
        place = records.source_of(message)
        # of the key, which may be anything, as much as a dead letter keeps: a row must never be too large to be written
        key = None if message.key() is None else (message.key() or b"")[:KEPT_KEY_BYTES]
        row = UserlessRow(event.platform or "", time_ms, *place, key, (values[index] or b"").decode())
        found.append((click_ids.click_key(event.advertiser_id, event.click_id or ""), row))
    return found


def publish(rows: list[Keyed], topic: str, partitions: int, partitioner: str, fold: Fold) -> None:
    """Puts the rows under the partitions of their keys."""
    for (key, row), partition in zip(
        rows, owners(texts_of([key for key, _ in rows]), partitions, partitioner).tolist(), strict=True
    ):
        records.add(fold.outputs, topic, partition, {"value": click_ids.encode(row), "key": key})
