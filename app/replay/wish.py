"""What a replay is asked for."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wish:
    """What is to be recounted. Times are epoch ms; windows that start in [from_ms, to_ms) are compared.

    `policy`: the file that judges everything; None: the recorded versions, as they did live. `until_ms`: records of this
    time and later are left out. `warm_ms`: how much before the range is read; None: what the policies need.
    """

    from_ms: int
    to_ms: int
    policy: Path | None = None
    until_ms: int | None = None
    warm_ms: int | None = None
    inexact: bool = False
    workers: int = 1
    keep: bool = False
