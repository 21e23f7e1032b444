"""What Redis should hold by the formula of docs/architecture.md, from the counts that the counters' views state."""

from typing import Any, Final

from app.attribution.touches import touch_record
from app.engine.counter_partition import read_view
from app.engine.keys import find_keys
from tests.bench.deployment import Deployment

ID_BYTES: Final = 8
CONVERSION_BYTES: Final = 330  # a conversion in its user's state, and its place in the late index
WINDOW_ROW_BYTES: Final = 70  # a row of `conversions.counts`, beside its key's text
NAME_BYTES: Final = 85  # a name of a touch, beside its text
TOLERANCE: Final = 0.15  # what allocation adds, and the newest records' room to grow


def formula(deployment: Deployment) -> dict[str, Any]:
    """The bytes by kind of state, and their sum."""
    ids = touches = conversions = 0
    touch_bytes = 0
    store = deployment.store
    for key in find_keys(store, "*:ledger"):
        if key.startswith(b"{c"):
            view = read_view(store.run([("HGET", key, "view")])[0])
            ids += sum(count for _, count in view.generations)
            touches += sum(count for _, count in view.segments)
            touch_bytes += sum(
                count * touch_record(width, len(view.keep)).itemsize for (_, _, width), count in view.segments
            )
    for key in find_keys(store, "*:late:*"):
        conversions += store.run([("STRLEN", key)])[0] // 16
    rows = [text for key in find_keys(store, "*:win:*") for text in store.run([("HKEYS", key)])[0]]
    names = [text for key in find_keys(store, "{c*}:names:*") for text in store.run([("HVALS", key)])[0]]
    found = {
        "ids": ids * ID_BYTES,
        "touches": touch_bytes,
        "conversions": conversions * CONVERSION_BYTES,
        "window rows": len(rows) * WINDOW_ROW_BYTES + sum(map(len, rows)),
        "names": len(names) * NAME_BYTES + sum(map(len, names)),
    }
    counts = {"ids": ids, "touches": touches, "conversions": conversions, "window rows": len(rows), "names": len(names)}
    return {"records": counts, "bytes": found, "total": sum(found.values())}
