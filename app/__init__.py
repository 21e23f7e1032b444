"""onecount: counts ad conversions in real time, exactly once, by one counting method per platform."""

import os

__version__ = "0.1.0"

# A worker is one consumer on one core: a batch's frames are small, and a thread pool over them costs more CPU than it saves time.
os.environ.setdefault("POLARS_MAX_THREADS", "1")
