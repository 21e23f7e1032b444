"""`onecount replay`: recounts a time range beside the live workers, and says how the counts would differ.

    replay(settings, Wish(from_ms, to_ms, policy=Path("other.yaml")), Console())   # a Report

The counting is the ordinary one: worker processes that are given other names of topics, groups and Redis keys, and copies
of the live input in the order in which it was counted. Nothing live is written.
"""

from app.replay.refusal import ReplayRefused, Stopped
from app.replay.replaying import replay
from app.replay.report import as_json, print_report, write_csv
from app.replay.shadow import leftovers, remove
from app.replay.wish import Wish

__all__ = ["ReplayRefused", "Stopped", "Wish", "as_json", "leftovers", "print_report", "remove", "replay", "write_csv"]
