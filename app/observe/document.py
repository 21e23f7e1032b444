"""docs/metrics.md, made from the catalogue. `python -m app.observe.document docs/metrics.md` writes it; a test compares what is
committed with the code.
"""

import sys
from pathlib import Path

from app.observe.catalogue import FOREIGN, GROUPS
from app.observe.metric import ALL, Metric

_HEAD = """\
# Metrics

Made from `app/observe/catalogue.py` by `python -m app.observe.document docs/metrics.md`.

Each worker answers `/metrics` on `ONECOUNT_METRICS_PORT` plus its slot (see [deploy.md](deploy.md)). Every series is there from
the start, with 0. Labels have few values: platforms, reasons and the like, never a user, a campaign or an offset. Which worker
it is (`instance`) and its stage (`stage`: counter, aggregator, matcher, desk or gateway) are added by Prometheus. Alarms and what to do about them:
[runbook.md](runbook.md).

A repeat of an event with another payload is dropped like any repeat and not told apart ([decisions.md](decisions.md), 11),
so there is no metric of conflicts; but of a conversion's further reports it is told how many were merged.
"""
_COLUMNS = ("metric", "kind", "labels", "of", "what it is", "what it means", "when it looks wrong")


def metrics_document() -> str:
    """The whole page."""
    parts = [_HEAD]
    for title, metrics in GROUPS.items():
        parts.append(f"## {title}\n\n{_table(metrics)}\n")
    rows = "\n".join(f"| `{name}` | {text} |" for name, text in FOREIGN.items())
    parts.append(
        f"## Not ours, but on the dashboards and in alarms\n\n| metric | what it is |\n| --- | --- |\n{rows}\n"
    )
    return "\n".join(parts)


def _table(metrics: tuple[Metric, ...]) -> str:
    lines = [f"| {' | '.join(_COLUMNS)} |", f"|{' --- |' * len(_COLUMNS)}"]
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        who = "all" if metric.roles == ALL else ", ".join(f"{role}s" for role in metric.roles)
        cells = (f"`{metric.name}`", metric.kind, labels, who, metric.help, metric.meaning, metric.remedy)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(metrics_document())
