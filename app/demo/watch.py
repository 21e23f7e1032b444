"""The middle of the demo: events flow in, rows come out, and a frame is drawn from them until all is counted."""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from confluent_kafka import OFFSET_BEGINNING, TopicPartition
from rich.markup import escape

from app.demo.fault import Fault, advance
from app.demo.scene import PARTITIONS, Scene
from app.demo.screen import Picture
from app.demo.show import Show
from app.demo.tally import ATTRIBUTED, COUNTS, LETTERS, Tally, fold_row
from app.engine.clients import KafkaClients
from app.importer import ImportRefusedError
from app.local import LocalServiceError
from app.local.processes import ChildProcess, tail
from app.settings import Settings

_LOOK_EVERY_S: Final = 0.5
FRAME_S: Final = 0.2
_MOST_ROWS: Final = 20_000  # a frame
_QUIET_S: Final = 1.5  # without a new row, once all events are counted: then the aggregator should be done too
_STUCK_S: Final = 90.0  # without any progress; a restart on a busy machine takes some 10


class Feed:
    """The child that sends the events."""

    def __init__(self, task: dict[str, Any], folder: Path) -> None:
        self.task = task
        self.expected = None if "file" in task else int(task["rate"] * task["seconds"])
        self._result = folder / "feed.json"
        self._log = folder / "feed.log"
        arguments = [sys.executable, "-m", "app.demo.feed", str(self._result), json.dumps(task)]
        self._child = ChildProcess("what sends the events", arguments, self._log)

    def start(self) -> None:
        """Starts sending."""
        self._child.start()

    def end(self) -> None:
        """Stops sending at once. Fine if it has ended."""
        self._child.kill()

    def result(self) -> dict[str, Any] | None:
        """What was sent, None while it is being sent. Raises what the child could not do."""
        running = self._child.is_running  # asked first: a result may appear, but never go
        if not self._result.exists():
            if running:
                return None
            raise LocalServiceError(f"the process that sends the events ended by itself.\n{tail(self._log)}")
        done = json.loads(self._result.read_text())
        if "error" in done:
            raise ImportRefusedError(done["error"])
        return done


class Follower:
    """Reads all that comes out, from the beginning, and folds it."""

    def __init__(self, settings: Settings) -> None:
        self.tally = Tally()
        self._kinds = {
            settings.counts_topic: COUNTS,
            settings.attributed_topic: ATTRIBUTED,
            settings.dlq_topic: LETTERS,
        }
        self._consumer = KafkaClients(settings).reader()
        places = [TopicPartition(topic, number) for topic in self._kinds for number in range(PARTITIONS)]
        for place in places:
            place.offset = OFFSET_BEGINNING
        self._consumer.assign(places)
        self.close = self._consumer.close

    def take(self, timeout_s: float) -> int:
        """Takes in what comes within so many seconds; how many rows."""
        rows = [message for message in self._consumer.consume(_MOST_ROWS, timeout_s) if message.error() is None]
        for row in rows:
            fold_row(self.tally, self._kinds[row.topic()], row.key(), row.value())
        return len(rows)


@dataclass
class Progress:
    """How the run stands; points of time.monotonic()."""

    begun_s: float | None = None  # the first event was there
    looked_s: float = 0.0
    moved_s: float = field(default_factory=time.monotonic)  # a row came, or more was counted
    counted: int = 0


def watch(
    scene: Scene, feed: Feed, follower: Follower, fault: Fault | None, show: Show
) -> tuple[Picture, dict[str, Any]]:
    """Until everything that was sent is counted: the last picture, and what was sent. `fault` None: nobody is killed."""
    picture = Picture(follower.tally, scene.gauge.figures, phase="events are coming")
    progress = Progress()
    while True:
        if follower.take(FRAME_S):
            progress.moved_s = time.monotonic()
        now_s = time.monotonic()
        if now_s - progress.looked_s >= _LOOK_EVERY_S:
            progress.looked_s = now_s
            done = _look(scene, feed, fault, picture, progress)
            if done is not None and _is_over(picture, fault, progress):
                elapsed_s = progress.moved_s - (progress.begun_s or progress.moved_s)
                picture.figures.per_second = picture.figures.counted / max(elapsed_s, 1.0)
                return picture, done
        show(picture)


def _look(scene: Scene, feed: Feed, fault: Fault | None, picture: Picture, progress: Progress) -> dict[str, Any] | None:
    """Brings numbers, clock and phase up to date, and the fault on its way; what was sent, once it all is."""
    scene.check()
    done = feed.result()
    figures = scene.gauge.look()
    now_s = time.monotonic()
    if progress.begun_s is None and figures.produced:
        progress.begun_s = now_s
    if figures.counted != progress.counted:
        progress.counted, progress.moved_s = figures.counted, now_s
    if progress.begun_s is not None:
        elapsed_s = int(now_s - progress.begun_s)
        picture.clock = f"{elapsed_s // 60}:{elapsed_s % 60:02}"
    picture.phase, picture.share = _phase(feed, figures.produced, figures.counted, done is not None)
    if fault is not None:
        share = figures.produced / feed.expected if feed.expected else 0.0
        words = advance(fault, scene.counters, figures, share, picture.clock)
        if words is not None:
            picture.notes.append(words)
            progress.moved_s = now_s
    if done is not None and now_s - progress.moved_s > _STUCK_S:
        logs = (scene.counters.log_path, scene.aggregators.log_path)
        raise LocalServiceError(
            "\n".join(["counting stands still.", *(f"--- end of {log}\n{tail(log)}" for log in logs)])
        )
    return done


def _phase(feed: Feed, produced: int, counted: int, sent: bool) -> tuple[str, float | None]:
    """What is going on, and how much of it is over (0 to 1; None: unknown)."""
    if sent:
        return "counting the rest", counted / produced if produced else 1.0
    if feed.expected is not None:
        return "counting live", min(produced / feed.expected, 1.0)
    name = escape(Path(feed.task["file"]).name)
    return (f"sending {name}" if produced else f"reading {name}"), None


def _is_over(picture: Picture, fault: Fault | None, progress: Progress) -> bool:
    return (
        not picture.figures.lag
        and all(picture.figures.ready.values())
        and (fault is None or fault.over)
        and time.monotonic() - progress.moved_s > _QUIET_S
    )
