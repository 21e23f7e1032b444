"""Kafka Streams on the same broker and topic, for the ratio; run by the peer's own script, which Maven builds on the first call."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from tests.bench.progress import BenchError
from tests.bench.workload import EVENTS_TOPIC, Workload

TIMEOUT_S: Final = 900


def run_kafka_streams(workload: Workload, bootstrap: str, broker_pid: int, folder: Path) -> dict[str, Any]:
    """One run of the peer and what the verifier says of its output. Raises `BenchError` where it cannot be built or run."""
    script = workload.peers / "kafka-streams" / "run.sh"
    if not script.is_file():
        raise BenchError(f"there is no {script}")
    environment = {
        **os.environ,
        "TOPIC": EVENTS_TOPIC,
        "BROKER_PID": str(broker_pid),
        "PY": sys.executable,
        "W1_HOME": os.environ.get("W1_HOME", str(folder)),
    }
    argv = [str(script), bootstrap, str(workload.n)]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode or not done.stdout.startswith("{"):
        raise BenchError(f"{script} failed (exit code {done.returncode}):\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "exact": workload.verify(bootstrap)["exact"]}
