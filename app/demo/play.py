"""The demo from beginning to end: the scene opens, events are counted, and `verify` has the last word."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any, Final

from rich.console import Console
from rich.markup import escape

from app.demo.fault import Fault
from app.demo.figures import DUPLICATES, NOISE
from app.demo.known_files import mapping_for
from app.demo.outcome import (
    claimed_words,
    generated_words,
    import_table,
    never_credited,
    outcome_tables,
    rejected_examples,
)
from app.demo.scene import Scene, open_scene
from app.demo.screen import Picture
from app.demo.show import Show, frames, show_all
from app.demo.watch import FRAME_S, Feed, Follower, watch
from app.engine.clients import KafkaClients
from app.engine.policy_topic import recorded_policy
from app.importer import load_mapping
from app.verify.compare import verify
from app.verify.report import Report, print_report

INTERRUPTED: Final = 130  # as shells report a program that Ctrl-C ended
FAILED: Final = 1
_VERIFY_WAIT_S: Final = 60.0
_DIFFERENCES_SHOWN: Final = 5


def run_demo(console: Console, *, seconds: float, rate: float, file: Path | None, mapping: Path | None) -> int:
    """Plays the demo with generated events, or with a file's rows; the exit code: 0 only if `verify` found all equal.

    Raises the errors of the rooms it uses (`LocalServiceError`, `ImportRefusedError`, `MappingError`, `PolicyError`,
    `VerifyError`), with everything ended and removed.
    """
    task: dict[str, Any] = {"rate": rate, "seconds": seconds}
    if file is not None:
        mapping = mapping_for(file, mapping)
        load_mapping(mapping)  # a wrong one is told before Kafka starts
        task = {"file": str(file.resolve()), "mapping": str(mapping.resolve())}
    try:
        with interruptible():
            return _play(console, task)
    except KeyboardInterrupt:
        console.print("\n[yellow]stopped[/]; nothing is left running, and no file")
        return INTERRUPTED


def _play(console: Console, task: dict[str, Any]) -> int:
    started_s = time.monotonic()
    console.print(_opening_words(task), highlight=False)
    with ExitStack() as stack:
        with console.status("starting Kafka and Redis") as status:

            def say(words: str, then: str) -> None:
                console.print(f"  [green]ready[/]  {words}", highlight=False)
                status.update(then)

            scene = stack.enter_context(open_scene(say, keep_forever="file" in task))
        feed = Feed(task, scene.folder)
        stack.callback(feed.end)
        fault = None if "file" in task else Fault()
        feed.start()
        follower = stack.enter_context(closing(Follower(scene.settings)))
        with frames(console) as show:
            picture, done = watch(scene, feed, follower, fault, show)
            report = _verify(console, scene, follower, picture, show)
        if "file" not in task:  # else the tables of the end say the same in full
            show_all(console, picture)
        print_report(report, console)
        _closing_words(console, scene, picture, task, done, fault, report.ok)
    console.print(f"[dim]All of it took {time.monotonic() - started_s:.0f} s; nothing is left running, and no file.[/]")
    return 0 if report.ok else FAILED


def _opening_words(task: dict[str, Any]) -> str:
    if "file" in task:
        return (
            f"[bold]onecount[/] counts {escape(Path(task['file']).name)}, read by {escape(Path(task['mapping']).name)}"
        )
    return (
        f"[bold]onecount[/] counts an hour of made-up ads: {task['rate']:,.0f} events/s for {task['seconds']:.0f} s, and one "
        "kill -9"
    )


def _verify(console: Console, scene: Scene, follower: Follower, picture: Picture, show: Show) -> Report:
    """What `verify` found; meanwhile the picture stays. Afterwards it shows the exact numbers, where `verify` has them."""
    picture.phase, picture.share = "verify computes it all anew", None
    if not console.is_terminal:
        console.print("verify computes it all anew from the raw events, slowly and by other code")
    found: Future[Report] = Future()
    Thread(target=_compute, args=(scene, found), name="verify", daemon=True).start()
    while follower.take(FRAME_S) or not found.done():  # so the last picture has the last row
        if console.is_terminal:
            show(picture)
    report = found.result()
    picture.phase, picture.share = ("[green]all equal[/]" if report.ok else "[red]differs[/]"), 1.0
    # a killed worker took its last numbers with it
    picture.figures.workers[DUPLICATES], picture.figures.workers[NOISE] = report.duplicates, report.noise
    return report


def _compute(scene: Scene, found: Future[Report]) -> None:
    try:
        policy = recorded_policy(scene.settings, KafkaClients(scene.settings))
        found.set_result(verify(scene.settings, policy, show=_DIFFERENCES_SHOWN, wait_s=_VERIFY_WAIT_S))
    except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
        found.set_exception(error)


def _closing_words(
    console: Console,
    scene: Scene,
    picture: Picture,
    task: dict[str, Any],
    done: dict[str, Any],
    fault: Fault | None,
    equal: bool,
) -> None:
    if "file" in task:
        _tell_outcome(console, scene, picture, done)
    else:
        console.print(f"\n[bold]What you just saw[/]\n{generated_words(done)}.", highlight=False)
        if fault is not None and fault.back_s is not None and fault.killed_s is not None:
            console.print(
                f"One of two workers was killed with -9 and was back after {fault.back_s - fault.killed_s:.1f} s."
                + (" Not one event was lost or counted twice." if equal else ""),
                highlight=False,
            )
        if claimed := claimed_words(picture.tally):
            console.print(claimed, highlight=False)
    if not equal:
        console.print("[bold red]What was published differs from the answer: that is a defect. Please report it.[/]")
    console.print(_next_words(task), highlight=False)


def _tell_outcome(console: Console, scene: Scene, picture: Picture, done: dict[str, Any]) -> None:
    for table in (import_table(done), *outcome_tables(picture.tally)):
        console.print()
        console.print(table)
    if claimed := claimed_words(picture.tally):
        console.print(f"\n{claimed}", highlight=False)
    rejected = sum(done["rejected"].values())
    if rejected:
        console.print()
        console.print(f"Rejected rows of the file: {rejected:,}, such as", highlight=False)
        for example in rejected_examples(Path(done["rejected_path"])):
            console.print(f"  {escape(example)}", highlight=False)
        console.print("They were in a temporary file; `onecount import` writes them beside the input.", highlight=False)
    for words in never_credited(picture.tally, scene.policy):
        console.print(f"\n[yellow]note:[/] {escape(words)}", highlight=False)


def _next_words(task: dict[str, Any]) -> str:
    lines = [("onecount demo --input FILE --map MAPPING", "a file of yours; see deploy/mappings")]
    if "file" in task:
        lines = [("onecount demo", "made-up events, and a worker killed on the way")]
    lines += [
        ("docker compose up", "all of it to stay, with dashboards"),
        ("onecount check", "is your own Kafka and Redis fit?"),
        ("onecount verify", "recompute and compare, at any time"),
    ]
    width = max(len(command) for command, _ in lines)
    return "\n[bold]Next[/]\n" + "\n".join(f"  [cyan]{command:<{width}}[/]  {words}" for command, words in lines)


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and a closed terminal end the demo as Ctrl-C does; only the first counts, so that tidying up is not cut."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
