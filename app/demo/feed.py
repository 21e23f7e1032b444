"""A child process that sends the demo's events: `python -m app.demo.feed RESULT.json '{"rate": 2000, ...}'`.

A process of its own, since producing would take the screen's share of Python's one running thread, and since it can be
ended at any moment. It writes what it did to RESULT.json; an error's words instead, if it had to give up.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from confluent_kafka import KafkaException

from app.generate import DeliveryError, open_producer, produce
from app.importer import ImportRefusedError, MappingError, import_file
from app.policy.load import load_policy
from app.settings import Settings, from_environment

# Late clicks come up to half an hour late, retractions up to ten minutes, and what began at the end of these minutes
# takes up to 45 more. So the demo plays an hour of event time, or hardly any correction would be seen in it.
STORY_S: Final = 15 * 60.0
_LONGER: Final = 1.25  # than asked for: a machine that cannot keep up sends fewer events, not for ever
_STEP: Final = 50


def main(result: Path, task: dict[str, Any]) -> None:
    """Generates or imports, and writes the result at once, so that a file that is there is whole."""
    try:
        settings = from_environment()
        done = _import(settings, result.parent, **task) if "file" in task else _generate(settings, **task)
    except (DeliveryError, ImportRefusedError, MappingError, KafkaException) as error:
        done = {"error": str(error)}
    draft = result.with_suffix(".new")
    draft.write_text(json.dumps(done))
    draft.replace(result)


class PacedProducer:
    """A producer that takes only so many records a second: the generator waits for it."""

    def __init__(self, producer: Any, rate: float) -> None:
        self._producer = producer
        self._rate = rate
        self._begun_s = time.monotonic()
        self._taken = 0
        self.poll, self.flush, self.list_topics = producer.poll, producer.flush, producer.list_topics

    def produce(self, *arguments: Any) -> None:
        """Takes a record, when it is time for it."""
        self._producer.produce(*arguments)
        self._taken += 1
        if self._taken % _STEP == 0:
            time.sleep(max(self._begun_s + self._taken / self._rate - time.monotonic(), 0.0))


def _generate(settings: Settings, rate: float, seconds: float) -> dict[str, Any]:
    count = int(rate * seconds)
    done = produce(
        settings,
        load_policy(settings.policy)[0],
        count=count,
        duration_s=seconds * _LONGER,
        events_per_s=count / STORY_S,
        open_with=lambda *arguments: PacedProducer(open_producer(*arguments), rate),
    )
    return {"sent": done.sent, "failed": done.failed, "kinds": done.kinds}


def _import(settings: Settings, folder: Path, file: str, mapping: str) -> dict[str, Any]:
    rejected = folder / "rejected.jsonl"
    policy = load_policy(settings.policy)[0]
    done = import_file(
        settings, policy, Path(file), Path(mapping), rejected, resume=False, state_path=folder / "import-state.json"
    )
    counters = {"events": dict(done.events), "rejected": dict(done.rejected), "skipped": dict(done.skipped)}
    return {"rows": done.rows, "sent": done.sent, "rejected_path": str(rejected), **counters}


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
