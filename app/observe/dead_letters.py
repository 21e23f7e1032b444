"""How many of the events judged lately were refused, and whether that is more than an operator wants to hear of."""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

SPAN_S: Final = 60.0
# Below it one broken event would be an alarm.
JUDGED_MIN: Final = 20
# The alarm ends well below the limit, so that a ratio just at it does not fill the log.
CALM: Final = 0.8


class DeadLetterRatio:
    """Dead letters by judged events, over the last minute, and the alarm that it raises above its limit."""

    def __init__(self, limit: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self.clock = clock
        self.batches: deque[tuple[float, int, int]] = deque()  # when, judged, refused
        self.judged = self.refused = 0
        self.raised = False

    def add(self, judged: int, refused: int) -> None:
        """Takes a batch's counts in; `judged` holds the refused ones."""
        self.judged += judged
        self.refused += refused
        now = self.clock()
        if self.batches and now - self.batches[-1][0] < 1:  # a second is as fine as this need be
            begun, judged_before, refused_before = self.batches.pop()
            self.batches.append((begun, judged_before + judged, refused_before + refused))
        else:
            self.batches.append((now, judged, refused))

    def ratio(self) -> float:
        """0 to 1; 0 while hardly any events came."""
        oldest = self.clock() - SPAN_S
        while self.batches and self.batches[0][0] <= oldest:
            _, judged, refused = self.batches.popleft()
            self.judged -= judged
            self.refused -= refused
        return self.refused / self.judged if self.judged >= JUDGED_MIN else 0.0

    def changed(self) -> bool:
        """Looks at the ratio anew; whether the alarm was raised, or has ended, just now (`raised` says which)."""
        ratio = self.ratio()
        raised = ratio > self.limit * (CALM if self.raised else 1)
        changed, self.raised = raised != self.raised, raised
        return changed
