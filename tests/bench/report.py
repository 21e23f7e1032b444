"""What was measured, as a table for people and JSON for programs."""

import os
import platform
import subprocess
from importlib.metadata import version
from math import inf
from pathlib import Path
from statistics import median
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from app.local.kafka import kafka_version
from app.local.processes import PROJECT_ROOT
from tests.bench.memory import TOLERANCE

# The bars: what a run may take, its ratios in the same run on the same machine.
FLOOR_BAR: Final = 2.4
PEER_CPU_BAR: Final = 0.4
PEER_SPEED_BAR: Final = 1.8
REDIS_BAR_BYTES: Final = 60e6
RSS_BAR_MB: Final = 700.0
MEMORY_EVENTS_MIN: Final = 1_000_000  # in fewer, what Redis takes in any case weighs too much
GROWTH_BAR: Final = 1.15
PARTS: Final = ("counter", "aggregator", "redis")
PACKAGES: Final = ("confluent-kafka", "hiredis", "msgspec", "numpy", "orjson", "polars", "redis", "xxhash")


def machine() -> dict[str, Any]:
    """The machine and the versions that the figures hold for."""
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    memory_kb = int(Path("/proc/meminfo").read_text().split("\n", 1)[0].split()[1])
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory_kb / 2**20),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "kafka": kafka_version(),
        "redis_server": _first_line("redis-server", "--version"),
        "java": _first_line("java", "-version"),
        "commit": _first_line("git", "-C", str(PROJECT_ROOT), "describe", "--always", "--dirty"),
        "packages": {name: version(name) for name in PACKAGES},
    }


def _first_line(*argv: str) -> str:
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError as error:
        return str(error)
    return done.stdout.split("\n", 1)[0].strip()


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every number that all runs have, in the same nesting."""
    found: dict[str, Any] = {}
    for name, value in runs[0].items():
        values = [run[name] for run in runs if name in run]
        if isinstance(value, dict):
            found[name] = medians(values)
        elif isinstance(value, int | float) and not isinstance(value, bool) and len(values) == len(runs):
            found[name] = round(median(values), 3)
    return found


def failures(result: dict[str, Any]) -> list[str]:
    """Why the benchmark fails; empty where it does not."""
    found = [
        f"run {at}: not what the oracle says"
        for at, run in enumerate(result["runs"], 1)
        if "verified" in run and not run["verified"]["exact"]
    ]
    middle = result["medians"]
    bars = [
        ("CPU over the floor's", middle["floor"]["ratio"], FLOOR_BAR),
        ("RSS of a counter, MB", middle["peak_rss_mb"]["counter"], RSS_BAR_MB),
    ]
    if result["n"] >= MEMORY_EVENTS_MIN:
        bars.append(("Redis off its formula", abs(middle["redis_formula"]["share"] - 1), TOLERANCE))
        if result["title"].startswith("W1"):
            bars.append(("Redis bytes per million events", middle["redis_bytes_per_million"], REDIS_BAR_BYTES))
    if middle["growth"]:
        bars.append(
            (
                "CPU of the last events over the first",
                middle["growth"]["late"]["total"] / middle["growth"]["early"]["total"],
                GROWTH_BAR,
            )
        )
    if "peer" in result:
        ratios = result["peer"]["ratios"]
        bars.append(("CPU over Kafka Streams'", ratios["cpu_s_per_million"], PEER_CPU_BAR))
        bars.append(("Kafka Streams' events/s over ours", 1 / ratios["events_per_s"], 1 / PEER_SPEED_BAR))
    for latency in result.get("latency", []):
        for name in ("conversions", "counts"):
            place = f"at {latency['rate']} events/s, {name}"
            bars.append((f"{place}: never came", latency[name]["missing"], 0))
            bars.append((f"{place}: p99, ms", latency[name].get("p99_ms", inf), latency["bars_ms"]["p99"]))
            bars.append((f"{place}: p50, ms", latency[name].get("p50_ms", inf), latency["bars_ms"]["p50"]))
    return found + [f"{name}: {value:,.2f}, the bar is {bar:,.2f}" for name, value, bar in bars if value > bar]


def print_report(result: dict[str, Any], console: Console) -> None:
    """The tables, and what failed."""
    console.print(_runs_table(result))
    console.print(_steps_table(result["medians"]["steps_us_per_event"]))
    if result.get("peer"):
        console.print(_peer_table(result["peer"]))
    if result.get("latency"):
        console.print(_latency_table(result["latency"]))
    for line in failures(result):
        console.print(f"[red]missed[/] {line}", highlight=False)


def _runs_table(result: dict[str, Any]) -> Table:
    table = Table(title=result["title"], title_justify="left")
    runs, middle = result["runs"], result["medians"]
    for name in ("", *(f"run {at}" for at in range(1, len(runs) + 1)), "median"):
        table.add_column(name, justify="right" if name else "left")
    columns = [*runs, middle]

    def add(label: str, *path: str, form: str = "{:,.2f}") -> None:
        table.add_row(label, *(form.format(_at(column, path)) for column in columns))

    add("events/s", "events_per_s", form="{:,.0f}")
    for part in (*PARTS, "total"):
        add(f"CPU s per million: {part}", "cpu_s_per_million", part)
    add("  floor (consume, decode, re-produce a seventh)", "floor", "cpu_s_per_million")
    add("  total / floor", "floor", "ratio")
    if middle["growth"]:
        for part in (*PARTS, "total"):
            add(f"  {part} from 1 to 3 million", "growth", "early", part)
            add(f"  {part} of the last 2 million", "growth", "late", part)
    add("CPU s of the broker", "broker_cpu_s")
    add("CPU s of everything else on the machine", "others_cpu_s")
    for part in PARTS:
        add(f"peak RSS MB: {part}", "peak_rss_mb", part, form="{:,.0f}")
    for part in ("counter", "aggregator"):
        add(f"page faults per million: {part}", "page_faults_per_million", part, form="{:,.0f}")
    add("Redis bytes per million events", "redis_bytes_per_million", form="{:,.0f}")
    add("  over the formula's", "redis_formula", "share")
    if all("verified" in run for run in runs):
        table.add_row("equal to the oracle", *("yes" if run["verified"]["exact"] else "NO" for run in runs), "")
    return table


def _at(column: dict[str, Any], path: tuple[str, ...]) -> float:
    value: Any = column
    for name in path:
        value = value[name]
    return value


def _steps_table(steps: dict[str, dict[str, float]]) -> Table:
    table = Table(title="Wall time by step, µs per event (read includes waiting)", title_justify="left")
    names = sorted({name for found in steps.values() for name in found})
    for name in ("", *names):
        table.add_column(name, justify="right" if name else "left")
    for role, found in steps.items():
        table.add_row(role, *(f"{found[name]:.2f}" if name in found else "" for name in names))
    return table


def _peer_table(peer: dict[str, Any]) -> Table:
    table = Table(title="Kafka Streams, exactly once, in memory, same broker and topic", title_justify="left")
    for name in ("run", "events/s", "CPU s per million", "peak RSS MB", "equal to the oracle"):
        table.add_column(name, justify="right")
    for at, run in enumerate(peer["runs"], 1):
        exact = "yes" if run["exact"] else "NO"
        table.add_row(
            str(at), f"{run['events_per_s']:,}", f"{run['cpu_s_per_million']:.2f}", f"{run['peak_rss_mb']:,}", exact
        )
    ratios = peer["ratios"]
    table.caption = f"onecount / Kafka Streams, medians: CPU {ratios['cpu_s_per_million']:.2f}, events/s {ratios['events_per_s']:.2f}"
    return table


def _latency_table(latencies: list[dict[str, Any]]) -> Table:
    table = Table(title="Latency, production until readable (read_committed), ms", title_justify="left")
    for name in ("events/s", "what", "samples", "p50", "p95", "p99", "max"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for latency in latencies:
        for name in ("conversions", "counts"):
            found = latency[name]
            figures = [f"{found[key]:.0f}" if key in found else "-" for key in ("p50_ms", "p95_ms", "p99_ms", "max_ms")]
            table.add_row(f"{latency['rate']:,}", name, f"{found['events']:,}", *figures)
    return table
