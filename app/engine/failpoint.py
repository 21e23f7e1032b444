"""Places where a test may end the process, as a power cut would, or pause it, as a stalled machine does. Off unless
ONECOUNT_FAILPOINT names one: `step`, `step:3` (its third passing), or `step:3:stop` (SIGSTOP instead of SIGKILL).
"""

import os
import signal
from collections import Counter
from typing import Final

# The engine's steps in the order in which a batch passes them.
STEPS: Final = (
    "reopened",
    "batch_read",
    "folded",
    "transaction_begun",
    "produced",
    "offsets_sent",
    "committed",
    "state_written",
    "rebuilt",
)

_passed: Counter[str] = Counter()


def passing(step: str) -> None:
    """Ends or pauses the process if the environment says so for this passing of `step`."""
    wanted = os.environ.get("ONECOUNT_FAILPOINT")
    if not wanted:
        return
    name, count, deed = f"{wanted}::".split(":")[:3]
    if name == step:
        _passed[step] += 1
        if _passed[step] == int(count or 1):
            os.kill(os.getpid(), signal.SIGSTOP if deed == "stop" else signal.SIGKILL)
