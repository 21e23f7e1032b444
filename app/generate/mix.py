"""How much of what is generated: one frozen record of proportions and sizes."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Mix:
    """The proportions (0..1 unless said otherwise) and sizes of a generated stream.

    The first block are weights of what starts a story at a position of the stream; they need not add up to one.
    Repeats, second reports, visits before a conversion and adjustments are extra records, so they thin the first block
    out a little.
    """

    # What happens next (weights).
    views: float = 0.72
    clicks: float = 0.17
    engaged_views: float = 0.03
    visits: float = 0.03
    conversions: float = 0.025
    invalid: float = 0.010

    # Of all sound events.
    repeats: float = 0.02  # sent again 1 to 46 s later with the later time: same event_id, other bytes
    retries: float = 0.005  # the same bytes again: a producer's retry
    foreign: float = 0.002  # on a partition that does not own the user
    rfc3339_times: float = 0.05  # event_time as text

    # Of the touches.
    costs: float = 0.5  # say what they cost
    late_clicks: float = 0.05  # of the clicks: arrive 1 s to 30 min after they happened ...
    late_clicks_that_matter: float = 0.5  # ... and their user converts in between

    # Of the conversions.
    after_touch: float = 0.85  # follow a recent touch of the same user; the others come out of the blue
    visited_before: float = 0.6  # one to three page views lead up to it
    without_platform: float = 0.10
    unknown_actions: float = 0.03
    empty_order_ids: float = 0.03
    by_click: float = (
        0.2  # and of the adjustments, where the policy has click_ids: of users who clicked, name the click instead
    )
    by_unknown_click: float = 0.02  # of those: a click that never comes

    # Of the orders (conversions of a macro action).
    second_reports: float = 0.30  # the server reports what the pixel did, 1 to 60 s apart, under another event_id
    shared_reports: float = (
        0.15  # the page and the server report it by one event_id, 1 to 60 s apart; the page knows no order_id
    )
    other_platform_reports: float = 0.03  # another platform's pixel reports it too
    reused_order_ids: float = 0.005  # the order_id is an earlier one of another user
    adjustments: float = 0.08  # retracted or restated 1 s to 10 min later

    # Of the adjustments.
    adjustments_early: float = 0.15  # arrive before the conversion that they name
    adjustments_twice: float = 0.15  # are sent again as another event
    adjustments_preceding: float = 0.10  # are older than the order that they name

    # Sizes (numbers, not proportions).
    advertisers: int = 5
    users: int = 100_000  # Zipf: some are seen all the time, most hardly ever
    campaigns: int = 6  # of each advertiser on each platform
    ads: int = 4  # of each campaign

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("advertisers", "users", "campaigns", "ads"):
                if value < 1:
                    raise ValueError(f"mix: {field.name} must be at least 1, not {value}")
            elif not 0 <= value <= 1:
                raise ValueError(f"mix: {field.name} must lie between 0 and 1, not {value}")
        if not any((self.views, self.clicks, self.engaged_views, self.visits, self.conversions, self.invalid)):
            raise ValueError("mix: nothing would be generated, every weight is 0")
