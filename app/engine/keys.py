"""Which keys of a pattern Redis holds."""

from app.engine.store import ClusterStore, RedisStore


def find_keys(store: RedisStore | ClusterStore, pattern: str) -> set[bytes]:
    """All keys that match a glob pattern, of one server or of all masters of a cluster. Walks over every key that there is."""
    found: set[bytes] = set()
    for server in store.servers():
        cursor = b"0"
        while True:
            cursor, keys = server.run([("SCAN", cursor, "MATCH", pattern, "COUNT", 10_000)])[0]
            found.update(keys)
            if cursor == b"0":
                break
    return found
