"""onecount: counts ad conversions in real time, exactly once, by one counting method per platform."""

__version__ = "0.1.0"
