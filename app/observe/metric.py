"""What an entry of the catalogue is."""

from typing import Final, NamedTuple

# Steps take from parts of a millisecond to the longest wait for an answer.
STEP_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

COUNTERS: Final = ("counter",)
AGGREGATORS: Final = ("aggregator",)
MATCHERS: Final = ("matcher",)
DESKS: Final = ("desk",)
GATEWAYS: Final = ("gateway",)
WORKERS: Final = (*COUNTERS, *AGGREGATORS, *MATCHERS, *DESKS)
ALL: Final = (*WORKERS, *GATEWAYS)


class Metric(NamedTuple):
    """One metric family. `labels` are few-valued by design: no user, campaign or offset. `remedy` is what an operator
    does. `roles`: those that have it.
    """

    name: str
    kind: str  # counter, gauge or histogram
    labels: tuple[str, ...]
    help: str
    meaning: str
    remedy: str
    roles: tuple[str, ...] = WORKERS
    buckets: tuple[float, ...] = ()
