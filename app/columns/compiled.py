"""Loops over columns as machine code: what NumPy can only say in many passes over many temporary arrays is one pass here.

Numba compiles a function when it is first called, and keeps the code for the processes that come after, below NUMBA_CACHE_DIR
or beside this module. Nothing but arrays and numbers goes in and out, so that each function is compiled once.
"""

import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeVar

import numba

Loop = TypeVar("Loop", bound=Callable[..., Any])

# Without Numba's runtime no array can be made in a loop, and no reference is counted whenever one is handed on, which
# would cost more than the loops.
_OPTIONS: Final = {"error_model": "numpy", "_nrt": False}
_ROOMS: Final = ("contract", "columns", "dedup", "intake")  # that have loops, or what loops use


def compiled(loop: Loop) -> Loop:
    """A function that reads and fills arrays, as machine code.

    Integers wrap around, a division by zero is what NumPy makes of it, and no index is checked: none may be out of bounds.
    """
    return numba.njit(loop, cache=_KEEPS, **_OPTIONS)


def inlined(loop: Loop) -> Loop:
    """A function that such loops call, put in their place."""
    return numba.njit(loop, inline="always", **_OPTIONS)


def _keep_code() -> bool:
    """Gives machine code a folder for these sources; False where there is none to write to: each process compiles its own.

    Numba by itself sees when a loop's own module changes, but not when a number or a function does that it has from another
    one: it would go on with the old code.
    """
    package = Path(__file__).parents[1]
    digest = sha256()
    for source in sorted(path for room in _ROOMS for path in (package / room).glob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    folder = Path(os.environ.get("NUMBA_CACHE_DIR") or package / "__pycache__") / f"loops-{digest.hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    numba.config.CACHE_DIR = str(folder)
    return os.access(folder, os.W_OK)


_KEEPS: Final = _keep_code()
