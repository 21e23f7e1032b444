"""What makes two records the same event."""

from collections.abc import Sequence

import numpy as np
import xxhash

from app.contract.events import Event


def event_hashes(events: Sequence[Event], indices: np.ndarray) -> np.ndarray:
    """The 63-bit id (int64) of each event at `indices`: its identity is (advertiser, platform, type, action,
    event_id), never its time or its bytes.
    """
    digest = xxhash.xxh3_64_digest
    chosen = events if len(indices) == len(events) else [events[index] for index in indices.tolist()]
    hashes = b"".join(
        [
            digest(
                f"{event.advertiser_id}\x1f{event.platform or ''}\x1f{event.event_type}\x1f{event.conversion_name or ''}\x1f{event.event_id}".encode()
            )
            for event in chosen
        ]
    )
    return (np.frombuffer(hashes, dtype=">u8").astype(np.uint64) >> np.uint64(1)).astype(np.int64)
