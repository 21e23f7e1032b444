"""Speed on workload W1: `python -m tests.bench.w1` (or `make bench`). Linux only: CPU and memory are read from /proc."""
