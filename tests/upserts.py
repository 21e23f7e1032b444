"""What an upsert topic says."""

from collections.abc import Iterable

from app.engine.fold import Published


def latest(published: Iterable[Published]) -> dict[bytes, bytes]:
    """The last value of each key; deleted keys are left out."""
    found: dict[bytes, bytes] = {}
    for key, value in published:
        if value is None:
            found.pop(key, None)
        else:
            found[key] = value
    return found
