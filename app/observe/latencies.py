"""A histogram that takes a whole batch's values at once, which prometheus-client's own one does not."""

from collections.abc import Iterator

import numpy as np
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry


class Latencies(Collector):
    """A histogram without labels. `observe` is called by one thread, `collect` by any."""

    def __init__(self, name: str, text: str, buckets: tuple[float, ...], registry: CollectorRegistry) -> None:
        self._name, self._help = name, text
        self._bounds = np.array(buckets)
        self._state = np.zeros(len(buckets) + 1, dtype=np.int64), 0.0  # the count in each bucket, and the sum
        registry.register(self)

    def observe(self, values_s: np.ndarray) -> None:
        """Takes seconds in; a value at a bucket's bound is in that bucket. Negative ones, by clocks that differ, are 0."""
        if not len(values_s):
            return
        values_s = np.maximum(values_s, 0.0)
        places = np.searchsorted(self._bounds, values_s, side="left")
        counts, total_s = self._state
        self._state = counts + np.bincount(places, minlength=len(counts)), total_s + float(values_s.sum())

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """As Prometheus wants it: cumulative counts."""
        counts, total_s = self._state
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        pairs = list(zip(bounds, np.cumsum(counts).tolist(), strict=True))
        yield HistogramMetricFamily(self._name, self._help, buckets=pairs, sum_value=total_s)
