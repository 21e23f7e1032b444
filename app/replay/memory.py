"""Whether Redis has room for a replay beside the live state: where it is full, live counting would stand still."""

from typing import Final

from app.engine.store import ClusterStore, RedisStore
from app.replay.refusal import ReplayRefused

STATE_BYTES_A_RECORD: Final = 80  # docs/architecture.md, "What the state takes": W1 takes about 50
_SHARE: Final = 0.9  # of its memory that a Redis may be filled to by a replay
_WAY: Final = "raise maxmemory, or let the replay use another Redis (set ONECOUNT_REDIS_URL for this command; the live state is not read)"


def refuse_full(store: RedisStore | ClusterStore, records: int) -> None:
    """Raises `ReplayRefused` where a server would be filled by the state of so many records more; with 0: where one is full."""
    servers = store.servers()
    for server in servers:
        text = server.run([("INFO", "memory")])[0].decode()
        used, limit = room(text)
        needed = records * STATE_BYTES_A_RECORD // len(servers)
        if limit and used + needed > limit * _SHARE:
            about = f"; the state of {records:,} records takes about {_megabytes(needed)} of it" if records else ""
            raise ReplayRefused(
                f"Redis at {server.address} uses {_megabytes(used)} of {_megabytes(limit)}{about}, and a full one would stop live counting: {_WAY}"
            )


def room(info: str) -> tuple[int, int]:
    """The bytes that a Redis uses, and may use at most, from its INFO; the machine's memory where it has no limit of its own."""
    found = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    limit = int(found.get("maxmemory", 0)) or int(found.get("total_system_memory", 0))
    return int(found.get("used_memory", 0)), limit


def _megabytes(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
