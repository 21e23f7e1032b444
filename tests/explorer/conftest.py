"""Tells at the end of a test run how much was explored."""

import pytest

from app.engine import ledger, loop, rebuild
from tests.explorer.explore import EXPLORED


@pytest.fixture(autouse=True)
def _simpler_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs are raised by chance, so that no two are alike; here, worlds that differ by them only are one state. Nobody waits."""
    monkeypatch.setattr(ledger, "EPOCH_STEP_MAX", 1)
    monkeypatch.setattr(rebuild, "SETTLED_S", 0)
    monkeypatch.setattr(rebuild, "HEARD_S", 0)
    monkeypatch.setattr(loop, "give_back", lambda: None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each test that explored, in whatever process it ran."""
    for report in (*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())):
        for name, summary in report.user_properties:
            if name == EXPLORED:
                terminalreporter.write_line(f"explorer: {report.location[2]}: {summary}")
