"""Tells at the end of a test run how hard hypothesis looked."""

import pytest
from hypothesis import settings

from tests.hypothesis_profile import PROFILE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how a failure can be had again, and how to look for new ones."""
    seed = "fixed by each test's own source (derandomize)" if settings.default.derandomize else "new each time"
    terminalreporter.write_line(
        f"hypothesis: profile {PROFILE}, {settings.default.max_examples} examples a test unless it says otherwise; seed {seed}; "
        "HYPOTHESIS_PROFILE=deep looks for new ones"
    )
