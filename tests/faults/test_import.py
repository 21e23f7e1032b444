"""Imports of very large files: memory that does not grow with them, and kills in the midst that neither lose nor double.

`ROWS=500000 make faults ARGS="-k test_import"` takes another number of rows than 2,000,000.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import orjson
import pytest
from openpyxl import Workbook

from app.engine.clients import KafkaClients
from app.letters.log import committed_spans, read_committed
from tests.integration.deployment import Deployment

HEADER = (
    "Google Click ID",
    "Conversion Name",
    "Conversion Time",
    "Conversion Value",
    "Conversion Currency",
    "Order ID",
    "User ID",
)
SMALL, LARGE = (
    200_000,
    int(os.environ.get("ROWS") or 2_000_000),
)  # rows; the smaller file already fills what is held in memory at once
SHEET_SMALL, SHEET_LARGE = 50_000, 200_000
BAD_EVERY = 1_000
START_S = 1_790_000_000  # of the rows' times: a second a row, shuffled within the day
GROWTH_KB = 24 * 1024
BATCH = 10_000  # what a kill can send twice: app/importer/sending.py


def row(number: int) -> tuple[str, ...]:
    """A row; each thousandth has a time that is none. Times jump within a day, as in an export of a CRM."""
    moment = time.gmtime(START_S + number * 7919 % 86_400 + number // 86_400 * 86_400)
    when = "soon" if number % BAD_EVERY == BAD_EVERY - 1 else time.strftime("%Y-%m-%d %H:%M:%S", moment)
    return (
        f"Cj0KCQ{number:040x}",
        "purchase",
        when,
        f"{number % 500}.5",
        "EUR",
        f"order-{number}",
        f"user-{number % 300_000}",
    )


def write_csv(path: Path, rows: int) -> Path:
    with path.open("w") as file:
        file.write("Parameters:TimeZone=+0000\n" + ",".join(HEADER) + "\n")
        file.writelines(",".join(row(number)) + "\n" for number in range(rows))
    return path


def write_sheet(path: Path, rows: int) -> Path:
    book = Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(("Parameters:TimeZone=+0000",))
    sheet.append(HEADER)
    for number in range(rows):
        sheet.append(row(number))
    book.save(path)
    return path


def start(deployment: Deployment, file: Path, *options: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "app",
        "import",
        str(file),
        "--map",
        "google_ads",
        "--advertiser",
        "shop",
        *options,
    ]
    with (deployment.folder / "import.log").open("ab") as log:
        return subprocess.Popen(command, env=os.environ | deployment.environment, stdout=log, stderr=log)


def finish(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """The exit code, and the most memory that it held (KiB)."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss


def measured(deployment: Deployment, file: Path, *options: str) -> int:
    begun = time.monotonic()
    code, peak_kb = finish(start(deployment, file, *options))
    log = (deployment.folder / "import.log").read_text()
    assert code == 0, log[-3000:]
    print(f"\n{file.name} {' '.join(options[:1])}: {time.monotonic() - begun:.0f} s, {peak_kb // 1024} MiB")  # noqa: T201 - a figure
    return peak_kb


def sent(deployment: Deployment) -> Counter[str]:
    """How often each event lies in the raw topic."""
    topic = deployment.settings.events_topics[0]
    found = read_committed(KafkaClients(deployment.settings), topic, committed_spans(deployment.settings, topic))
    return Counter(orjson.loads(message.value())["order_id"] for message in found)


@pytest.mark.timeout(1_200)
def test_two_million_rows_are_judged_and_reported_in_the_memory_of_a_tenth(
    deployment: Deployment, tmp_path: Path
) -> None:
    small, large = write_csv(tmp_path / "small.csv", SMALL), write_csv(tmp_path / "large.csv", LARGE)
    report = tmp_path / "report.csv"
    small_kb, large_kb = (measured(deployment, file, "--dry-run", "--report", str(report)) for file in (small, large))
    assert large_kb < small_kb + GROWTH_KB
    with report.open() as file:
        assert sum(1 for _ in file) == LARGE + 1


@pytest.mark.timeout(1_200)
def test_two_million_rows_are_sent_in_the_memory_of_a_tenth(deployment: Deployment, tmp_path: Path) -> None:
    small, large = write_csv(tmp_path / "small.csv", SMALL), write_csv(tmp_path / "large.csv", LARGE)
    small_kb, large_kb = (measured(deployment, file) for file in (small, large))
    assert large_kb < small_kb + GROWTH_KB
    found = sent(deployment)
    assert len(found) == LARGE - LARGE // BAD_EVERY
    assert set(found.values()) == {1, 2}  # the smaller file's rows lie in it twice
    rejected = (tmp_path / "large.csv.rejected.jsonl").read_text().splitlines()
    assert len(rejected) == LARGE // BAD_EVERY
    assert json.loads(rejected[0])["reason"] == "unreadable_time"


@pytest.mark.timeout(600)
def test_a_workbook_takes_memory_for_its_texts_only(deployment: Deployment, tmp_path: Path) -> None:
    small, large = write_sheet(tmp_path / "small.xlsx", SHEET_SMALL), write_sheet(tmp_path / "large.xlsx", SHEET_LARGE)
    small_kb, large_kb = (measured(deployment, file, "--dry-run") for file in (small, large))
    texts = 3 * (SHEET_LARGE - SHEET_SMALL)  # cells that are no repeats: click id, time, order
    assert (large_kb - small_kb) * 1024 < texts * 200 + GROWTH_KB * 1024


@pytest.mark.timeout(600)
def test_an_import_that_is_killed_again_and_again_sends_every_row(
    deployment: Deployment, tmp_path: Path, chance: random.Random
) -> None:
    file = write_csv(tmp_path / "rows.csv", SMALL)
    state = tmp_path / "rows.csv.import-state.json"
    kills = 4
    for _ in range(kills):
        kill_in_the_midst(deployment, file, state, chance)
    assert finish(start(deployment, file))[0] == 0, (deployment.folder / "import.log").read_text()[-3000:]
    found = sent(deployment)
    assert len(found) == SMALL - SMALL // BAD_EVERY
    assert sum(found.values()) - len(found) <= kills * BATCH
    assert finish(start(deployment, file))[0] == 0
    assert sent(deployment) == found


def kill_in_the_midst(deployment: Deployment, file: Path, state: Path, chance: random.Random) -> None:
    """Mostly while it sends, else at any time, also while it judges."""
    before = delivered(state)
    process = start(deployment, file)
    if chance.random() < 0.75:
        deployment.wait_until(lambda: delivered(state) > before or process.poll() is not None, "it sends", 120)
    time.sleep(chance.random() / 2)
    process.kill()
    process.wait()


def delivered(state: Path) -> int:
    return json.loads(state.read_text())["delivered"] if state.exists() else 0
