"""The gateway keeps its OpenAPI document, whatever comes: Schemathesis makes the requests from the document.

A few seconds of it here; `make fuzz-gateway` goes on for longer (MINUTES, 5).
"""

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from tests.gateway.harness import KEY, ORIGIN, Gateway, now_ms, visit

CONFIG = Path(__file__).with_name("schemathesis.toml")
SECONDS = round(float(os.environ.get("MINUTES", "0")) * 60)


def run_schemathesis(gateway: Gateway, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        "--config-file",
        str(CONFIG),
        "run",
        f"{gateway.url}/openapi.json",
    ]
    headers = ["-H", f"Authorization: Bearer {KEY}", "-H", f"Origin: {ORIGIN}"]
    return subprocess.run(
        [*command, *headers, *arguments],
        cwd=gateway.deployment.folder,  # it leaves files
        capture_output=True,
        text=True,
        timeout=SECONDS * 2 + 300,
        check=False,
    )


@pytest.mark.timeout(SECONDS * 2 + 360)
def test_it_keeps_its_document_whatever_comes(gateway: Gateway) -> None:
    short = ["--phases", "fuzzing", "--max-examples", "30"]
    examples = ["--max-examples", "100000", "--max-time", str(SECONDS)] if SECONDS else short
    done = run_schemathesis(gateway, "--seed", os.environ.get("SEED", "1"), *examples)
    assert "Tested: 6" in done.stdout, done.stdout
    assert done.returncode == 0, done.stdout[-8_000:] + done.stderr[-2_000:]
    assert gateway.process.poll() is None
    assert b"an answer failed" not in gateway.log.read_bytes()
    assert gateway.post(visit("after-all", event_time=now_ms())).status_code == 202


def test_the_document_is_served_as_the_command_prints_it(gateway: Gateway) -> None:
    served = gateway.get("/openapi.json").json()
    printed = gateway.deployment.onecount("gateway", "openapi")
    assert served == orjson.loads(printed.stdout)
    assert served["openapi"] == "3.1.0"
    assert set(served["paths"]) == {
        "/v1/events",
        "/v1/conversions",
        "/v1/adjustments",
        "/v1/browser",
        "/p.gif",
        "/healthz",
    }
