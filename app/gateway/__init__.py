"""`onecount gateway`: events come in over HTTP, from servers with a key and from browsers, and go to a raw topic of Kafka.

Whatever it answers `accepted` for, the counter accepts: both judge by `app.contract.events`, and the gateway stamps the record
with the time by which it judged. It counts and remembers nothing; repeats are dropped by the counter, by their event id.
"""


class GatewayError(RuntimeError):
    """The gateway can't run as it is told to; the message says why and what to do."""
