"""Runs onecount's own command line under cProfile: `python -m tests.bench.profiled FILE run counter`.

The statistics are written to FILE when the worker ends; read them with `python -m pstats FILE`. A profiled worker takes about twice as
long, and cheap calls look dearer than they are.
"""

import cProfile
import sys

from app.cli import main

if __name__ == "__main__":
    path = sys.argv.pop(1)
    profile = cProfile.Profile()
    try:
        profile.runcall(main)
    finally:
        profile.dump_stats(path)
