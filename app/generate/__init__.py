"""`onecount generate`: made-up ad events that look like real ones, with every trouble that real ones have.

    for record in events(seed=7, count=100_000, start_ms=0, policy=policy): ...   # the same seed, the same bytes
    produce(settings, policy, seed=7, count=1_000_000)                            # to Kafka, as any outside producer
    would

What is generated is unknown to the product: it sees records on its input topics, and nothing else.
"""

from app.generate.events import Generated, events
from app.generate.faults import FAULTS
from app.generate.mix import Mix
from app.generate.owner import owner_partition
from app.generate.produce import DeliveryError, Produced, produce
from app.publish.producer import open_producer, producer_properties

__all__ = [
    "FAULTS",
    "DeliveryError",
    "Generated",
    "Mix",
    "Produced",
    "events",
    "open_producer",
    "owner_partition",
    "produce",
    "producer_properties",
]
