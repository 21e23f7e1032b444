"""`onecount demo`: the whole thing on this machine, in a minute: a real Kafka and Redis, workers, events, a live table.

    run_demo(Console(), seconds=40, rate=2_000, file=None, mapping=None)   # the exit code

One of the workers is killed on the way, and `verify` has the last word. Everything lies in temporary folders and is
gone afterwards, however the demo ends.
"""

from app.demo.play import run_demo

__all__ = ["run_demo"]
