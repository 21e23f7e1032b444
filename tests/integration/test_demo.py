"""The demo runs from beginning to end by itself, and leaves nothing behind however it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

MARK = "DEMO_TEST_FOLDER"
ENDS_WITHIN_S = 240.0
STARTS_WITHIN_S = 120.0
GONE_WITHIN_S = 5.0

SHOP_ROWS = """\
file_date,client_id,page_url,referrer,timestamp,event_name,event_data,user_agent
1,u1,https://shop.example/?gclid=g1&utm_campaign=spring,,2025-03-01T10:00:00.000Z,page_viewed,,x
1,u1,https://shop.example/?gclid=g1&utm_campaign=spring,,2025-03-01T10:00:20.000Z,page_viewed,,x
1,u2,https://shop.example/?fbclid=f1&utm_campaign=video,,2025-03-01T10:01:00.000Z,page_viewed,,x
1,,https://shop.example/?fbclid=f2&utm_campaign=video,,2025-03-01T10:02:00.000Z,page_viewed,,x
1,u1,https://shop.example/thanks,,2025-03-01T10:05:00.000Z,checkout_completed,"{""transaction_id"": ""o1"", ""revenue"": 120.5}",x
1,u3,https://shop.example/thanks,,2025-03-01T10:06:00.000Z,checkout_completed,"{""transaction_id"": ""o2"", ""revenue"": 80}",x
"""


@pytest.fixture
def demo(tmp_path: Path) -> Iterator["Demo"]:
    folder = tmp_path / "tmp"
    folder.mkdir()
    running = Demo(folder, tmp_path / "output")
    yield running
    running.clean_up()


class Demo:
    """`onecount demo` as a newcomer runs it, its output in a file and its temporary folders in one that can be looked at."""

    def __init__(self, folder: Path, output: Path) -> None:
        self.folder = folder
        self.output_path = output
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        variables = os.environ | {"TMPDIR": str(self.folder), MARK: str(self.folder), "COLUMNS": "100"}
        with self.output_path.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", "demo", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=variables,
            )

    @property
    def output(self) -> str:
        return self.output_path.read_text()

    def wait_for(self, words: str) -> None:
        deadline_s = time.monotonic() + STARTS_WITHIN_S
        while words not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline_s, self.output
            time.sleep(0.05)

    def processes(self) -> list[int]:
        """All that descend from the demo, whoever their parent is now."""
        mark = f"{MARK}={self.folder}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found

    def is_gone(self) -> bool:
        deadline_s = time.monotonic() + GONE_WITHIN_S
        while self.processes():
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.05)
        return True

    def clean_up(self) -> None:
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()


def test_the_demo_survives_its_fault_and_is_verified(demo: Demo) -> None:
    demo.start("--seconds", "8", "--rate", "500")
    assert demo.process.wait(ENDS_WITHIN_S) == 0, demo.output
    for words in (
        "kill -9",
        "back after",
        "onecount verify",
        "events produced",
        "4,000",
        "verified:",
        "What you just saw",
    ):
        assert words in demo.output, words
    assert demo.is_gone()
    assert list(demo.folder.iterdir()) == []


def test_a_file_is_counted_and_its_tables_are_shown(demo: Demo, tmp_path: Path) -> None:
    file = tmp_path / "shop-2025.csv"
    file.write_text(SHOP_ROWS)
    demo.start("--input", str(file))
    assert demo.process.wait(ENDS_WITHIN_S) == 0, demo.output
    lines = [" ".join(line.split()) for line in demo.output.splitlines()]
    assert "google_ads 1 1 120.50" in lines
    assert "purchase 1 1 120.50" in lines
    assert "google_ads spring 1 1 120.50" in lines
    assert "Rejected rows of the file: 1, such as" in lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["output", "shop-2025.csv", "tmp"]
    assert demo.is_gone()
    assert list(demo.folder.iterdir()) == []


@pytest.mark.faults
@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, id="Ctrl-C"), pytest.param(signal.SIGTERM, id="SIGTERM")])
def test_nothing_is_left_when_the_demo_is_stopped_half_way(demo: Demo, how: signal.Signals) -> None:
    demo.start("--seconds", "60", "--rate", "500")
    demo.wait_for("produced")
    assert len(demo.processes()) > 5
    demo.process.send_signal(how)
    assert demo.process.wait(30) == 130, demo.output
    assert "stopped" in demo.output
    assert "Traceback" not in demo.output
    assert demo.is_gone()
    assert list(demo.folder.iterdir()) == []


def test_a_file_without_a_mapping_is_refused_before_anything_starts(demo: Demo, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("a,b\n1,2\n")
    demo.start("--input", str(file))
    assert demo.process.wait(ENDS_WITHIN_S) == 2
    assert "no mapping is known for mine.csv" in demo.output
    assert "Kafka" not in demo.output
