"""Where frames go: a live screen on a terminal, now and then a line elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.live import Live

from app.demo.screen import Picture, draw, plain_line

LINE_EVERY_S: Final = 4.0
_ALL_OF_IT: Final = 1_000  # lines: what is printed at the end may scroll

Show = Callable[[Picture], None]


@contextmanager
def frames(console: Console) -> Iterator[Show]:
    """A function that shows a picture. On a terminal the frames leave nothing behind; print `draw` afterwards."""
    if not console.is_terminal:
        yield _lines(console)
        return
    with Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop") as live:
        yield lambda picture: live.update(draw(picture, console.width, console.height), refresh=True)


def _lines(console: Console) -> Show:
    shown_s = time.monotonic()
    notes = 0

    def show(picture: Picture) -> None:
        nonlocal shown_s, notes
        for note in picture.notes[notes:]:
            console.print(note, highlight=False, soft_wrap=True)
        notes = len(picture.notes)
        if time.monotonic() - shown_s >= LINE_EVERY_S:
            shown_s = time.monotonic()
            console.print(plain_line(picture), highlight=False, soft_wrap=True)

    return show


def show_all(console: Console, picture: Picture) -> None:
    """Prints the last picture, to stay."""
    shown = (
        picture if console.is_terminal else Picture(picture.tally, picture.figures, picture.phase, picture.clock, 1.0)
    )
    console.print(draw(shown, console.width, _ALL_OF_IT))
