"""How hard hypothesis looks: HYPOTHESIS_PROFILE is `ci` (the default: the same examples every time) or `deep` (new ones)."""

import os

from hypothesis import HealthCheck, settings

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
_COMMON = {
    "deadline": None,  # a busy machine is no bug
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
}
settings.register_profile("ci", derandomize=True, database=None, max_examples=300, **_COMMON)
settings.register_profile("deep", max_examples=20_000, **_COMMON)
settings.load_profile(PROFILE)
