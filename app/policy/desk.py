"""What the desk goes by: time zones, what follow-up a lead needs, how far a platform's claims may be off. It changes no
count.
"""

from typing import Final
from zoneinfo import ZoneInfo

import msgspec

DEFAULT_TOLERANCE: Final = 0.05
CLOSED_KEPT_MS: Final = 90 * 86_400_000


class FollowUp(msgspec.Struct, frozen=True):
    """What a new lead needs, and within how long (ms) after its conversion."""

    what: str
    within_ms: int


class Desk(msgspec.Struct, frozen=True):
    """The policy's `desk` section."""

    time_zones: dict[str, str] = {}
    cost_currencies: dict[str, str] = {}
    follow_ups: dict[str, FollowUp] = {}
    tolerances: dict[str, float] = {}
    closed_kept_ms: int = CLOSED_KEPT_MS  # how long a lead that is won or lost stays on `leads`

    def zone(self, advertiser_id: str) -> ZoneInfo:
        """Where the advertiser's days and weeks begin; UTC where nothing is said."""
        return ZoneInfo(self.time_zones.get(advertiser_id, "UTC"))

    def cost_currency(self, advertiser_id: str) -> str:
        """What the costs of the advertiser's touches are in; "" where nothing is said."""
        return self.cost_currencies.get(advertiser_id, "")

    def tolerance(self, platform: str) -> float:
        """How far the platform's claims may be from what is counted, as a share of what is counted."""
        return self.tolerances.get(platform, self.tolerances.get("default", DEFAULT_TOLERANCE))
