"""Refused events that an operator sends again, drops and looks at: each is counted exactly once, whatever happens."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from app.engine import maintenance
from app.engine.clients import KafkaClients
from app.letters import commands
from app.letters.marks import read_marks
from app.policy.load import load_policy
from app.policy.model import DAY_MS
from app.settings import from_environment
from tests.conftest import Services
from tests.integration.deployment import Deployment, deployed
from tests.integration.letters import (
    click,
    conversion,
    counted,
    now_ms,
    raw_ids,
    send,
    states,
    wait_for_letters,
    write_letters,
)

SKEW_MS = 300_000  # max_clock_skew of the policy


@pytest.fixture
def deployment(services: Services, topic_prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    with deployed(services.bootstrap, services.redis_url, topic_prefix, tmp_path) as running:
        yield running


Here = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def here(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    """Runs a command in this process, and gives what it says for scripts."""
    for name, value in deployment.environment.items():
        monkeypatch.setenv(name, value)
    from_environment.cache_clear()

    def run(*arguments: str, code: int = 0) -> list[dict[str, Any]]:
        done = CliRunner().invoke(commands.app, [*arguments, "--json"], catch_exceptions=False)
        assert done.exit_code == code, done.output
        return [orjson.loads(line) for line in done.stdout.splitlines()]

    yield run
    from_environment.cache_clear()


def retry(deployment: Deployment, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return deployment.onecount("dlq", "retry", "--yes", "--json", *arguments, **environment)


@pytest.mark.faults
@pytest.mark.timeout(180)
def test_refused_events_that_are_sent_again_are_counted_exactly_once_whatever_is_killed(
    here: Here, deployment: Deployment
) -> None:
    counter, aggregator = deployment.start("counter"), deployment.start("aggregator")
    early_ms = now_ms() + SKEW_MS + 10_000  # too early by 10 s
    early = [conversion(f"early-{number}", event_time=early_ms) for number in range(3)]
    mismatched = [conversion(f"e{number}") for number in range(39)]
    mismatched.append(conversion("large", padding="x" * 20_000))  # more than its letter keeps
    refused: list[tuple[bytes | None, bytes | None]] = [
        *((b"u1", orjson.dumps(event)) for event in early),
        *((b"nobody", orjson.dumps(event)) for event in mismatched),
        (b"u1", orjson.dumps(conversion("elsewhere", platform="nowhere"))),
        (b"u1", b'{"event_id": "cut'),
        (b"u1", orjson.dumps(conversion("aged", event_time=now_ms() - 8 * DAY_MS))),
        (b"u1", None),
    ]
    send(deployment, [(b"u1", orjson.dumps(click("k1"))), *refused])
    assert len(wait_for_letters(deployment, len(refused))) == len(refused)
    by_reason = {line["reason"]: line for line in here("list")}
    assert {name: line["open"] for name, line in by_reason.items()} == {
        "in_the_future": 3, "key_mismatch": 40, "unknown_platform": 1, "invalid_json": 1, "too_old": 1, "null_record": 1,
    }  # fmt: skip

    for failpoint in ("letters_produced", "letters_marked:2", "letters_committed"):  # 0, 10 and 10 of them are done
        killed = retry(deployment, "--reason", "key_mismatch", "--rate", "10", ONECOUNT_FAILPOINT=failpoint)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    time.sleep(max(0.0, (early_ms - SKEW_MS - now_ms()) / 1000))
    (result,) = here("retry", "--yes", code=1)  # some are left
    assert (result["done"], result["remaining"]) == (20 + 3, 0)
    assert {each["reason"]: each["why"] for each in result["left"]} == {
        name: f"would be refused again as {name}"
        for name in ("unknown_platform", "invalid_json", "too_old", "null_record")
    }
    report = deployment.assert_exact()
    assert sum(report.rejected.values()) == len(refused), "what was sent again was accepted"
    assert report.duplicates == 0, "not even the counters' own deduplication had anything to do"
    once = {event["event_id"]: 1 for event in (*early, *mismatched)}
    assert counted(deployment) == once

    # what is refused again is a letter of its own
    assert here("retry", "--yes", "--force", "--reason", "unknown_platform")[0]["done"] == 1
    places = [letter.coordinates for letter in wait_for_letters(deployment, len(refused) + 1)]
    deployment.assert_exact()
    shown = here("show", by_reason["unknown_platform"]["example"])[0]
    assert (shown["state"], shown["refused_again"]) == ("retried", "unknown_platform")
    assert shown["sent_again"] in places
    assert counted(deployment) == once
    assert [deployment.stop(worker) for worker in (counter, aggregator)] == [0, 0]


@pytest.mark.timeout(120)
def test_of_two_commands_at_once_the_later_one_goes_on_and_nothing_is_sent_twice(
    here: Here, deployment: Deployment
) -> None:
    write_letters(deployment, [conversion(f"e{number}") for number in range(30)], "key_mismatch")
    command = [sys.executable, "-m", "app", "dlq", "retry", "--yes", "--rate", "10"]
    paused = subprocess.Popen(
        command,
        env=os.environ | deployment.environment | {"ONECOUNT_FAILPOINT": "letters_marked:2:stop"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deployment.running.append(paused)  # type: ignore[arg-type]
    os.waitid(os.P_PID, paused.pid, os.WSTOPPED)
    assert here("retry", "--yes")[0]["done"] == 20
    paused.send_signal(signal.SIGCONT)
    said, why = paused.communicate(timeout=60)
    assert paused.returncode == 2, said + why
    assert "another `onecount dlq` command took over" in why
    assert "10 sent again" in said
    assert states(deployment) == {"retried": 30}
    assert set(raw_ids(deployment).values()) == {2}


def test_a_budget_a_selection_and_a_drop_leave_the_rest_open(here: Here, deployment: Deployment) -> None:
    places = write_letters(deployment, [conversion(f"e{number}") for number in range(25)], "key_mismatch")
    time.sleep(0.05)
    between_ms = now_ms()
    time.sleep(0.05)
    write_letters(deployment, [conversion(f"f{number}") for number in range(5)], "unknown_platform")
    begun_s = time.monotonic()
    assert here("retry", "--yes", "--reason", "key_mismatch", "--budget", "12", "--rate", "6") == [
        {"done": 12, "remaining": 13, "left": []}
    ]
    assert time.monotonic() - begun_s > 1, "12 letters at 6 a second"
    assert states(deployment) == {"retried": 12, "open": 18}
    # by time
    between = datetime.fromtimestamp(between_ms / 1000, UTC).isoformat()
    (later,) = here("list", "--since", between)
    assert (later["reason"], later["open"], later["newest_ms"] > between_ms) == ("unknown_platform", 5, True)
    assert sum(line["open"] + line["retried"] for line in here("list", "--until", between)) == 25
    # by source
    for place in places[:2]:
        (line,) = here("list", "--each", "--source", place)
        assert (line["coordinates"], line["reason"]) == (place, "key_mismatch")
    newest = here("list", "--each", "--limit", "6")
    assert [line["reason"] for line in newest] == [*["unknown_platform"] * 5, "key_mismatch"]
    assert [line["refused_ms"] for line in newest] == sorted((line["refused_ms"] for line in newest), reverse=True)
    # a drop, and a retry that takes a part of it back
    assert here("drop", "--yes", "--since", between) == [{"done": 5, "remaining": 0, "left": []}]
    assert here("retry", "--yes", "--since", between)[0]["done"] == 0, "only open letters are sent"
    assert here("retry", "--yes", "--state", "dropped", "--limit", "2") == [{"done": 2, "remaining": 3, "left": []}]
    assert states(deployment) == {"retried": 14, "dropped": 3, "open": 13}
    assert Counter(raw_ids(deployment).values()) == {1: 16, 2: 14}
    # counting anew takes no mark back: what was sent again lies in the raw topic still
    maintenance.reset(deployment.settings, load_policy(deployment.settings.policy)[0])
    kept = read_marks(deployment.settings, KafkaClients(deployment.settings))
    assert kept.count() == 17


def test_nothing_is_done_without_a_yes_and_bad_input_is_told(deployment: Deployment) -> None:
    write_letters(deployment, [conversion("e1")], "key_mismatch")
    asked = deployment.onecount("dlq", "retry")
    assert asked.returncode == 1
    assert "to send again: 1 of 1" in asked.stdout
    assert "Only do so if that, and not the key, is whose event it is" in asked.stdout
    assert states(deployment) == {"open": 1}
    refused = deployment.onecount("dlq", "list", "--since", "yesterday")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("'yesterday' is no time: write 30m, 2h, 7d or an ISO time")
    nothing = deployment.onecount("dlq", "show", "ads.events:1:7")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "no dead letter of ads.events:1:7" in nothing.stderr
