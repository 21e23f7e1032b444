"""Loops over columns as machine code: what NumPy can only say in many passes over many temporary arrays is one pass here.

A loop is compiled where its module is imported, so before a worker has partitions, and once, since its columns' types are
said; the code is kept for the processes that come after, below NUMBA_CACHE_DIR or beside this module. Nothing but arrays and
numbers goes in and out.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeVar

import numba
from numba import types

Loop = TypeVar("Loop", bound=Callable[..., Any])

# Without Numba's runtime no array can be made in a loop, and no reference is counted whenever one is handed on, which
# would cost more than the loops.
_OPTIONS: Final = {"error_model": "numpy", "_nrt": False}
_ROOMS: Final = ("contract", "columns", "dedup", "intake")  # that have loops, or what loops use


# The types of columns. What is only read may be writable or not, and WORDS may have any stride; all others stand in a row.
BYTES: Final = types.Array(types.uint8, 1, "C", readonly=True)
BYTE_ROWS: Final = types.Array(types.uint8, 2, "C", readonly=True)
WORDS: Final = types.Array(types.uint64, 1, "A", readonly=True)
SHORTS: Final = types.Array(types.uint16, 1, "C", readonly=True)
HALVES: Final = types.Array(types.uint32, 1, "C", readonly=True)
INTS: Final = types.Array(types.int64, 1, "C", readonly=True)
INT_ROWS: Final = types.Array(types.int64, 2, "C", readonly=True)
FLOATS: Final = types.Array(types.float64, 1, "C", readonly=True)
FLAGS: Final = types.Array(types.boolean, 1, "C", readonly=True)
INT: Final = types.int64


def filled(column: types.Array) -> types.Array:
    """The type of such a column that the loop writes to."""
    return types.Array(column.dtype, column.ndim, "C")


def compiled(*columns: types.Type) -> Callable[[Loop], Loop]:
    """Makes machine code of a function that reads and fills arrays; `columns`: the type of each argument, in order. Called with
    another type it raises a `TypeError`.

    Integers wrap around, a division by zero is what NumPy makes of it, and no index is checked: none may be out of bounds.
    """
    return numba.njit(columns, cache=_KEEPS, **_OPTIONS)


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


def prepare(module: str) -> None:
    """To be called before a module with loops is imported: where their code is not kept yet a process of its own compiles it, since
    the compiler takes 170 MB that a process does not give back. What goes wrong there goes wrong again, and is told, at the import.
    """
    if not _KEEPS:
        return
    done = Path(numba.config.CACHE_DIR) / f"{module}-{sys.implementation.cache_tag}-{numba.__version__}"
    if not done.exists():
        argv = [sys.executable, "-c", f"import {module}"]
        if subprocess.run(argv, stderr=subprocess.DEVNULL, check=False).returncode == 0:
            done.touch()


_KEEPS: Final = _keep_code()
