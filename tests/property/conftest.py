"""How hard hypothesis looks: HYPOTHESIS_PROFILE is `ci` (the default: the same examples every time) or `deep` (new ones)."""

import os

import pytest
from hypothesis import HealthCheck, settings

_PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
_COMMON = {
    "deadline": None,  # a busy machine is no bug
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
}
settings.register_profile("ci", derandomize=True, database=None, max_examples=300, **_COMMON)
settings.register_profile("deep", max_examples=20_000, **_COMMON)
settings.load_profile(_PROFILE)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how a failure can be had again, and how to look for new ones."""
    seed = "fixed by each test's own source (derandomize)" if settings.default.derandomize else "new each time"
    terminalreporter.write_line(
        f"hypothesis: profile {_PROFILE}, {settings.default.max_examples} examples a test unless it says otherwise; seed {seed}; "
        "HYPOTHESIS_PROFILE=deep looks for new ones"
    )
