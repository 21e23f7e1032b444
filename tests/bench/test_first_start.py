"""A first start on a backlog: the memory and the CPU of a counter process that has everything still to read.

What a counter holds back while it reads may not grow with the backlog. Both bounds hold on any machine: memory is not a matter of
speed, and CPU is compared with orjson's on the same events.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from app.generate import Generated
from app.local.processes import PROJECT_ROOT
from tests.bench.deployment import fresh_deployment
from tests.bench.floor import decode
from tests.bench.meter import cpu_s, peak_rss_mb, tree
from tests.bench.progress import Progress, wait_until
from tests.bench.w2 import POLICY, TOPIC, preload, stream
from tests.conftest import Services

EVENTS: Final = 200_000
FEW_EVENTS: Final = 2_000
START_MS: Final = 1_764_000_000_000
PEAK_MB: Final = 540  # some 90 of it Numba's (docs/decisions.md, 51)
RATIO: Final = 20  # the whole process's CPU, its start included, over orjson.loads
COUNT_TIMEOUT_S: Final = 90.0


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_first_start_on_a_backlog_takes_bounded_memory_and_cpu(
    services: Services, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    # the loops are compiled once on a machine, which has nothing to do with the backlog
    compiled_s, _ = _count("few", list(stream(FEW_EVENTS, 1, START_MS)), services, tmp_path)
    records = list(stream(EVENTS, 1, START_MS))
    begun = time.process_time()
    for record in records:
        decode(record.value)
    floor_s = time.process_time() - begun
    counted_s, peak_mb = _count("many", records, services, tmp_path)
    ratio = counted_s / floor_s
    record_property("peak_mb", peak_mb)
    record_property("ratio", ratio)
    print(
        f"first start: {peak_mb:.0f} MB, bound {PEAK_MB}; {ratio:.1f} times orjson.loads, bound {RATIO}; "
        f"{counted_s:.1f} CPU s, with few events and loops to compile at first {compiled_s:.1f}"
    )
    assert peak_mb <= PEAK_MB
    assert ratio <= RATIO


def test_a_compiler_does_not_stay_in_a_counter_s_memory(tmp_path: Path) -> None:
    script = """
import os, sys
from app.columns.compiled import prepare
from tests.bench.meter import peak_rss_mb
if sys.argv[1] == "part":
    import app.dedup.filter
else:
    if sys.argv[1] == "prepared":
        prepare("app.engine.counter")
    import app.engine.counter
print(peak_rss_mb(os.getpid()))
"""
    peaks_mb = {}
    for way in ("part", "prepared", "at once", "kept"):  # of the code one loop is kept before, as a matcher leaves it
        folder = tmp_path / ("kept" if way != "at once" else "other")
        environment = os.environ | {"NUMBA_CACHE_DIR": str(folder)}
        argv = [sys.executable, "-c", script, way]
        found = subprocess.run(argv, env=environment, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
        peaks_mb[way] = float(found.stdout)
    print(peaks_mb)
    assert peaks_mb["prepared"] == pytest.approx(peaks_mb["kept"], abs=20)
    assert peaks_mb["prepared"] < peaks_mb["at once"] - 100


def _count(name: str, records: list[Generated], services: Services, folder: Path) -> tuple[float, float]:
    """The CPU (seconds) and the peak memory (MB) of a counter that starts with these records to read, and reads them."""
    progress = Progress(services.bootstrap)
    preload(services.bootstrap, progress, iter(records))
    with fresh_deployment(f"start-{name}", services.bootstrap, progress, TOPIC, folder, policy=POLICY) as deployment:
        ends, group = progress.ends(TOPIC), deployment.groups["counter"]
        deployment.start("counter")
        wait_until(
            lambda: deployment.runs() and progress.has_reached_end(group, TOPIC, ends), COUNT_TIMEOUT_S, "the backlog"
        )
        pid = deployment.workers["counter"].pid
        found = cpu_s(pid), max(map(peak_rss_mb, tree(pid)))
    progress.delete([TOPIC])
    progress.close()
    return found
