"""What makes two records the same event."""

from collections.abc import Mapping

import numpy as np

from app.columns.texts import Texts, hash64, stir, texts_of


def event_hashes(
    event_ids: Texts, advertisers: Texts, platforms: Texts, types: np.ndarray, names: Mapping[int, str]
) -> np.ndarray:
    """The 63-bit id (int64) of each event: its identity is (advertiser, platform, type, action, event_id), never its time
    or its bytes.

    `types`: codes of EVENT_TYPES; `names`: the actions of the few events that have one, by row.
    """
    scopes = types.astype(np.uint64) + np.uint64(1)
    if names:
        rows = np.fromiter(names, dtype=np.int64, count=len(names))
        scopes[rows] += stir(hash64(texts_of([name.encode() for name in names.values()])))
    scopes = stir(stir(scopes) + hash64(platforms))
    scopes = stir(scopes + hash64(advertisers))
    return (hash64(event_ids, scopes) >> np.uint64(1)).astype(np.int64)
