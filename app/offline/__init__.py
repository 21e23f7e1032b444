"""Offline conversions in and out: what became of an imported file's rows, and the files that ad platforms take.

report = Report(mapping.codes)                              # import_file(..., watch=report.note)
write_report(settings, policy, report, Path("report.csv"), wait_s=60)
export(settings, policy, Wish(...), now_ms)
"""

from app.offline.refusal import OfflineError

__all__ = ["OfflineError"]
