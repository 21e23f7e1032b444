"""Places where a test may end the process, as a power cut would, or pause it, as a stalled machine does. Off unless
ONECOUNT_FAILPOINT names one: `step`, `step:3` (its third passing), or `step:3:stop` (SIGSTOP instead of SIGKILL, once
what the Kafka client has in hand is sent: a pause that left nothing behind would try nothing).
"""

import os
import signal
import time
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

SENT_S: Final = 0.5  # librdkafka sends from threads of its own, after `linger.ms`

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
            if deed == "stop":
                time.sleep(SENT_S)
            os.kill(os.getpid(), signal.SIGSTOP if deed == "stop" else signal.SIGKILL)
